r"""Model Swarms (arXiv 2410.11163).

  evojax-llm evolve --config=model_swarms
  evojax-llm evolve --config=model_swarms_as_published \
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
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

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
PRESETS = {
  'model_swarms': Preset('model_swarms', {}, RICH, 20, 10),
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

# What the released scripts draw from, evenly, for each of their runs.
GRIDS = {
  'inertia': (0.1, 0.2, 0.3),
  'cognitive': (0.1, 0.2, 0.3, 0.4, 0.5),
  'social': (0.2, 0.3, 0.4, 0.5, 0.6),
  'repel': (0.01, 0.05, 0.1),
  'step_length': (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
}


def get_config(name: str = 'model_swarms') -> config_dict.ConfigDict:
  """Returns a preset, with changes as of `presets.of_preset`, or a draw."""
  preset, *changes = name.split('+')
  draws = [change for change in changes if change.startswith('draw=')]
  kept = [change for change in changes if change not in draws]
  config = presets.of_preset('+'.join([preset, *kept]), PRESETS)
  config.name = name
  for draw in draws:
    number = draw.removeprefix('draw=')
    if not number.isdecimal():
      raise ValueError(f"Got '{draw}'; expected draw= and a number.")
    chance = random.Random(int(number))
    for option, grid in GRIDS.items():
      config.strategy.options[option] = chance.choice(grid)
  return config
