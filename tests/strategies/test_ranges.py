"""Numbers that no strategy takes, and those of the presets, which it does."""

import math

import pytest

from evojax_llm.strategies import registry
from tests.strategies import problems


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('genome', {'entrants': 0}, 'entrants 0; expected 1 or more'),
    ('genome', {'least_elites': -1}, 'least_elites -1; expected 0 or more'),
    ('genome', {'cross_rate': 1.5}, 'cross_rate 1.5; expected 0 to 1'),
    ('genome', {'cross_low': math.inf}, 'cross_low inf; expected a finite'),
    ('genome_plus', {'repel': -0.1}, 'repel -0.1; expected 0 or more'),
    ('genome_plus', {'sigma': math.nan}, 'sigma nan; expected 0 or more'),
    ('model_swarms', {'restart_after': 0.0}, '0.0; expected 1 or more'),
    ('model_swarms', {'drop_round': 1.1}, 'drop_round 1.1; expected 0 to 1'),
    ('lorahub', {'bound': -1.0}, 'bound -1.0; expected 0 or more'),
    ('lorahub', {'penalty': 'max'}, "'max'; expected one of 'sum', 'mean'"),
    ('pso_merging', {'longest_step': -1.0}, '-1.0; expected 0 or more'),
    ('evogm', {'winners': 1.5}, 'winners 1.5; expected 0 to 1'),
    ('evogm', {'inner': 0}, 'inner 0; expected 1 or more'),
    ('low_rank_es', {'learning_rate': -1.0}, '-1.0; expected 0 or more'),
  ],
)
def test_numbers_out_of_range_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    registry.make_strategy(name, 4, **options)


@pytest.mark.parametrize('name', problems.PRESETS)
def test_presets_are_in_range(name):
  preset = problems.PRESETS[name]
  size = preset.population
  registry.make_strategy(preset.strategy, size, **preset.options)
