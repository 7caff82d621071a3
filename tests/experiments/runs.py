"""A tiny problem for the evolve program, and what two runs must share."""

import json
import pathlib
import string

import numpy as np

from evojax_llm.checkpoint import Checkpoints


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


def result(folder: pathlib.Path) -> dict:
  """All of a finished run but what the clock says."""
  summary = json.loads((folder / 'summary.json').read_text())
  del summary['seconds']
  metrics = [
    json.loads(line)
    for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ]
  for row in metrics:
    del row['seconds'], row['time']
  return {
    'summary': summary,
    'metrics': metrics,
    'members': (folder / 'members.jsonl').read_text(),
    'baselines': (folder / 'baselines.json').read_text(),
    'best': (folder / 'best' / 'adapter_model.safetensors').read_bytes(),
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
