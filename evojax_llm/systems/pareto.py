r"""Pareto search: NSGA-II over the scores on several tasks (Deb et al., 2002).

  evojax-llm evolve --config=nsga2
  evojax-llm evolve --config=nsga2_adapters --config.pareto.choice=best_of:zip
  evojax-llm evolve --config=nsga2 --config.model=gemma-2-2b-it \
      --config.adapters=experts/code,experts/cot,experts/math \
      --config.tasks=mmlu.json,gsm8k.json --config.pareto.objectives=length

200 members are scored. The run ends with a front; config.pareto says what the
objectives are beside the tasks, and which member of the front is best/.
"""

from ml_collections import config_dict

from evojax_llm.runs import presets
from evojax_llm.runs.presets import RICH
from evojax_llm.runs.presets import Preset

_EVALUATIONS, _MEMBERS = 200, 20
_ROUNDS = _EVALUATIONS // _MEMBERS - 1
# With the space of each.
_SPACES = {'nsga2': 'gates', 'nsga2_adapters': 'adapters'}
PRESETS = {
  name: Preset('nsga2', {}, RICH, _MEMBERS, _ROUNDS) for name in _SPACES
}


def get_config(name: str = 'nsga2') -> config_dict.ConfigDict:
  """Returns a preset; see `presets.of_preset` for changes of it."""
  config = presets.of_preset(name, PRESETS)
  config.strategy.evaluations = _EVALUATIONS
  config.space = _SPACES[name.partition('+')[0]]
  # Of the pocket; with a model of one's own, tasks of one's own.
  config.tasks = 'sor,zip'
  return config
