"""The engine against a loop over members and items, one at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from evojax_llm.engine import batches
from evojax_llm.engine import decoder
from evojax_llm.engine import prefix_tree
from evojax_llm.engine.collectives import collectives
from evojax_llm.models import expression
from evojax_llm.models.transformer import Transformer
from evojax_llm.tasks.task import Format
from tests.fitness import setting
from tests.fitness.setting import MEMBERS
from tests.fitness.setting import Letters
from tests.fitness.setting import make
from tests.fitness.setting import raw


@pytest.fixture(scope='module')
def config():
  return setting.tiny_config()


@pytest.fixture(scope='module')
def params():
  return setting.tiny_params()


@pytest.fixture(scope='module')
def space():
  return setting.tiny_space()


@pytest.fixture(scope='module')
def population():
  return setting.population_of(MEMBERS)


@pytest.fixture(scope='module')
def tasks():
  return setting.tiny_tasks()


def one_by_one(config, params, member, evaluator):
  """Log-likelihoods and greedy tokens of a member, one row at a time."""
  model = Transformer(config)
  folded = {'params': expression.fold(params, member)}

  @jax.jit
  def apply(tokens, positions):
    hidden, _ = model.apply(folded, tokens, positions)
    return model.apply(folded, hidden, method='unembed')

  def logits(ids):
    tokens, positions = np.zeros((2, 1, 32), np.int32)
    tokens[0, : len(ids)] = ids
    positions[0] = np.where(np.arange(32) < len(ids), np.arange(32), -1)
    return np.asarray(apply(tokens, positions))[0, : len(ids)]

  (choice, exact), _ = evaluator._encoded('dev', 128)
  values, texts = [], []
  for item in choice:
    per_option = []
    for option in item.options:
      row = np.array([*item.prompt, *option])
      logp = np.asarray(jax.nn.log_softmax(logits(row)))
      at = np.arange(len(item.prompt) - 1, len(row) - 1)
      per_option.append(float(logp[at, row[at + 1]].sum()))
    values.append(per_option)
  for item in exact:
    ids = list(item.prompt)
    for _ in range(item.max_new_tokens):
      token = int(logits(ids)[-1].argmax())
      if token in Letters.stop_ids:
        break
      ids.append(token)
    texts.append(Letters().decode(ids[len(item.prompt) :]))
  return np.array(values), texts


@pytest.mark.parametrize('form', ['batched', 'folded'])
def test_agrees_with_one_member_and_item_at_a_time(
  space, config, params, population, tasks, form
):
  made = {}
  evaluator = make(tasks, form=form, prompts_per_batch=4)
  _spy_on_texts(evaluator, made)
  scores = evaluator.evaluate(space, population)
  assert scores.fitness.shape == (MEMBERS,)
  for m in range(MEMBERS):
    member = jax.tree.map(lambda leaf: leaf[m], population)  # noqa: B023
    values, texts = one_by_one(config, params, member, evaluator)
    found = np.array(
      [list(v.values()) for v in scores.tasks[0].loglikelihoods[m]]
    )
    np.testing.assert_allclose(found, values, atol=2e-4)
    assert [made[m, i] for i in range(len(texts))] == texts
  np.testing.assert_allclose(
    scores.fitness, scores.task_scores.mean(axis=1), rtol=1e-6
  )


def _spy_on_texts(evaluator, made):
  score = evaluator._scorer.score

  def spy(split, answers):
    for m, rows in enumerate(answers.generated):
      for i, ids in enumerate(rows):
        made[m, i] = Letters().decode(ids)
    return score(split, answers)

  evaluator._scorer.score = spy


@pytest.mark.parametrize('form', ['batched', 'folded'])
def test_result_depends_neither_on_neighbours_nor_on_grouping(
  space, population, tasks, form
):
  whole = make(tasks, form=form)
  values, predictions = raw(whole.evaluate(space, population))
  values = values.reshape(MEMBERS, -1, 3)
  order = np.array([3, 0, 4])
  few = make(tasks, form=form, members_per_group=2)
  some, said = raw(few.evaluate(space, population, order))
  np.testing.assert_allclose(some.reshape(3, -1, 3), values[order], atol=1e-5)
  assert said == [predictions[m] for m in order]


def test_devices_share_the_members_and_say_nothing(space, population, tasks):
  alone = make(tasks).evaluate(space, population)
  for form in ('batched', 'folded'):
    evaluator = make(tasks, form=form, devices=jax.devices())
    spread = evaluator.evaluate(space, population)
    np.testing.assert_allclose(raw(spread)[0], raw(alone)[0], atol=1e-4)
    assert raw(spread)[1] == raw(alone)[1]
    seen = evaluator.runtime.programs
    assert any('likelihood' in name for name, _ in seen)
    assert any('advance' in name for name, _ in seen)
    for name, program in seen:
      assert not collectives(program), name


def test_nothing_compiles_twice(space, population, tasks):
  evaluator = make(tasks)
  evaluator.evaluate(space, population, [0, 1, 2])
  compiled = evaluator.ledger.programs
  evaluator.evaluate(space, population, [4])
  evaluator.evaluate(space, population)
  assert evaluator.ledger.programs == compiled


@pytest.mark.parametrize('form', ['batched', 'folded'])
def test_member_with_nan_fails_alone(space, population, tasks, form):
  evaluator = make(tasks, form=form)
  good = evaluator.evaluate(space, population)
  broken = jax.tree.map(np.copy, population)
  broken.factors['layers']['mlp']['up_proj']['b'][2] = np.nan
  scores = evaluator.evaluate(space, broken)
  assert np.isnan(scores.fitness[2]) and scores.reasons[2]
  others = [0, 1, 3, 4]
  np.testing.assert_array_equal(scores.fitness[others], good.fitness[others])
  assert [scores.reasons[m] for m in others] == [None] * 4


def test_weights_of_tasks(space, population, tasks):
  scores = make(tasks, weights=[3, 1]).evaluate(space, population)
  np.testing.assert_allclose(
    scores.fitness, scores.task_scores @ np.array([0.75, 0.25]), rtol=1e-6
  )
  with pytest.raises(ValueError, match='expected 2 numbers'):
    make(tasks, weights=[1.0])


def test_what_cannot_be_is_refused(space, population, tasks):
  with pytest.raises(ValueError, match='member 9 of a population of 5'):
    make(tasks).evaluate(space, population, members=[0, 9])
  with pytest.raises(ValueError, match="task 'choice'; expected a list"):
    make(tasks[0])
  counts = [len(items) for items in make(tasks, limits=3).items('dev')]
  assert counts == [3, 3], 'one number stands for both splits and all tasks'


def test_draws_of_items_are_normalised_apart(tasks):
  first = make(tasks, objective='z_score', limits={'dev': 3}).redraw(0)
  other = first.redraw(1)
  first.normalise_by(np.array([[0.1, 0.2], [0.3, 0.6]]))
  assert other.objective.needs_experts
  other.normalise_by(np.array([[0.5, 0.5], [0.9, 0.7]]))
  one, two = (e.objective(np.array([[0.3, 0.6]]))[0] for e in (first, other))
  assert one == pytest.approx(1.0) and two == pytest.approx(-1.0)
  # Within a run the experts' scores of the beginning stay.
  assert first.redraw(2).objective is first.objective


def test_progress_ends_at_one(space, population, tasks):
  evaluator = make(tasks, members_per_group=2)
  for members in (None, [0]):  # The one fills no group.
    seen = []
    evaluator.evaluate(space, population, members, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert len([share for share in seen if share < 1]) > 1


def test_long_answers_are_told_of_and_are_the_same(
  space, population, tasks, monkeypatch
):
  task = dataclasses.replace(tasks[1], format=Format(max_new_tokens=40))

  def said():
    seen = []
    scores = make([task], prompts_per_batch=4).evaluate(
      space, population, [0, 1], progress=seen.append
    )
    assert seen == sorted(seen) and seen[-1] == 1.0
    return scores.tasks[0].predictions, len(seen)

  monkeypatch.setattr(decoder, '_SHORT', 1 << 20)
  whole, few = said()
  monkeypatch.setattr(decoder, '_SHORT', 10)
  monkeypatch.setattr(decoder, '_MOST_STEPS', {False: 4})
  watched, many = said()
  assert watched == whole and many > few + 10


def test_tokens_are_counted(space, population, tasks):
  evaluator = make(tasks)
  evaluator.evaluate(space, population, [1, 2])
  (choice, exact), _ = evaluator._encoded('dev', 128)
  exact = sum(len(e.prompt) for e in exact)
  # Prompts are read once, and what all of them begin with once a row.
  pairs = [[(e.prompt, option) for option in e.options] for e in choice]
  least = len(prefix_tree.lay_out(sum(pairs, []), range(21)).tokens)
  read = evaluator.ledger.prompt_tokens
  assert read % 2 == 0
  assert least <= read // 2 - exact < sum(map(prefix_tree.size, pairs))
  assert evaluator.ledger.members == 2


def test_single_token_options_share_one_row():
  packed = batches.pack_likelihood(
    [((1, 5, 6), (7,)), ((1, 5, 6), (8,)), ((1, 5, 6), (7, 9))],
    lambda length: 64,
  )
  assert len(packed) == 1
  assert packed[0].tokens.shape == (1, 1, 8)
  assert (packed[0].positions[0, 0] == [0, 1, 2, 3, -1, -1, -1, -1]).all()
  assert sorted(packed[0].owner[packed[0].owner >= 0]) == [0, 1, 2, 2]


def test_buckets_are_few_and_hold_every_row():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 700, 500)
  tops = batches.length_buckets(lengths)
  assert len(tops) <= 4 and tops[-1] >= lengths.max()
  buckets = batches.by_bucket(lengths)
  assert sorted(row for _, rows in buckets for row in rows) == list(range(500))
  assert all(lengths[rows].max() <= top for top, rows in buckets)


def test_long_vocabulary_is_read_in_chunks(
  space, population, tasks, monkeypatch
):
  from evojax_llm.engine import unembedding

  whole = make(tasks[:1]).evaluate(space, population)
  monkeypatch.setattr(unembedding, 'LOGITS_AT_ONCE', 400)
  for form in ('batched', 'folded'):
    parts = make(tasks[:1], form=form).evaluate(space, population)
    np.testing.assert_allclose(
      [list(v.values()) for v in parts.tasks[0].loglikelihoods[1]],
      [list(v.values()) for v in whole.tasks[0].loglikelihoods[1]],
      atol=1e-5,
    )
