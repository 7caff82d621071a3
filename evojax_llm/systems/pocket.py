"""The run without flags: GENOME+ on the pocket population's main stage.

  evojax-llm evolve
  evojax-llm evolve --config=pocket:adapters

A member is a merge of the ten experts, exact and never formed: its genome is
their ten weights. With the argument `adapters` it is a pair of factors A and B
for every matrix, as published. About 190 members are scored on 200 dev items,
50 of each of four tasks, and the result on 1000 test items, in well under a
minute on two CPU cores.

Another stage is named by --config.tasks=mixed; see
evojax_llm/pocket/stages.json.
"""

from ml_collections import config_dict

from evojax_llm.systems import genome

# Chosen, as the space was, on the stage `mixed` among four settings: mutation
# reaches as far as the weights of experts do.
_GATES = {'sigma': 0.3}
# With what their runs are called.
PRESETS = {
  'gates': 'genome_plus_coefficients',
  'adapters': 'genome_plus_adapters',
}


def get_config(space: str = 'gates') -> config_dict.ConfigDict:
  """Returns the run without flags, in the space of this name."""
  if space not in PRESETS:
    raise ValueError(f"Got preset {space!r}; expected 'gates' or 'adapters'.")
  config = genome.get_config('genome_plus')
  config.name = PRESETS[space]
  config.space = space
  if space == 'gates':
    config.strategy.options.update(_GATES)
  config.tasks = 'main'
  config.dev_limit = 50
  config.test_limit = 250
  return config
