"""EvoMerge; see `evojax_llm.systems.evomerge`."""

from evojax_llm.systems.evomerge import PRESETS as PRESETS
from evojax_llm.systems.evomerge import get_config as get_config
