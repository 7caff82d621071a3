"""The notebooks and the Python of the README run as they stand."""

import json
import re

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


def test_the_own_fitness_of_the_readme_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  text = (runs.ROOT / 'README.md').read_text()
  (code,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  exec(code, {})
  assert len(capsys.readouterr().out.splitlines()) == 6
  assert (tmp_path / 'best_adapter' / 'adapter_config.json').is_file()
