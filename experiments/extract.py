"""`python -m experiments.extract`, the same as `evojax-llm extract`."""

from evojax_llm.commands import command
from evojax_llm.commands.extract import main

if __name__ == '__main__':
  command.launch(main)
