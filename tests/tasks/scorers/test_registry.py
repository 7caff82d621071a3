"""What holds for every scorer, and that the README says what there is."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from evojax_llm import pocket
from evojax_llm.fitness.objectives import OBJECTIVES
from evojax_llm.tasks import format as format_lib
from evojax_llm.tasks.scorers import registry
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task

README = pathlib.Path(registry.__file__).parents[1] / 'README.md'
# What has no default.
NEEDED = {
  'reward': {'folder': 'nowhere'},
  'judge': {'function': 'evojax_llm.tasks.task_files:find_overlap'},
}
# These ask a model or another process.
COSTLY = ('reward', 'judge')


def make(kind):
  return registry.make_scorer(kind, NEEDED.get(kind, {}))


def listed(section):
  """First cells of the table in a section of the README."""
  text = README.read_text().split(f'## {section}\n')[1].split('\n## ')[0]
  return re.findall(r'^\| (`[^|]*) \|', text, re.MULTILINE)


def test_the_readme_has_the_table_of_scorers():
  assert registry.table() in README.read_text()


def test_the_readme_lists_every_objective_and_format_key():
  assert [cell.strip('`') for cell in listed('Objectives')] == list(OBJECTIVES)
  named = {name for cell in listed('Format') for name in cell.split(', ')}
  named = {name.strip('`') for name in named}
  assert named == {*format_lib.PROMPT_KEYS, *registry.GATE_OPTIONS}


_LIGHT = """
import sys
from evojax_llm.tasks import prompts
from evojax_llm.tasks import task_files
from evojax_llm.tasks.scorers import registry

class Letters:
  bos_id = 1
  def encode(self, text, bos=True):
    return [1] * bos + [ord(c) for c in text]

for kind in registry.SCORERS:
  registry.scorer_class(kind)
task = task_files.load_task(sys.argv[1])
assert prompts.encode_items(task, task.items('dev'), Letters())
heavy = {'jax', 'flax', 'transformers', 'torch'} & set(sys.modules)
assert not heavy, heavy
"""


def test_tasks_are_read_and_encoded_without_jax():
  done = subprocess.run(
    [sys.executable, '-c', _LIGHT, pocket.task_file('max')],
    cwd=README.parents[2],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]


def test_the_scorer_of_the_readme_is_found_by_name(tmp_path):
  code = re.search(r'```python\n(import data.*?)```', README.read_text(), re.S)
  path = tmp_path / 'shortest.py'
  path.write_text('from __future__ import annotations\n' + code.group(1))
  rows = [{'question': 'q', 'answer': 'a'}]
  file = tmp_path / 'task.json'

  def load(**options):
    kind = {'kind': f'{path}:Shortest'}
    file.write_text(json.dumps({'dev': rows, 'format': kind | options}))
    return load_task(file, Rules(allow_code=True))

  task = load(most=2, language='ja')
  scorer = registry.scorer_of(task)
  assert (scorer.metric, scorer.most, task.format.max_new_tokens) == (
    'brevity', 2, 32,
  )  # fmt: skip
  scorer = registry.scorer_of(load())
  for text, value in (('one two three', 1.0), ('one two three four', 0.0)):
    assert scorer.score(task.dev[0], Answer((text,))).value == value
  first = load().fingerprint()
  path.write_text(path.read_text() + '# other')
  assert load().fingerprint() != first
  for options, words in (
    ({'most': 0}, "task.json, 'format': Got most 0; expected 1 or more"),
    ({'mots': 1}, "Did you mean 'most'"),
    ({'kind': f'{path}:Shorter'}, "'format.kind': .* Did you mean 'Shortest'"),
    ({'kind': 'json:loads'}, 'expected a class derived from'),
    ({'kind': ['a']}, 'expected one of multiple_choice'),
  ):
    with pytest.raises(TaskError, match=words):
      load(**options)


@pytest.mark.parametrize('kind', registry.SCORERS)
def test_every_scorer_keeps_the_rules(kind):
  scorer = make(kind)
  assert scorer.reads in ('options', 'text', 'gold')
  assert scorer == make(kind) and hash(scorer) == hash(make(kind))
  if kind in COSTLY:
    return
  choices = (('A', 'ein'), ('B', 'zwei'))
  item = Item('0', 'q', 'A', choices if scorer.choices else None)
  if kind == 'numeric_match':
    item = dataclasses.replace(item, answer='3')
  texts = ('', ' ', 'A', '3', '\\boxed{', 'é' * 9, '####', 'a\n' * 50)
  for text in texts if scorer.reads == 'text' else texts[:1]:
    answer = Answer((text,), (-1.0, -2.0, -1.0, -2.0, -3.0, -0.5), (1,) * 6)
    if scorer.reads != 'text' and kind != 'abstain_qa':
      answer = Answer((), answer.loglik[:2], (1, 1))
    verdict = scorer.score(item, answer)
    assert verdict == scorer.score(item, answer)
    assert np.isfinite(verdict.value)
    assert verdict.prediction is None or verdict.prediction.strip()
    if scorer.binary:
      assert verdict.value in (0.0, 1.0)
    if not text.strip() and scorer.reads == 'text':
      assert (verdict.prediction, verdict.value) == (None, 0.0)
    assert np.isfinite(scorer.aggregate([item], Verdicts.of([verdict])))


def test_unknown_kinds_and_options_are_refused():
  with pytest.raises(TaskError, match="kind 'guess'; expected one of multiple"):
    registry.scorer_of(Task('t', 'guess', ()))
  with pytest.raises(TaskError, match="Got norm 'length'; expected one of"):
    registry.scorer_of(
      Task('t', 'multiple_choice', (), options=(('norm', 'length'),))
    )
