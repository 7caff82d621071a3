"""`python -m experiments.export`, the same as `evojax-llm export`."""

from evojax_llm.commands import command
from evojax_llm.commands.export import main

if __name__ == '__main__':
  command.launch(main)
