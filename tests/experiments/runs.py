"""A tiny problem for the evolve program, and what two runs must share."""

import json
import pathlib
import string

import numpy as np

from evojax_llm.runs import preparation
from evojax_llm.runs.checkpoint import Checkpoints
from tests.experiments import running

ROOT = pathlib.Path(__file__).resolve().parents[2]
GENOME = 'experiments/genome/config.py'
MODEL_SWARMS = 'experiments/model_swarms/config.py'


def write_task(
  path: pathlib.Path, dev: int = 30, test: int = 12, seed: int = 0
):
  """Nonsense with options of random letters: every model answers otherwise."""
  rng = np.random.default_rng(seed)

  def rows(count, first):
    letters = list(string.ascii_lowercase)
    return [
      {
        'question': f'{first + i} ' + ''.join(rng.choice(letters, 5)),
        'answer': str(rng.choice(list('ABCD'))),
        'choices': {k: ''.join(rng.choice(letters, 2)) for k in 'ABCD'},
      }
      for i in range(count)
    ]

  task = {
    'name': path.stem,
    'dev': rows(dev, 0),
    'test': rows(test, 1000),
    'format': {'choice': 'text'},
  }
  path.write_text(json.dumps(task))
  return path


def evolve(settings, folder: pathlib.Path, *more: str):
  """What `main` of the evolve program returns."""
  arguments = [*settings, f'--workdir={folder}', *more]
  if not arguments[0].startswith('--config='):
    arguments.insert(0, f'--config={GENOME}')
  return running.run_program('evolve', *arguments)


def share_what_is_read(monkeypatch) -> None:
  """Has runs of this process read and compile once what they have in common."""
  prepare, cache = preparation.prepare, {}

  def shared(config, files=None, _=None, warm=''):
    return prepare(config, files, cache, warm)

  monkeypatch.setattr(preparation, 'prepare', shared)


def lines(path: pathlib.Path) -> list[dict]:
  """The rows of a file of JSON lines."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def summary(folder: pathlib.Path) -> dict:
  """The summary.json of a finished run."""
  return json.loads((folder / 'summary.json').read_text())


def result(folder: pathlib.Path) -> dict:
  """All of a finished run but what the clock and the last process say."""
  kept = summary(folder)
  del kept['seconds'], kept['ledger']
  metrics = lines(folder / 'metrics.jsonl')
  for row in metrics:
    del row['seconds'], row['time']
  return {
    'summary': kept,
    'metrics': metrics,
    'members': (folder / 'members.jsonl').read_text(),
    'baselines': (folder / 'baselines.json').read_text(),
    'best': (folder / 'best' / 'adapter_model.safetensors').read_bytes(),
    'items': {
      f'{f.parent.name}/{f.name}': f.read_bytes()
      for f in folder.glob('*items/*')
    },
    'state': state(folder),
  }


def state(folder: pathlib.Path) -> dict:
  """Leaves of the last checkpoint by name, as bytes."""
  _, tree = Checkpoints(folder / 'checkpoints').read()
  found = {}

  def walk(name, node):
    if isinstance(node, dict):
      for key, child in node.items():
        walk(f'{name}/{key}', child)
    elif node is not None:
      found[name] = np.asarray(node).tobytes()

  walk('', tree)
  return found


def row(summary: dict, name: str = 'evolved') -> dict:
  """The row of the table with a name."""
  return next(row for row in summary['rows'] if row['name'] == name)
