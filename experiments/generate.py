"""`python -m experiments.generate`, the same as `evojax-llm generate`."""

from evojax_llm.commands import command
from evojax_llm.commands.generate import main

if __name__ == '__main__':
  command.launch(main)
