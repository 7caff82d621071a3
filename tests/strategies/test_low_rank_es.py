import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import gates
from evojax_llm.genomes import seeded
from evojax_llm.operators import low_rank
from evojax_llm.population import keys
from evojax_llm.population import leaves
from evojax_llm.population import stack
from evojax_llm.strategies import low_rank_es
from evojax_llm.strategies import registry
from tests.genomes import experts
from tests.operators import layered
from tests.strategies import problems

P, M = problems.P, 12
NAMES = low_rank_es.OPERATORS


@functools.cache
def make(**options):
  strategy = low_rank_es.LowRankES(P, **{'members': M} | options)
  strategy.layers = leaves.LAYERS
  return strategy


def dense(made):
  return jax.tree.map(
    lambda node: (
      node.a @ node.b if isinstance(node, low_rank.Factors) else node
    ),
    made,
    is_leaf=lambda node: isinstance(node, low_rank.Factors),
  )


def noise(state, count, rank=1):
  """The noise of the first members of the next ask, formed."""
  ids = state.next_id + jnp.arange(count, dtype=jnp.int32)
  drawn = keys.keys_for(problems.KEY, state.generation, ids, 'low-rank noise')
  return jax.jit(
    jax.vmap(lambda k: dense(layered.factors(k, state.centre, rank)))
  )(drawn)


def scales(centre):
  return jax.tree.map(
    lambda x: np.sqrt(np.mean(np.square(x), axis=(1, 2), keepdims=True)),
    centre,
  )


def test_it_starts_at_the_best_of_the_initial_population():
  state = problems.start(make())
  best = int(np.argmax(problems.fitness(problems.population())))
  assert int(state.ids[0]) == best
  problems.assert_same(
    stack.take(state.population, 0), stack.take(problems.population(), best)
  )


@pytest.mark.parametrize('rank', (1, 2))
def test_members_are_the_centre_and_their_noise_in_mirrored_pairs(rank):
  strategy = make(rank=rank)
  state = problems.start(strategy)
  members, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  made = noise(state, M // 2, rank)
  proposal = jax.tree.map(np.asarray, asked.proposal)
  # It has not moved yet: the centre has been scored.
  assert (proposal.ids[:M] >= 0).all() and proposal.ids[M] == -1
  assert [NAMES[o] for o in proposal.operator[[0, M // 2]]] == list(NAMES[:2])
  for leaf, e, x, s in zip(
    *map(jax.tree.leaves, (members, made, state.centre, scales(state.centre))),
    strict=True,
  ):
    change = 0.3 * s * np.asarray(e)
    np.testing.assert_allclose(leaf[: M // 2], x + change, atol=1e-5)
    np.testing.assert_allclose(leaf[M // 2 : M], x - change, atol=1e-5)


@pytest.mark.parametrize('mirrored', (True, False))
@pytest.mark.parametrize('relative', (True, False))
def test_a_step_is_the_published_sum(mirrored, relative):
  strategy = make(
    mirrored=mirrored,
    relative_sigma=relative,
    shaping='z_score',
    optimizer='sgd',
    sigma=0.2,
    learning_rate=0.5,
  )
  params = strategy.default_params
  state = problems.start(strategy)
  made = jax.tree.map(np.asarray, noise(state, M))
  x = jax.tree.map(np.array, state.centre)
  members, asked = strategy.ask(problems.KEY, state, params)
  scores = problems.scores(members)
  after = strategy.tell(problems.KEY, members, scores, asked, params)
  f = np.asarray(scores.fitness[:M])
  w = (f - f.mean()) / f.std()
  if mirrored:
    half = M // 2
    made = jax.tree.map(lambda e: np.concatenate([e[:half], -e[:half]]), made)
  s = scales(x) if relative else jax.tree.map(np.ones_like, scales(x))
  for new, old, e, scale in zip(
    *map(jax.tree.leaves, (after.centre, x, made, s)), strict=True
  ):
    g = np.tensordot(w, e, 1) / (M * 0.2)
    np.testing.assert_allclose(new, old + 0.5 * scale * g, atol=1e-5)
  assert bool(after.centre_moved)


def test_the_centre_is_scored_where_it_has_moved():
  strategy = make()
  state = problems.start(strategy)
  seen = set(range(P))
  for members, fitness, before, after in problems.play(strategy, state, 4):
    new = before.proposal.ids[before.proposal.ids >= 0].tolist()
    assert len(set(new)) == len(new) and not seen & set(new)
    seen |= set(new)
    moved = int(before.generation) > 0
    assert (before.proposal.ids[M] >= 0) == moved
    if moved:
      assert int(after.ids[0]) == before.proposal.ids[M]
      np.testing.assert_allclose(after.fitness[0], fitness[M], rtol=1e-6)
      problems.assert_same(
        stack.take(after.population, 0), stack.take(members, M)
      )


@pytest.mark.parametrize('shaping', low_rank_es.SHAPINGS)
def test_where_all_are_equal_or_failed_the_centre_stays(shaping):
  strategy = make(shaping=shaping, optimizer='sgd')
  for value in (1.0, np.nan):
    state = problems.start(strategy)
    first = jax.tree.map(np.array, state.centre)
    for *_, before, after in problems.play(
      strategy, state, 3, score=lambda _, v=value: jnp.full(M + 1, v)
    ):
      assert before.proposal.ids[M] == -1
      problems.assert_same(after.centre, first)


def test_shapings():
  fitness = jnp.asarray([0.1, 0.5, 0.5, np.nan, 0.9, 0.3])

  def of(shaping, mirrored=False):
    return np.asarray(low_rank_es.shaped(fitness, shaping, mirrored))

  # Five live; two of them share the third and fourth place.
  np.testing.assert_allclose(
    of('centered_rank'), [-0.5, 0.125, 0.125, 0.0, 0.5, -0.25]
  )
  np.testing.assert_allclose(
    of('centered'), [-0.36, 0.04, 0.04, 0.0, 0.44, -0.16], atol=1e-6
  )
  alive = [0, 1, 2, 4, 5]
  assert of('z_score')[alive].std() == pytest.approx(1.0, rel=1e-5)
  # Pairs are (0, 3), (1, 4), (2, 5); who mirrors a failure counts for nothing.
  np.testing.assert_allclose(of('sign', True), [0, -0.5, 0.5, 0, 0.5, -0.5])
  assert of('centered_rank', True)[[0, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize('optimizer', ('sgd', 'momentum', 'adam'))
def test_thousands_of_members_go_up(optimizer):
  rate = 0.05 if optimizer == 'adam' else 0.2
  strategy = make(members=4096, optimizer=optimizer, learning_rate=rate)
  state = problems.start(strategy)
  first = float(state.memory.best_fitness)
  compiled = None
  for *_, after in problems.play(strategy, state, 12):
    now = type(strategy)._ask._cache_size(), type(strategy)._tell._cache_size()
    assert now == (compiled or now)
    compiled, centre = now, float(after.fitness[0])
  assert centre > first + 0.15


def test_genomes_keep_their_type_around_a_centre_in_f32():
  strategy = make()
  state = problems.start(strategy, jnp.bfloat16)
  for members, *_, after in problems.play(strategy, state, 2):
    kinds = {leaf.dtype for leaf in jax.tree.leaves(members)}
    assert kinds == {jnp.dtype(jnp.bfloat16)}
    assert after.population['layers']['mlp']['a'].dtype == jnp.bfloat16
    assert after.centre['layers']['mlp']['a'].dtype == jnp.float32


@pytest.mark.parametrize('mirrored', (True, False))
def test_seeds_around_a_centre_are_the_same_search(mirrored):
  options = dict(mirrored=mirrored, optimizer='sgd')
  formed, seeds = make(**options), make.__wrapped__(**options)
  members = seeded.still(problems.population())
  state = problems.start(formed)
  given = problems.scores(problems.population())
  params = formed.default_params
  other = seeds.init(problems.KEY, members, given, params)
  assert seeds.shares_centre
  plays = problems.play(formed, state, 3)
  for wanted, fitness, _, after in plays:
    asked, other = seeds.ask(problems.KEY, other, params)
    # An ask is a centre, and five numbers a member.
    numbers = sum(leaf.size for leaf in jax.tree.leaves(asked))
    assert numbers == 5 * (M + 1) + sum(
      leaf.size for leaf in jax.tree.leaves(other.centre)
    )
    found = stack.mapped(
      lambda one: seeded.formed(one, 1, True, leaves.LAYERS), asked
    )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, wanted
    )
    scores = problems.seen(seeds, jnp.asarray(fitness))
    other = seeds.tell(problems.KEY, asked, scores, other, params)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
      other.centre,
      after.centre,
    )
  best = seeded.formed(other.memory.best, 1, True, leaves.LAYERS)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    best,
    after.memory.best,
  )


def test_items_are_centred_one_by_one():
  items = np.array(
    [[1, 0, 5, 1], [0, 0, 1, 1], [0, 1, 3, 1], [1, 1, 9, 1]], 'f4'
  )
  failed = np.array([0.2, 0.1, 0.3, np.nan], 'f4')
  found = low_rank_es.by_item(jnp.asarray(items), jnp.asarray(failed))
  alive = items[:3]
  z = (alive - alive.mean(axis=0)) / np.maximum(alive.std(axis=0), 1e-9)
  np.testing.assert_allclose(found[:3], z.mean(axis=1), rtol=1e-5)
  assert np.isnan(found[3])
  strategy = make(centring='items')
  assert strategy.sees == 'items'
  *_, after = problems.play(strategy, problems.start(strategy), 1)
  assert bool(after[-1].centre_moved)


def test_noise_of_another_space_is_refused():
  space = seeded.SeededSpace(
    gates.GateSpace(experts.adapter_set(3), experts.base()), rank=2
  )
  for options, message in (
    ({}, 'Got rank 1 .* Set config.seeded.rank'),
    ({'rank': 2, 'relative_sigma': False}, 'config.seeded.relative as well'),
  ):
    with pytest.raises(ValueError, match=message):
      registry.make_strategy('low_rank_es', P, space, **options)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'members': 7}, 'Got 7 members'),
    ({'members': 1, 'mirrored': False}, 'members 1; expected 2'),
    ({'shaping': 'square'}, "'square'"),
    ({'shaping': 'sign', 'mirrored': False}, 'without mirrored'),
    ({'optimizer': 'lion'}, "'lion'"),
    ({'rank': 0}, 'rank 0'),
    ({'sigma': 0.0}, 'sigma 0.0'),
    ({'lr': 0.1}, "'lr'"),
  ],
)
def test_what_cannot_be_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    low_rank_es.LowRankES(P, **options)
