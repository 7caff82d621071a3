"""LoraHub; see `evojax_llm.systems.lorahub`."""

from evojax_llm.systems.lorahub import PRESETS as PRESETS
from evojax_llm.systems.lorahub import get_config as get_config
