"""GENOME and GENOME+ (arXiv 2503.01155).

  evojax-llm evolve --config=genome_plus
  evojax-llm evolve --config=genome_as_published
  evojax-llm evolve --config=genome_plus \\
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \\
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

The word after the colon is one of PRESETS: genome_plus (default) and genome are
the corrected algorithm with the defaults of the strategy; genome_as_published
and genome_plus_as_published have every number and option of the scripts of the
released code, or with _cli behind it of its command-line defaults. README.md
lists what of that code is not reproduced.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

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

PRESETS = {
  'genome': Preset('genome', {}, RICH, 20, 12),
  # Two rounds make a generation of GENOME+ as the paper counts.
  'genome_plus': Preset('genome_plus', {}, RICH, 20, 2 * 5),
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
    2 * 20,
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
    2 * 10,
  ),
}


def get_config(name: str = 'genome_plus') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  return presets.of_preset(name, PRESETS)
