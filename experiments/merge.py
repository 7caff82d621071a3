"""`python -m experiments.merge`, the same as `evojax-llm merge`."""

from evojax_llm.commands import command
from evojax_llm.commands.merge import main

if __name__ == '__main__':
  command.launch(main)
