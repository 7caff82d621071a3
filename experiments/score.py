"""`python -m experiments.score`, the same as `evojax-llm score`."""

from evojax_llm.commands import command
from evojax_llm.commands.score import main

if __name__ == '__main__':
  command.launch(main)
