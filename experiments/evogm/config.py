"""EvoGM; see `evojax_llm.systems.evogm`."""

from evojax_llm.systems.evogm import PRESETS as PRESETS
from evojax_llm.systems.evogm import get_config as get_config
