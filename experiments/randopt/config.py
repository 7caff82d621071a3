"""Random perturbations; see `evojax_llm.systems.randopt`."""

from evojax_llm.systems.randopt import PRESETS as PRESETS
from evojax_llm.systems.randopt import get_config as get_config
