"""Writes mergekit.npz, what mergekit makes of the random merges.

EVOJAX_LLM_MERGEKIT=.../bin/python python -m tests.golden.make_mergekit
"""

import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np

from tests.operators.merges import peer_cases

FILE = pathlib.Path(__file__).parent / 'mergekit.npz'
PROGRAM = (
  pathlib.Path(__file__).resolve().parents[2] / 'third_party/mergekit/merge.py'
)


def run(python: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
  """What mergekit in the environment of `python` makes of the cases."""
  tensors = peer_cases.tensors()
  np.savez(folder / 'tensors.npz', **tensors, **peer_cases.masks(tensors))
  (folder / 'cases.json').write_text(json.dumps({'cases': peer_cases.cases()}))
  done = subprocess.run(
    [python, PROGRAM, folder], capture_output=True, text=True
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-3000:])
  with np.load(folder / 'results.npz') as file:
    return dict(file)


def main() -> None:
  """Runs mergekit and writes the file."""
  with tempfile.TemporaryDirectory() as folder:
    python = os.environ['EVOJAX_LLM_MERGEKIT']
    np.savez_compressed(FILE, **run(python, pathlib.Path(folder)))


if __name__ == '__main__':
  main()
