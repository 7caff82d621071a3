"""Low-rank evolution strategies; see `evojax_llm.systems.low_rank_es`."""

from evojax_llm.systems.low_rank_es import PRESETS as PRESETS
from evojax_llm.systems.low_rank_es import get_config as get_config
