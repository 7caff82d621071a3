"""GENOME and GENOME+; see `evojax_llm.systems.genome`."""

from evojax_llm.systems.genome import PRESETS as PRESETS
from evojax_llm.systems.genome import get_config as get_config
