"""GENOME and GENOME+ (arXiv 2503.01155).

  python -m experiments.evolve --config=experiments/genome/config.py
  python -m experiments.evolve \\
      --config=experiments/genome/config.py:genome_as_published
  python -m experiments.evolve --config=experiments/genome/config.py \\
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \\
      --config.tasks=mmlu.json,gsm8k.json --config.dev_limit=200

The word after the colon is one of evojax_llm.strategies.presets.PRESETS:
genome_plus (default), genome, and for the settings of the released code
genome_as_published and genome_plus_as_published (its scripts), or the same with
_cli behind it (its command-line defaults).
"""

from ml_collections import config_dict

from evojax_llm.runs import presets

# What a preset does not say. tests/experiments/test_evolve.py holds the
# hyperparameters against those of strategies.genome.
OPTIONS = {
  'merge': 'linear',
  'weighing': 'line',
  'parents': 'roulette',
  'survivors': 'roulette',
  'chosen_by': 'fitness',
  'entrants': 3,
  'relative_sigma': True,
  'mask': 'element',
  'least_elites': 1,
  'elite_rounding': 'floor',
  'elite_base': 'population',
  'draws': 'particle',
  'decay': 'before',
  'personal': True,
  'rescore': True,
  'velocity_start': 'random',
  'spare_elites': False,
  'keep_best': True,
  'cross_rate': 0.8,
  'cross_low': 0.0,
  'cross_high': 2.0,
  'temperature': 0.1,
  'parent_share': 0.5,
  'share_alpha': 1.0,
  'mutation_rate': 0.3,
  'gene_rate': 1.0,
  'sigma': 0.1,
  'scale_rate': 0.0,
  'scale_low': 0.8,
  'scale_high': 1.8,
  'elite_share': 0.1,
  'inertia': 0.2,
  'cognitive': 0.2,
  'social': 0.2,
  'repel': 0.1,
  'step_length': 0.5,
  'step_decay': 0.95,
  'step_floor': 0.0,
}
# What is left to the strategy unless it is set: places for members, slots for
# copies, and what the merge takes (see evojax_llm/operators/README.md).
UNSET = {
  'max_population': int,
  'max_mutants': int,
  'merge_parameters': {
    'alpha': float,
    'density': float,
    'eps': float,
    'epsilon': float,
    'gamma': float,
    'high': float,
    'lambda_': float,
    'low': float,
    'r': float,
    'select_topk': float,
    'split': float,
    'tol': float,
  },
  'merge_options': {
    'election': str,
    'form': str,
    'iterations': int,
    'negative': str,
    'normalize': str,
    'rescale': str,
    'span': str,
  },
}


def get_config(name: str = 'genome_plus') -> config_dict.ConfigDict:
  return presets.of_preset(name, ('genome', 'genome_plus'), OPTIONS, UNSET)
