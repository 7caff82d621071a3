"""The notebooks run as they stand."""

import json

import pytest

from tests.experiments import runs

NOTEBOOKS = sorted((runs.ROOT / 'experiments' / 'tutorials').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
  notebook = json.loads(path.read_text())
  code = [c for c in notebook['cells'] if c['cell_type'] == 'code']
  assert code and not any(cell['outputs'] for cell in code)
  names = {}
  for cell in code:
    exec(''.join(cell['source']), names)
