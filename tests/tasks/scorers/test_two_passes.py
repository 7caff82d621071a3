"""AbstainQA: the second question is about what was answered to the first."""

import pytest

from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.prompts import encode_items
from evojax_llm.tasks.prompts import encode_passes
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.scorers.choice_text import AbstainQA
from evojax_llm.tasks.task import Task
from tests import tiny
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import letter_item

ITEM = letter_item('B', 3)
# A, B, C; then True and False about each.
RIGHT = (-3.0, -1.0, -2.0)
TRUE, FALSE = (-1.0, -2.0), (-2.0, -1.0)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tiny.write_tokenizer(folder)
  return Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
  ('values', 'prediction', 'value'),
  [
    (RIGHT + FALSE + TRUE + FALSE, 'B', 1),
    # What is thought of the other options does not matter.
    (RIGHT + TRUE + FALSE + TRUE, None, 0),
    ((-1.0, -3.0, -2.0) + TRUE + FALSE + FALSE, 'A', -1),
    ((-1.0, -3.0, -2.0) + FALSE + TRUE + TRUE, None, 0),
    ((float('nan'), -3.0, -2.0) + TRUE + TRUE + TRUE, None, 0),
  ],
)
def test_by_likelihood(values, prediction, value):
  verdict = AbstainQA().score(ITEM, Answer(loglik=values))
  assert (verdict.prediction, verdict.value) == (prediction, value)


@pytest.mark.parametrize(
  ('parse', 'texts', 'prediction', 'value'),
  [
    ('strict', ('B', 'x', 'True.', 'x'), 'B', 1),
    ('strict', ('B', 'True', 'I say FALSE', 'True'), None, 0),
    ('strict', ('(C)', 'false', 'false', 'true'), 'C', -1),
    ('strict', ('who knows', 'true', 'true', 'true'), None, 0),
    # The first letter that occurs, be it in a word.
    ('model_swarms', ('A cat', 'true', 'true', 'true'), 'A', -1),
  ],
)
def test_by_text(parse, texts, prediction, value):
  scorer = AbstainQA(by='text', parse=parse)
  assert judge(scorer, ITEM, *texts) == (prediction, value)


def test_effective_reliability_is_a_mean():
  scorer = AbstainQA()
  texts = [RIGHT + TRUE * 3, RIGHT + FALSE * 3, (-1.0, -3.0, -2.0) + TRUE * 3]
  verdicts = [scorer.score(ITEM, Answer(loglik=v)) for v in texts]
  verdicts.append(verdicts[0])
  assert scorer.aggregate([ITEM] * 4, Verdicts.of(verdicts)) == 0.25
  assert scorer.metric == 'effective_reliability' and not scorer.binary
  assert len(scorer.labels(ITEM, 9)) == 9


@pytest.mark.parametrize('chat', [False, True])
def test_every_option_is_proposed_once(tokenizer, chat):
  task = Task('t', 'abstain_qa', (ITEM, ITEM))
  passes = encode_passes(task, ITEM, tokenizer, chat)
  assert [len(p.options) for p in passes] == [3, 2, 2, 2]
  for key, entry in zip('ABC', passes[1:], strict=True):
    text = tokenizer.decode(entry.prompt)
    assert f'Proposed answer: {key}: text {key.lower()}' in text
    said = [tokenizer.decode(option).strip() for option in entry.options]
    assert said == ['True', 'False']
  assert len(encode_items(task, task.dev, tokenizer, chat)) == 8
  by_text = Task('t', 'abstain_qa', (ITEM,), options=(('by', 'text'),))
  entries = encode_passes(by_text, ITEM, tokenizer, chat)
  assert [entry.options for entry in entries] == [None] * 4
