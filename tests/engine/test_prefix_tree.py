"""Texts that share a row are read as if each had a row of its own."""

import functools
import types

import jax
import numpy as np
import pytest

from evojax_llm.engine import batches
from evojax_llm.engine import plan as planning
from evojax_llm.engine import prefix_tree
from evojax_llm.models import hub
from evojax_llm.models.transformer import Transformer
from experiments.benchmarks import accelerator_model
from tests.models import cases
from tests.models import forward

VOCAB = 61


def texts(seed: int, items: int, shared: int = 3):
  """Prompts that begin alike, with options that begin alike here and there."""
  rng = np.random.default_rng(seed)
  start = tuple(rng.integers(3, VOCAB, shared).tolist())
  made = []
  for _ in range(items):
    prompt = start + tuple(rng.integers(3, VOCAB, rng.integers(1, 9)).tolist())
    for _ in range(rng.integers(1, 5)):
      # Two letters only, so that options share tokens and contain each other.
      option = tuple(rng.integers(3, 5, rng.integers(1, 6)).tolist())
      made.append((prompt, option))
  return made


def seen(row: prefix_tree.Row, column: int) -> list[int]:
  """Tokens that the query in a column sees, in order, itself included."""
  return [row.tokens[c] for c in range(column + 1) if column < row.until[c]]


@pytest.mark.parametrize('seed', range(5))
def test_a_token_sees_its_own_text_and_nothing_else(seed):
  made = texts(seed, 6)
  row = prefix_tree.lay_out(made, range(len(made)))
  found = {owner: [] for owner in range(len(made))}
  for column, target, owner in row.reads:
    found[owner].append((tuple(seen(row, column)), target))
  for owner, (prompt, option) in enumerate(made):
    assert found[owner] == [
      ((*prompt, *option[:i]), token) for i, token in enumerate(option)
    ]
  for column, position in enumerate(row.positions):
    assert len(seen(row, column)) == position + 1
  # Nothing stands twice.
  paths = {tuple(seen(row, c)) for c in range(len(row.tokens))}
  assert len(paths) == len(row.tokens)


def test_size_is_what_is_laid_out():
  options = [(7,), (7, 8), (7, 8, 9), (8, 9), (7, 9, 9)]
  made = [((1, 5, 6), option) for option in options]
  row = prefix_tree.lay_out(made, range(5))
  assert len(row.tokens) == prefix_tree.size(made) == 3 + 4


def test_long_texts_need_no_deep_stack():
  row = prefix_tree.lay_out([(tuple(range(20_000)), (1, 2))], [0])
  assert row.positions == list(range(20_001))


def test_rows_are_full_and_hold_everything_once():
  rng = np.random.default_rng(0)
  sizes = rng.integers(14, 40, 10_000).tolist()
  rows = prefix_tree.fill(sizes, 64, shared=10)
  assert sorted(i for row in rows for i in row) == list(range(10_000))
  used = [10 + sum(sizes[i] - 10 for i in row) for row in rows]
  assert max(used) <= 64 and np.mean(used) > 0.95 * 64
  assert prefix_tree.fill([64, 64], 64) == [[0], [1]]


def test_what_a_task_begins_with_is_read_once_a_row():
  prompt = tuple(range(3, 53))
  made = [((*prompt, 100 + i), (7, 8)) for i in range(60)]
  packed = batches.pack_likelihood(made, lambda length: 64)
  # 50 shared columns and two an item; rows of 150 hold 50 items.
  assert [batch.tokens.shape for batch in packed] == [(1, 2, 152)]
  alone = batches.pack_likelihood(made, lambda length: 64, families=range(60))
  assert sum((b.positions >= 0).sum() for b in alone) == 60 * 52
  owners = np.concatenate([batch.owner for batch in packed])
  assert sorted(owners[owners >= 0]) == sorted([*range(60)] * 2)


def test_refuses_what_has_nothing_to_read():
  with pytest.raises(ValueError, match='continuation 1 has 0 prompt'):
    batches.pack_likelihood([((1,), (2,)), ((), (2,))], lambda length: 8)


@pytest.mark.parametrize(
  'platform, shape, columns',
  [
    ('cpu', 'tiny', batches.ATTENTION_DOUBLES_AT),
    ('cpu', 'gemma-2-2b', 9051),
    ('gpu', 'tiny', batches.ATTENTION_DOUBLES_AT),  # Never below.
    ('gpu', 'gemma-2-2b', 4866),
  ],
)
def test_the_plan_knows_how_long_rows_are_cheap(platform, shape, columns):
  plan = planning.make_plan(
    accelerator_model.model_config(shape, None),
    members=2, base_bytes=1 << 20, member_bytes=64, budget=1 << 33,
    lengths=[(8, 0)], device=types.SimpleNamespace(platform=platform),
  )  # fmt: skip
  assert plan.attention_doubles_at == columns


def test_rows_are_longer_and_fuller_where_attention_is_cheap():
  sizes = np.random.default_rng(0).lognormal(4.7, 0.5, 100).astype(int)
  made = [
    ((1, *(100 * i + j for j in range(n))), (o,))
    for i, n in enumerate(sizes)
    for o in (3, 4)
  ]

  def filled(**options):
    packed = batches.pack_likelihood(made, lambda length: 64, **options)
    read = np.concatenate([batch.owner.ravel() for batch in packed])
    assert sorted(read[read >= 0]) == list(range(len(made)))
    longest = max(batch.tokens.shape[2] for batch in packed)
    assert longest <= batches.longest_row(sizes + 1, 1) + 8
    valid = sum((batch.positions >= 0).sum() for batch in packed)
    return len(packed), valid / sum(batch.tokens.size for batch in packed)

  (programs, share), (fewer, more) = (
    filled(),
    filled(attention_doubles_at=4850),
  )
  assert fewer <= programs and share < 0.9 < 0.95 < more


@functools.partial(jax.jit, static_argnames='config')
def logits_of(config, params, tokens, positions, until):
  model = Transformer(config)
  hidden, _ = model.apply({'params': params}, tokens, positions, None, until)
  return model.apply({'params': params}, hidden, method='unembed')


@pytest.mark.parametrize('case', cases.CASES, ids=str)
def test_every_family_reads_forests_as_single_texts(case, tmp_path):
  config, params = hub.load_checkpoint(cases.write_model(tmp_path, case))
  made = texts(case.seed, 5)
  tokens = np.zeros((len(made), 20), np.int32)
  for row, (prompt, option) in enumerate(made):
    tokens[row, : len(prompt + option)] = [*prompt, *option]
  valid = np.array([[i < len(p + o) for i in range(20)] for p, o in made])
  plain = forward.logits(config, params, tokens, valid)
  (packed,) = batches.pack_likelihood(made, lambda length: 4)
  forest = logits_of(
    config, params, packed.tokens[0], packed.positions[0], packed.until[0]
  )
  assert np.isfinite(forest).all()
  row, column, target, owners = packed.reads(0)
  index = np.zeros(len(row), np.int32)
  for owner in range(len(made)):
    prompt, option = made[owner]
    own = np.flatnonzero(owners == owner)
    assert target[own].tolist() == list(option)
    index[own] = len(prompt) - 1 + np.arange(len(option))
  np.testing.assert_allclose(
    forest[row, column],
    plain[owners, index],
    atol=3e-5,
    rtol=1e-5,
  )


def test_rows_of_single_texts_are_plain_causal_rows():
  made = texts(3, 4)
  for batch in batches.pack_likelihood(made, lambda length: 4, share=False):
    real = batch.positions >= 0
    lengths = real.sum(-1, keepdims=True)
    assert (batch.until == np.where(real, lengths, 0)).all()
    columns = np.arange(real.shape[-1])
    assert (batch.positions == np.where(real, columns, -1)).all()


def test_families_of_a_bucket_fill_its_rows():
  def item(family, number, length):
    return (tuple([family, number] + [7] * (length - 2)), (8, 9))

  made = [item(1, i, 230) for i in range(20)]
  made += [item(2, i, 110) for i in range(10)]
  families = [0] * 20 + [1] * 10
  (call,) = batches.pack_likelihood(
    made, lambda length: 64, families=families, attention_doubles_at=4850
  )
  # Two items of 111 columns stand in a row of the 231 that the others have.
  assert call.tokens.shape[2] == 232
  assert ((call.positions >= 0).sum(-1) > 0).sum() == 25
  assert call.count == len(set(call.kept.tolist())) == 60


def test_padded_reads_of_a_call_are_not_counted():
  made = [((1, i), (8,) * (1 + i % 3)) for i in range(30)]
  calls = batches.pack_likelihood(made, lambda length: 1, families=range(30))
  assert len(calls) > 1
  assert len({len(call.kept) for call in calls}) == 1
  for call in calls:
    used = call.source[call.owner >= 0]
    assert call.count == used.max() + 1
  assert sum(call.count for call in calls) == sum(len(o) for _, o in made)
