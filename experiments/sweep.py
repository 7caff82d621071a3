"""`python -m experiments.sweep`, the same as `evojax-llm sweep`."""

from evojax_llm.commands import command
from evojax_llm.commands.sweep import main

if __name__ == '__main__':
  command.launch(main)
