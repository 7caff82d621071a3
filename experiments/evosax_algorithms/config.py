"""evosax's algorithms; see `evojax_llm.systems.evosax_algorithms`."""

from evojax_llm.systems.evosax_algorithms import PRESETS as PRESETS
from evojax_llm.systems.evosax_algorithms import get_config as get_config
