"""Sakana's evolutionary merging; see `evojax_llm.systems.sakana`."""

from evojax_llm.systems.sakana import PRESETS as PRESETS
from evojax_llm.systems.sakana import get_config as get_config
