"""Random search and CMA-ES; see `evojax_llm.systems.coefficients`."""

from evojax_llm.systems.coefficients import PRESETS as PRESETS
from evojax_llm.systems.coefficients import get_config as get_config
