"""M2N2; see `evojax_llm.systems.m2n2`."""

from evojax_llm.systems.m2n2 import PRESETS as PRESETS
from evojax_llm.systems.m2n2 import get_config as get_config
