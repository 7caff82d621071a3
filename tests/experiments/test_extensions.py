"""One of each from a package that is not this one, named in a configuration."""

import json

import pytest

from tests.experiments import runs

PACKAGE = '''
"""A strategy, a merge, a space, a scorer, an objective and a task."""

import dataclasses

import numpy as np

from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.operators import Merge
from evojax_llm.strategies.genome.algorithm import Genome
from evojax_llm.tasks.python_task import PythonTask
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict


class Search(Genome):
  """GENOME with a name of its own."""


def _middle(parents):
  """The mean of two parents."""
  return (0.5 * (parents[0] + parents[1])).astype(parents.dtype)


MIDDLE = Merge('middle', _middle, 'nobody else', (), parents=(2, 2))


class Space(AdapterSpace):
  """Adapters."""


@dataclasses.dataclass(frozen=True)
class Vowels(Scorer):
  """The share of vowels."""

  metric = 'vowels'
  reads = 'text'
  binary = False

  def score(self, item, answer):
    text = answer.texts[0]
    return Verdict(text, sum(c in 'aeiou' for c in text) / max(1, len(text)))


def best_task(scores, objective):
  """The best task."""
  return np.max(scores, axis=1)


class Words(PythonTask):
  """Ten words to go on from."""

  format = {'prompt': '{question}', 'max_new_tokens': 2}

  def dev(self):
    return [{'question': f'word {i}', 'answer': 'x'} for i in range(6)]

  def test(self):
    return [{'question': f'other {i}', 'answer': 'x'} for i in range(4)]

  def score(self, item, text):
    return float(len(text))
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
  """The name of a module outside of the repository."""
  folder = tmp_path / 'theirs'
  folder.mkdir()
  (folder / '__init__.py').touch()
  (folder / 'parts.py').write_text(PACKAGE)
  monkeypatch.syspath_prepend(str(tmp_path))
  return 'theirs.parts'


def test_a_run_of_nothing_but_extensions(settings, package, tmp_path):
  task = {
    'name': 'vowels',
    'dev': [{'question': f'say {i}', 'answer': 'a'} for i in range(6)],
    'test': [{'question': f'tell {i}', 'answer': 'a'} for i in range(4)],
    'format': {'kind': f'{package}:Vowels', 'max_new_tokens': 2},
  }
  path = tmp_path / 'vowels.json'
  path.write_text(json.dumps(task))
  kept = [flag for flag in settings if not flag.startswith('--config.tasks')]
  done = runs.evolve(
    kept,
    tmp_path / 'run',
    f'--config.tasks={path},{package}:Words',
    '--config.allow_code',
    f'--config.space={package}:Space',
    f'--config.objective={package}:best_task',
    f'--config.strategy.name={package}:Search',
    f'--config.strategy.options.merge={package}:MIDDLE',
    '--config.strategy.generations=2',
  )
  assert done is None
  summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
  tasks = runs.row(summary)['dev']['tasks']
  assert tasks['vowels']['metric'] == 'vowels' and 'words' in tasks


@pytest.mark.parametrize(
  'flag, what',
  [
    ('strategy.name', 'strategy'),
    ('space', 'space'),
    ('objective', 'objective'),
    ('strategy.options.merge', 'merge'),
  ],
)
def test_what_is_missing_is_said(
  settings, package, tmp_path, capsys, flag, what
):
  options = [f'--config.{flag}={package}:Nothing']
  assert runs.evolve(settings, tmp_path / 'run', *options) == 1
  said = capsys.readouterr().err
  assert (
    f"Got {what} '{package}:Nothing'" in said and "has no 'Nothing'" in said
  )
