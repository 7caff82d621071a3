"""`python -m experiments.evolve`, the same as `evojax-llm evolve`."""

from evojax_llm.commands import command
from evojax_llm.commands.evolve import main

if __name__ == '__main__':
  command.launch(main)
