"""The run without flags: GENOME+ on the pocket population's main stage.

  python -m experiments.evolve

About 190 members are scored on 200 dev items, 50 of each of four tasks, and
the result on 1000 test items, in about a minute on two CPU cores.

`config.py:mixed` takes another stage; see evojax_llm/pocket/stages.json.
"""

from ml_collections import config_dict

from experiments.genome import config as genome_config


def get_config(stage: str = 'main') -> config_dict.ConfigDict:
  config = genome_config.get_config('genome_plus')
  config.tasks = stage
  config.dev_limit = 50
  config.test_limit = 250
  return config
