"""Presets as configurations: changes after plus signs, and the sweep."""

import dataclasses

import jax
import numpy as np
import pytest

from evojax_llm.strategies import low_rank_es
from evojax_llm.strategies import model_swarms
from evojax_llm.strategies import registry
from evojax_llm.strategies.evogm import algorithm as evogm
from evojax_llm.strategies.genome import algorithm
from evojax_llm.systems import evogm as evogm_config
from evojax_llm.systems import genome as genome_config
from evojax_llm.systems import low_rank_es as low_rank_config
from evojax_llm.systems import model_swarms as swarms_config


def test_a_preset_is_changed_option_by_option():
  plain = genome_config.get_config('genome_plus')
  config = genome_config.get_config(
    'genome_plus+rescore=False+draws=run+sigma=1+max_population=40'
  )
  assert config.name == 'genome_plus+rescore=False+draws=run+sigma=1+' + (
    'max_population=40'
  )
  options = config.strategy.options
  assert options.rescore is False and options.draws == 'run'
  assert options.sigma == 1.0 and options.max_population == 40
  changed = {'rescore', 'draws', 'sigma', 'max_population'}
  for name, value in plain.strategy.options.items():
    assert name in changed or options[name] == value


@pytest.mark.parametrize(
  'name, message',
  [
    (
      'genome_pluss',
      "genome_pluss'. Did you mean 'genome_plus'. Expected",
    ),
    ('genome+scores=False', "'scores=False' of a preset: .* field 'scores'"),
    ('genome+rescore', "'rescore' of a preset"),
    ('genome+rescore=perhaps', "'rescore=perhaps'"),
    ('genome+sigma=None', 'sigma=None; expected a value of type float'),
    ('genome+merge_options.norm=count', 'one of election, form, iterations'),
    ('genome+merge_parameters.r.s=1', "'merge_parameters.r.s=1' of a preset"),
    ('genome+merges.density=1', "'merges.density=1' of a preset"),
  ],
)
def test_what_is_no_preset_or_option_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    genome_config.get_config(name)


def test_what_a_merge_takes_is_changed_as_well():
  config = genome_config.get_config(
    'genome+merge=ties+merge_parameters.density=0.5+merge_options.normalize=count'
    '+max_population=None'
  )
  options = config.strategy.options
  assert options.merge_parameters.density == 0.5
  assert options.merge_options.normalize == 'count'
  assert options.merge_options.election is None


def test_a_sweep_draws_coefficients_from_the_grids():
  drawn = []
  for number in range(40):
    config = swarms_config.get_config(
      f'model_swarms_as_published+draw={number}'
    )
    options = config.strategy.options
    drawn.append(tuple(options[name] for name in swarms_config.GRIDS))
    assert options.restart == 'forever'
  for values, grid in zip(
    zip(*drawn, strict=True), swarms_config.GRIDS.values(), strict=True
  ):
    assert set(values) == set(grid)
  assert len(set(drawn)) > 30
  assert drawn[3] == tuple(
    swarms_config.get_config('model_swarms+draw=3').strategy.options[name]
    for name in swarms_config.GRIDS
  )
  with pytest.raises(ValueError, match="'draw=x'; expected draw= and a number"):
    swarms_config.get_config('model_swarms+draw=x')


@pytest.mark.parametrize(
  'module, name, make',
  [
    (genome_config, 'genome', algorithm.Genome),
    (genome_config, 'genome_plus', algorithm.Genome),
    (swarms_config, 'model_swarms', model_swarms.ModelSwarms),
    (low_rank_config, 'low_rank_es', low_rank_es.LowRankES),
    (evogm_config, 'evogm', evogm.EvoGM),
  ],
)
def test_a_configuration_holds_all_options_with_their_defaults(
  module, name, make
):
  options = module.get_config(name).strategy.options.to_dict()
  assert set(options) == set(registry.options(name))
  options |= {'members': None} if 'members' in options else {}
  strategy, plain = make(4, **options), make(4)
  jax.tree.map(
    np.testing.assert_array_equal,
    strategy.default_params,
    plain.default_params,
  )
  for attribute in ('variation', 'succession', 'options', 'keep_best'):
    one, two = (getattr(s, attribute, None) for s in (strategy, plain))
    # Where nothing is set the one names what could be.
    for field in ('merge_options', 'merge_parameters'):
      if hasattr(one, field):
        one, two = (dataclasses.replace(o, **{field: {}}) for o in (one, two))
    assert one == two


def test_placeholders_nest_and_take_their_type_alone():
  config = genome_config.get_config()
  merge = config.strategy.options.merge_parameters
  assert all(value is None for value in merge.values())
  merge.density = 0.5
  with pytest.raises(TypeError):
    merge.density = 'half'
