"""Settings of GENOME, GENOME+ and Model Swarms by name, published ones too.

'genome', 'genome_plus' and 'model_swarms' are this package's corrected
algorithms with the defaults of their strategies. Those named '_as_published'
take every number and every option from the released code: from the scripts that
come with it, or with '_cli' behind it its command-line defaults. 'moco' has
what Model Swarms' authors ship in their later toolkit, 'model_swarms_by_genome'
what GENOME's authors compare with. What of the released code is not reproduced
is listed in the README of each system below experiments/.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
  """One setting of a run.

  Attributes:
    strategy: name in `registry`.
    options: of its constructor, hyperparameters among them.
    recipe: of the initial population; see `genomes.initial`.
    population_size: members at first.
    generations: as the source counts them: in GENOME+, one is two rounds of
      this package.
    patience: rounds without a better member after which the run ends.
  """

  strategy: str
  options: Mapping[str, Any]
  recipe: tuple[Any, ...]
  population_size: int
  generations: int
  patience: int | None = None

  @property
  def rounds(self) -> int:
    """Ask-score-tell rounds."""
    return self.generations * (2 if self.strategy == 'genome_plus' else 1)


_GENOME_AS_PUBLISHED = {
  'weighing': 'fitness',
  'survivors': 'tournament',
  'entrants': 3,
  'relative_sigma': False,
  'mask': 'element',
  'least_elites': 0,
  'elite_rounding': 'floor',
  'keep_best': False,
}
_GENOME_PLUS_AS_PUBLISHED = {
  'weighing': 'fitness',
  'survivors': 'roulette',
  'relative_sigma': False,
  'mask': 'element',
  'least_elites': 0,
  'elite_rounding': 'round',
  'elite_base': 'pool',
  'inertia': 0.2,
  'cognitive': 0.2,
  'social': 0.2,
  'repel': 0.1,
  'step_length': 0.5,
  'step_decay': 0.95,
  'step_floor': 0.0,
  'personal': False,
  'rescore': False,
  'keep_best': False,
  'draws': 'run',
  'decay': 'member',
}
_MODEL_SWARMS_AS_PUBLISHED = {
  'restart': 'forever',
  'draws': 'particle',
  'velocity_start': 'random',
  'step_decay': 0.95,
  'step_floor': 0.1,
}
# The scripts draw phi and lambda from grids, run after run; this is their
# middle.
_MIDDLE_OF_GRIDS = {
  'inertia': 0.2,
  'cognitive': 0.3,
  'social': 0.4,
  'repel': 0.05,
  'step_length': 0.75,
}
_RICH = ('experts', 'zero', 'scaled_average', 'extrapolants')

PRESETS: Mapping[str, Preset] = {
  'genome': Preset('genome', {}, _RICH, 20, 12),
  'genome_plus': Preset('genome_plus', {}, _RICH, 20, 5),
  'genome_as_published_cli': Preset(
    'genome',
    _GENOME_AS_PUBLISHED
    | {
      'cross_rate': 0.8,
      'mutation_rate': 0.15,
      'gene_rate': 0.01,
      'sigma': 0.01,
      'elite_share': 0.02,
    },
    ('pairs',),
    10,
    50,
  ),
  'genome_as_published': Preset(
    'genome',
    _GENOME_AS_PUBLISHED
    | {
      'cross_rate': 0.0,
      'mutation_rate': 0.1,
      'gene_rate': 0.1,
      'sigma': 0.001,
      'elite_share': 0.1,
    },
    ('pairs',),
    10,
    10,
  ),
  'genome_plus_as_published_cli': Preset(
    'genome_plus',
    _GENOME_PLUS_AS_PUBLISHED
    | {
      'cross_rate': 0.8,
      'mutation_rate': 0.3,
      'gene_rate': 0.1,
      'sigma': 0.05,
      'elite_share': 0.1,
      'max_population': 20,
    },
    ('experts',),
    10,
    20,
  ),
  'genome_plus_as_published': Preset(
    'genome_plus',
    _GENOME_PLUS_AS_PUBLISHED
    | {
      'cross_rate': 0.3,
      'mutation_rate': 0.0,
      'gene_rate': 0.1,
      'sigma': 0.001,
      'elite_share': 0.1,
    },
    ('pairs',),
    10,
    10,
  ),
  'low_rank_es': Preset('low_rank_es', {'members': 32}, _RICH, 12, 6),
  'model_swarms': Preset('model_swarms', {}, _RICH, 20, 10),
  'model_swarms_as_published': Preset(
    'model_swarms',
    _MODEL_SWARMS_AS_PUBLISHED | _MIDDLE_OF_GRIDS | {'restart_after': 6.0},
    ('experts', 'extrapolants'),
    20,
    200,
    patience=9,
  ),
  'model_swarms_as_published_cli': Preset(
    'model_swarms',
    _MODEL_SWARMS_AS_PUBLISHED
    | {
      'inertia': 0.4,
      'cognitive': 0.3,
      'social': 0.3,
      'repel': 0.3,
      'step_length': 1.0,
      'restart_after': 4.0,
    },
    ('experts',),
    10,
    200,
    patience=9,
  ),
  # The light profile of the released code's own description.
  'model_swarms_as_published_light': Preset(
    'model_swarms',
    _MODEL_SWARMS_AS_PUBLISHED
    | _MIDDLE_OF_GRIDS
    | {
      'restart_after': 2.0,
      'drop_round': 0.5,
      'drop_member': 0.5,
    },
    ('experts',),
    10,
    20,
    patience=4,
  ),
  # The one that GENOME's released code is compared with (arXiv 2503.01155).
  'model_swarms_by_genome': Preset(
    'model_swarms',
    {
      'restart': 'never',
      'personal': False,
      'keep_best': False,
      'draws': 'run',
      'decay': 'member',
      'inertia': 0.2,
      'cognitive': 0.2,
      'social': 0.2,
      'repel': 0.1,
      'step_length': 0.1,
      'step_decay': 0.95,
      'step_floor': 0.0,
    },
    ('pairs',),
    10,
    10,
  ),
  'moco': Preset(
    'model_swarms',
    {
      'restart': 'once',
      'inertia': 0.2,
      'cognitive': 0.3,
      'social': 0.4,
      'repel': 0.05,
      'step_length': 0.5,
      'step_decay': 0.95,
      'step_floor': 0.1,
      'restart_after': 2.0,
      'refractory': 3.0,
    },
    ('experts',),
    10,
    10,
    patience=4,
  ),
}
