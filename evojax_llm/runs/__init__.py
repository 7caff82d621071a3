"""A run: from a configuration to a finished folder."""

from typing import Any

from evojax_llm import lookup

# Loaded when they are asked for: the configuration needs no jax.
_NAMES = {
  'RunConfig': 'evojax_llm.runs.run_config:RunConfig',
  'Result': 'evojax_llm.runs.runner:Result',
  'run': 'evojax_llm.runs.runner:run',
  'sweep': 'evojax_llm.runs.sweeps:sweep',
}


def __getattr__(name: str) -> Any:
  if name not in _NAMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return lookup.load(_NAMES[name], 'name')
