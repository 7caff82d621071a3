"""`python -m experiments.analyse`, the same as `evojax-llm analyse`."""

from evojax_llm.commands import command
from evojax_llm.commands.analyse import main

if __name__ == '__main__':
  command.launch(main)
