"""How prompts are packed into queues."""

import jax
import numpy as np
import pytest

from evojax_llm.engine.queues import Prompt
from evojax_llm.engine.queues import common_prefix
from evojax_llm.engine.queues import pack_queues
from evojax_llm.population import sharding


def pack(prompts, slots=8, rows=4, join=False):
  whole = sharding.replicated(sharding.population_mesh(jax.devices()[:1]))
  return pack_queues(
    prompts, lambda *_: slots, lambda *_: rows, whole, pad_id=9, join=join
  )


def read(queue):
  """Each prompt's ids and first position, as a slot would read them."""
  tokens = np.asarray(queue.inputs['tokens'])
  positions = np.asarray(queue.inputs['positions'])
  before = []
  if queue.prefix is not None:
    at = np.asarray(queue.prefix['positions'][0])
    before = np.asarray(queue.prefix['tokens'][0])[at >= 0].tolist()
    assert at[at >= 0].tolist() == list(range(len(before)))
  for row, at, owner in zip(tokens, positions, queue.owner, strict=True):
    own = row[at >= 0].tolist()
    assert at[-len(own) :].tolist() == [
      len(before) + i for i in range(len(own))
    ]
    assert (at[: -len(own)] == -1).all()
    yield int(owner), tuple(before + own)


def test_every_prompt_stands_in_one_queue():
  rng = np.random.default_rng(0)
  prompts = [
    Prompt(tuple(rng.integers(0, 9, n).tolist()), limit=int(rng.integers(1, 9)))
    for n in rng.integers(1, 300, 200)
  ]
  queues = pack(prompts)
  found = dict(pair for queue in queues for pair in read(queue))
  assert found == {i: prompt.ids for i, prompt in enumerate(prompts)}
  assert len({queue.inputs['tokens'].shape[1] for queue in queues}) <= 4
  for queue in queues:
    limits = np.asarray(queue.inputs['limits'])
    assert limits.tolist() == [prompts[i].limit for i in queue.owner]
    assert (np.diff(limits) <= 0).all() and limits[0] == queue.new
    assert queue.refill <= queue.slots <= len(queue.owner)
    assert queue.columns >= queue.inputs['tokens'].shape[1] + queue.new


def test_a_common_beginning_is_read_once():
  start = tuple(range(20))
  prompts = [Prompt((*start, *range(30, 31 + n)), 3) for n in range(5)]
  prompts += [Prompt(tuple(range(n + 1)), 3, group=1) for n in range(30)]
  shared, *others = pack(prompts)
  # 30 follows in all of them, but each keeps a token of its own.
  assert shared.prefix_tokens == 20
  assert shared.prompt_tokens == 1 + 2 + 3 + 4 + 5
  assert all(queue.prefix is None for queue in others)
  found = dict(pair for queue in (shared, *others) for pair in read(queue))
  assert found == {i: prompt.ids for i, prompt in enumerate(prompts)}


@pytest.mark.parametrize(
  'longer, slots, queues',
  [(60, 40, 1), (60, 39, 2), (200, 40, 2)],
  ids=['together', 'too few slots', 'too much padding'],
)
def test_buckets_go_together_where_all_prompts_find_slots(
  longer, slots, queues
):
  prompts = [Prompt((1,) * n, 3) for n in [40] * 20 + [longer] * 20]
  assert len(pack(prompts, slots)) == 2
  made = pack(prompts, slots, join=True)
  assert len(made) == queues
  found = dict(pair for queue in made for pair in read(queue))
  assert found == {i: prompt.ids for i, prompt in enumerate(prompts)}


def test_common_prefix():
  assert common_prefix([tuple(range(40))]) == 0
  assert common_prefix([tuple(range(40)), tuple(range(40))]) == 39
  assert common_prefix([tuple(range(40)), (*range(17), 1)]) == 17
  assert common_prefix([tuple(range(40)), (*range(15), 1)]) == 0


def test_many_prompts_are_cut_into_queues_of_one_shape():
  queues = pack([Prompt((1, 2), 1)] * 10_000)
  assert sum(len(queue.owner) for queue in queues) == 10_000
  assert len(queues) == 3 and len({q.slots for q in queues}) == 1


@pytest.mark.parametrize(
  ('count', 'most', 'rows', 'slots', 'refill'),
  [
    (100, 64, 64, 50, 13),  # two rounds of 50, not of 64 and 36.
    (100, 256, 64, 100, 50),
    (7, 256, 64, 7, 7),
    (1000, 256, 64, 250, 63),
    (65, 64, 64, 33, 9),
  ],
)
def test_rounds_are_even(count, most, rows, slots, refill):
  [queue] = pack([Prompt((1, 2), 1)] * count, slots=most, rows=rows)
  assert (queue.slots, queue.refill) == (slots, refill)


@pytest.mark.parametrize('prompt', [Prompt((), 3), Prompt((1,), 0)])
def test_what_cannot_be_continued_is_refused(prompt):
  with pytest.raises(ValueError, match='prompt 1'):
    pack([Prompt((1,), 1), prompt])
