"""`python -m experiments.compare`, the same as `evojax-llm compare`."""

from evojax_llm.commands import command
from evojax_llm.commands.compare import main

if __name__ == '__main__':
  command.launch(main)
