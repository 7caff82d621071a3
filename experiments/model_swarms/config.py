r"""Model Swarms (arXiv 2410.11163).

  python -m experiments.evolve --config=experiments/model_swarms/config.py
  python -m experiments.evolve \
      --config=experiments/model_swarms/config.py:model_swarms_as_published \
      --config.model=gemma-2-2b-it --config.adapters=experts/code,experts/cot \
      --config.tasks=mmlu.json --config.dev_limit=200

The word after the colon is model_swarms (default), model_swarms_as_published
(the released scripts), model_swarms_as_published_cli (the released command-line
defaults), model_swarms_as_published_light (their quicker profile), moco (what
its authors ship in their later toolkit) or model_swarms_by_genome (the weaker
one that GENOME's released code is compared with). Options that
are to differ follow it, as in model_swarms+restart=forever; +draw=17 is the
17th draw of the released scripts' random search over the coefficients.
"""

import random

from ml_collections import config_dict

from evojax_llm.runs import presets

# What a preset does not say. tests/experiments/test_evolve.py holds them
# against strategies.model_swarms.
OPTIONS = {
  'restart': 'once',
  'draws': 'particle',
  'decay': 'after',
  'personal': True,
  'velocity_start': 'random',
  'keep_best': True,
  'inertia': 0.2,
  'cognitive': 0.3,
  'social': 0.4,
  'repel': 0.05,
  'step_length': 1.0,
  'step_decay': 0.95,
  'step_floor': 0.1,
  'restart_after': 4.0,
  'refractory': 3.0,
  'drop_round': 0.0,
  'drop_member': 0.0,
}


# What the released scripts draw from, evenly, for each of their runs.
GRIDS = {
  'inertia': (0.1, 0.2, 0.3),
  'cognitive': (0.1, 0.2, 0.3, 0.4, 0.5),
  'social': (0.2, 0.3, 0.4, 0.5, 0.6),
  'repel': (0.01, 0.05, 0.1),
  'step_length': (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
}


def get_config(name: str = 'model_swarms') -> config_dict.ConfigDict:
  preset, *changes = name.split('+')
  draws = [change for change in changes if change.startswith('draw=')]
  kept = [change for change in changes if change not in draws]
  config = presets.of_preset(
    '+'.join([preset, *kept]), ('model_swarms',), OPTIONS
  )
  config.name = name
  for draw in draws:
    number = draw.removeprefix('draw=')
    if not number.isdecimal():
      raise ValueError(f"Got '{draw}'; expected draw= and a number.")
    chance = random.Random(int(number))
    for option, grid in GRIDS.items():
      config.strategy.options[option] = chance.choice(grid)
  return config
