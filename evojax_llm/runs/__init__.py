"""A run: from a configuration to a finished folder."""

from evojax_llm.lookup import public_names as _public_names

# Loaded when they are asked for: the configuration needs no jax.
_PUBLIC = {
  'RunConfig': 'evojax_llm.runs.run_config:RunConfig',
  'Result': 'evojax_llm.runs.launch:Result',
  'run': 'evojax_llm.runs.launch:run',
  'sweep': 'evojax_llm.runs.sweeps:sweep',
}
__all__ = sorted(_PUBLIC)
__getattr__, __dir__ = _public_names(__name__, _PUBLIC)
