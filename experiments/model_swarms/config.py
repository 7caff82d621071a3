"""Model Swarms; see `evojax_llm.systems.model_swarms`."""

from evojax_llm.systems.model_swarms import PRESETS as PRESETS
from evojax_llm.systems.model_swarms import get_config as get_config
