"""The run without flags; see `evojax_llm.systems.pocket`."""

from evojax_llm.systems.pocket import PRESETS as PRESETS
from evojax_llm.systems.pocket import get_config as get_config
