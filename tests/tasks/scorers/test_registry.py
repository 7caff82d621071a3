"""What holds for every scorer, and that the README says what there is."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from evojax_llm.fitness.objectives import OBJECTIVES
from evojax_llm.tasks import format as format_lib
from evojax_llm.tasks.scorers import registry
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError

README = pathlib.Path(registry.__file__).parents[1] / 'README.md'
# What has no default.
NEEDED = {
  'reward': {'folder': 'nowhere'},
  'judge': {'function': 'evojax_llm.tasks.overlap:normalise'},
}
# These ask a model or another process.
COSTLY = ('reward', 'judge')


def make(kind):
  return registry.make_scorer(kind, NEEDED.get(kind, {}))


def rows(section):
  """Cells of the table in a section of the README."""
  text = README.read_text().split(f'## {section}\n')[1].split('\n## ')[0]
  lines = [line for line in text.splitlines() if line.startswith('| `')]
  return [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
          for line in lines]  # fmt: skip


def test_the_readme_lists_every_scorer_and_its_options():
  listed = {row[0].strip('`'): row for row in rows('Scorers')}
  assert list(listed) == list(registry.KINDS)
  for kind, (_, reads, _, options) in listed.items():
    assert make(kind).reads in reads
    known = registry.option_names(kind)
    named = set(re.findall(r'`(\w+)`', options))
    own = {f.name for f in dataclasses.fields(registry.SCORERS[kind])}
    assert named <= set(known), kind
    # What is not named is shared with the row before (`extract`, `level`).
    assert own <= named | {'tokenize', 'extract', 'level'}, kind
    for words in re.findall(r'`(\w+)`: ([\w, ()]+)', options):
      if words[0] in registry.SCORERS[kind].words:
        values = re.sub(r'\([^)]*\)', '', words[1]).replace(' ', '')
        assert sorted(values.split(',')) == sorted(
          registry.SCORERS[kind].words[words[0]]
        ), (kind, words[0])


def test_the_readme_lists_every_objective_and_format_key():
  assert [row[0].strip('`') for row in rows('Objectives')] == list(OBJECTIVES)
  named = {name for row in rows('Format') for name in row[0].split(', ')}
  named = {name.strip('`') for name in named}
  assert named == {*format_lib.PROMPT_KEYS, *registry.GATE_OPTIONS}


@pytest.mark.parametrize('kind', registry.KINDS)
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
  with pytest.raises(TaskError, match='norm: expected none or characters'):
    registry.scorer_of(
      Task('t', 'multiple_choice', (), options=(('norm', 'length'),))
    )
