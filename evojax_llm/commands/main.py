"""`evojax-llm COMMAND ...`: the commands under one name."""

import importlib
import sys

from evojax_llm import lookup
from evojax_llm.commands import command

COMMANDS = {
  'evolve': 'one run: search, baselines, votes, report',
  'sweep': 'many runs over swept settings',
  'compare': 'systems beside baselines at equal evaluations',
  'score': 'a model and its adapters on task files',
  'generate': 'a model and its adapters continue prompts',
  'export': 'the best member of a run as an adapter or a model',
  'merge': "mergekit's recipe as a model folder",
  'convert': 'a GGUF file as a model folder',
  'extract': 'the change of a tuned model as an adapter',
  'analyse': 'what emerged in a run, and where its best member came from',
}


def main() -> None:
  """Runs the command that the first argument names."""
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('-h', '--help', '-help', 'help'):
    print('evojax-llm COMMAND --FLAG=VALUE ..., all with --help:\n')
    print('\n'.join(f'  {name:10}{text}' for name, text in COMMANDS.items()))
    sys.exit(0)
  if name not in COMMANDS:
    wanted = lookup.expected(name, COMMANDS)
    print(f'error: Got command {name!r}{wanted}', file=sys.stderr)
    sys.exit(1)
  module = importlib.import_module(f'evojax_llm.commands.{name}')
  sys.argv[:2] = [f'{sys.argv[0]} {name}']
  command.launch(module.main)
