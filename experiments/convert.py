"""`python -m experiments.convert`, the same as `evojax-llm convert`."""

from evojax_llm.commands import command
from evojax_llm.commands.convert import main

if __name__ == '__main__':
  command.launch(main)
