"""Pareto search; see `evojax_llm.systems.pareto`."""

from evojax_llm.systems.pareto import PRESETS as PRESETS
from evojax_llm.systems.pareto import get_config as get_config
