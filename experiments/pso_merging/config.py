"""PSO-Merging; see `evojax_llm.systems.pso_merging`."""

from evojax_llm.systems.pso_merging import PRESETS as PRESETS
from evojax_llm.systems.pso_merging import get_config as get_config
