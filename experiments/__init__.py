"""The published systems, benchmarks, and how the pocket population is built.

The commands are those of `evojax_llm.commands`, which are found here as well:
`python -m experiments.evolve` in a clone is `evojax-llm evolve`.
"""

from evojax_llm import commands

__path__ += commands.__path__
