"""Rewards of responses, and how Model Swarms mixes them with length."""

import numpy as np
import pytest

from evojax_llm.models import classifier
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.reward import MODES
from evojax_llm.tasks.scorers.reward import RewardModel
from evojax_llm.tasks.scorers.reward import mixed
from evojax_llm.tasks.task import TaskError
from tests.models.test_classifier import write_classifier
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import text_item


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(write_classifier(tmp_path_factory.mktemp('reward')))


def test_the_conversation_is_scored_at_its_end(folder):
  item = text_item('', question='tell me')
  _, value = judge(RewardModel(folder), item, 'the inn')
  tokenizer = Tokenizer.from_folder(folder)
  ids = tokenizer.encode(
    '<start_of_turn>user\ntell me<end_of_turn>\n'
    '<start_of_turn>model\nthe inn<end_of_turn>\n'
  )
  tokens = np.array([ids], np.int32)
  model = classifier.load_classifier(folder)
  expected = model.logits(tokens, np.arange(len(ids), dtype=np.int32)[None])
  assert value == pytest.approx(float(expected[0, 0]), abs=1e-5)
  _, plain = judge(RewardModel(folder, chat=False), item, ' the inn')
  ids = tokenizer.encode('tell me the inn')
  expected = model.logits(
    np.array([ids], np.int32), np.arange(len(ids), dtype=np.int32)[None]
  )
  assert plain == pytest.approx(float(expected[0, 0]), abs=1e-5)


def test_neighbours_and_batches_do_not_matter(folder):
  texts = ['x' * n for n in (1, 70, 3, 0, 20, 5, 90)]
  pairs = [(text_item('', question='q'), Answer((t,))) for t in texts]
  together = [v.value for v in RewardModel(folder).score_all(pairs)]
  alone = [
    judge(RewardModel(folder, rows=2), *p[:1], p[1].text)[1] for p in pairs
  ]
  np.testing.assert_allclose(together, alone, atol=1e-5)
  assert len(set(np.round(together, 4))) == len(texts)


def test_long_conversations_are_cut_and_told(folder, caplog):
  item = text_item('', question='q')
  value = judge(RewardModel(folder), item, 'ab ' * 400)[1]
  assert np.isfinite(value)
  assert '1 of 1 conversations are longer than the 256' in caplog.text


@pytest.mark.parametrize(
  ('mode', 'reward', 'tokens', 'value'),
  [
    ('plain', 7.0, 50, 7.0),
    ('default', -3.06, 50, 0.0),
    ('default', 2.656, 50, 1.0),
    ('default', 99.0, 50, 1.0),
    ('default', -0.202, 50, 0.5),
    # (105.5 - 10) / 191 is a half.
    ('verbose', 2.656, 10, 0.5),
    ('verbose', 2.656, 201, 1.0),
    ('concise', 2.656, 201, 0.5),
    ('concise', -3.06, 5, 0.5),
    ('reverse', 2.656, 50, 0.0),
    ('reverse', -3.06, 50, 1.0),
    ('reverse_as_published', 2.656, 50, -1.0),
    ('reverse_as_published', -3.06, 50, -0.5),
    ('reverse_as_published', -3.06, 0, 0.0),
  ],
)
def test_mixes_with_length(mode, reward, tokens, value):
  assert mixed(mode, reward, tokens, -3.06, 2.656) == pytest.approx(value)


def test_what_is_no_reward_stays_one():
  for mode in MODES:
    assert np.isnan(mixed(mode, float('nan'), 5, 0, 1))


def test_folders_that_cannot_be_are_refused(tmp_path):
  with pytest.raises(TaskError, match='name the folder'):
    RewardModel()
  with pytest.raises(TaskError, match='not below'):
    RewardModel('x', low=1.0, high=1.0)
  two = write_classifier(tmp_path, labels=2)
  with pytest.raises(TaskError, match='2 labels'):
    judge(RewardModel(str(two)), text_item(''), 'x')
