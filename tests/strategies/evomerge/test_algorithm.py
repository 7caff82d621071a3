"""EvoMerge: its schedule, curves, parents, clones and what is mutated."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import spherical
from evojax_llm.population import stack
from evojax_llm.runs import evolution
from evojax_llm.strategies.evomerge import algorithm
from evojax_llm.strategies.evomerge import curves
from tests.strategies import problems

L = 5


def population(members):
  shapes = {
    'layers': {
      'self_attn': {'a': (L, 3, 2), 'b': (L, 2, 3)},
      'mlp': {'up_proj': (L, 3)},
      'norm': (L, 3),
    },
    'embed': (4,),
  }
  return jax.tree.map(
    lambda shape: jax.random.normal(
      jax.random.key(math.prod(shape)), (members, *shape)
    ),
    shapes,
    is_leaf=lambda node: isinstance(node, tuple),
  )


@functools.cache
def make(members=6, **options):
  strategy = algorithm.EvoMerge(members, **options)
  strategy.layers = 'layers'
  return strategy


def start(strategy, members=6):
  genomes = population(members)
  return strategy.init(
    problems.KEY, genomes, problems.scores(genomes), strategy.default_params
  )


@pytest.mark.parametrize(
  'sizes, expected',
  [
    # As in the released example: nothing grows, six generations.
    ((6, 6, 2, 0, 6), [6, 5, 5, 4, 3, 2]),
    # Half a cosine up from 4 to 12 in four steps, and down again.
    ((4, 12, 2, 4, 8), [5, 8, 10, 12, 12, 10, 7, 3]),
    ((4, 12, 2, 4, None), [5, 8, 10, 12, 12]),
    ((6, 6, 2, 0, None), [6]),
    # More than n_max at first.
    ((10, 6, 2, 2, 4), [6, 6, 6, 4]),
  ],
)
def test_sizes_follow_the_published_cosines(sizes, expected):
  assert algorithm.schedule(*sizes) == expected


def test_cosine_curves_are_the_published_ones():
  table = curves.cosine(4)
  for row, (s, c) in zip(table, curves.DRAWN, strict=True):
    x = [2 * math.pi * c * i / 3 for i in range(4)]
    v = [math.cos(at + math.pi * s) for at in x]
    low, high = min(v), max(v)
    if high - low < 1e-9:
      assert np.isnan(row).all()
      continue
    expected = [round((at - low) / (high - low), 2) for at in v]
    np.testing.assert_allclose(row, expected, atol=1e-6)
  assert np.isnan(curves.cosine(1)).all()


@jax.jit
def slerped(parents, t):
  layerwise = jax.vmap(lambda both, t: spherical.slerp(both, t=t), (1, 0))
  return jax.tree.map(lambda both: layerwise(both, t), parents)


@pytest.mark.parametrize('curve', curves.CURVES)
def test_a_child_is_interpolated_by_class_and_depth(curve):
  strategy = make(curve=curve, mutate_count=0.0)
  state = start(strategy)
  members, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  crossed = np.flatnonzero(np.asarray(asked.proposal.operator) == 0)
  assert len(crossed)
  for slot in crossed:
    parents = stack.take(state.population, asked.proposal.parents[slot])
    own = stack.take(members, int(slot))
    if curve == 'default':
      t = [(0, 0.5, 0.3, 0.7, 1), (1, 0.5, 0.7, 0.3, 0)]
    else:
      t = [curves.cosine(L)[i] for i in asked.curves[slot]]
    t = [jnp.float32(np.where(np.isnan(along), 0.45, along)) for along in t]
    expected = {
      'layers': {
        'self_attn': slerped(parents['layers']['self_attn'], t[0]),
        'mlp': slerped(parents['layers']['mlp'], t[1]),
        'norm': slerped(parents['layers']['norm'], jnp.full(L, 0.45)),
      },
      'embed': spherical.slerp(parents['embed'], t=0.45),
    }
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), own, expected
    )


@pytest.mark.parametrize(
  'options, chances',
  [
    ({'parents': 'roulette', 'floor': 0.4}, [0.65, 0.6, 1e-6, 0, 0]),
    ({'parents': 'roulette'}, [0.65, 0.6, 0.3, 0, 0]),
    ({'parents': 'rank'}, [3, 2, 1, 0, 0]),
    ({'parents': 'tournament', 'entrants': 3}, [1, 0, 0, 0, 0]),
  ],
)
def test_parents_are_drawn_by_their_chances(options, chances):
  strategy = make(3, max_population=5, **options)
  state = start(strategy, 3)
  # A member that failed, and an empty slot.
  state = state.replace(
    fitness=jnp.float32([0.65, 0.6, 0.3, jnp.nan, jnp.nan]),
    ids=jnp.int32([0, 1, 2, 3, -1]),
  )
  draws = 4000
  pairs = jax.jit(strategy._parents)(
    problems.KEY, state, strategy.default_params, jnp.arange(draws)
  )
  expected = np.asarray(chances) / sum(chances)
  for found in np.asarray(pairs).T:
    shares = np.bincount(found, minlength=5) / draws
    np.testing.assert_allclose(shares, expected, atol=0.03)
  # Drawn apart, with replacement.
  same = np.mean(pairs[:, 0] == pairs[:, 1])
  assert same == pytest.approx(np.sum(expected**2), abs=0.03)


@pytest.mark.parametrize(
  'clones, expected',
  [('models', [0, 1, 0, 1, 0, 0]), ('parent', [0, 1, 0, 0, 0, 0])],
)
def test_a_model_that_is_there_already_is_a_clone(clones, expected):
  strategy = make(8, clones=clones)
  # Member 0 is an elite; 3 passes first and is a clone then; 1, 2 is a child,
  # its curves drawn twice and once others.
  pairs = jnp.int32([[3, 3], [3, 3], [1, 2], [1, 2], [1, 2], [2, 1]])
  drawn = jnp.int32([[0, 0], [5, 5], [1, 1], [1, 1], [1, 2], [1, 1]])
  elite = jnp.arange(8) < 2
  elite = elite.at[1].set(False)
  active = jnp.ones(6, bool)

  def found(active, pairs):
    same = pairs[:, 0] == pairs[:, 1]
    return strategy._clones(active, pairs, drawn, same, elite).tolist()

  assert found(active, pairs) == expected
  assert found(active, pairs.at[0].set(0))[:2] == [True, False]
  # A slot that is not used makes no clone of another.
  assert not found(active.at[0].set(False), pairs)[1]


def test_a_generation_keeps_passes_makes_and_mutates():
  options = {'max_population': 9, 'expand_steps': 2, 'target_generations': 6}
  options |= {'mutation': 'gaussian', 'curve': 'default'}
  strategy = make(parents='roulette', **options)
  assert strategy.capacity == 9 and strategy.num_proposals == 7
  state = start(strategy)
  passed, forced = 0, 0
  for size, (members, values, before, after) in zip(
    strategy.sizes, problems.play(strategy, state, 6), strict=True
  ):
    alive = before.ids >= 0
    assert np.sum(after.ids >= 0) <= size <= np.sum(before.mutated) + 9
    best = before.ids[alive][np.argsort(-before.fitness[alive])[:2]]
    kept = before.ids[before.kept]
    born = before.proposal.ids[before.proposal.filled]
    assert set(best) <= set(kept)
    assert set(after.ids[after.ids >= 0].tolist()) == {*kept, *born}
    assert len({*kept, *born}) == len(kept) + len(born) <= size
    # Two mutate, or all clones.
    count = before.mutated.sum()
    assert before.forced.sum() <= count
    assert count == max(min(2, size - 2), before.forced.sum())
    assert not np.any(before.mutated & ~before.proposal.filled)
    passed, forced = passed + len(kept) - 2, forced + before.forced.sum()
    operators = before.proposal.operator
    for slot in np.flatnonzero(operators == 2):
      assert before.mutated[slot]
      parent = before.proposal.parents[slot]
      assert parent[1] == -1
      old = np.flatnonzero(before.ids == parent[0])[0]
      ratio = (
        np.asarray(members['embed'][slot]) - before.population['embed'][old]
      )
      assert 0 < np.abs(ratio).max() < 1
    for i, place in enumerate(after.ids):
      if place in born:
        slot = np.flatnonzero(before.proposal.ids == place)[0]
        assert after.fitness[i] == values[slot]
  assert passed and forced


def test_only_flagged_members_are_refined_and_noted():
  strategy = make()
  seen, asked = [], []

  def refine(members, which, key):
    del key
    seen.append(which.tolist())
    asked[:] = [np.asarray(members['embed'])]
    return jax.tree.map(lambda leaf: leaf.at[which].multiply(0.9), members)

  def score(members, which):
    if asked:
      changed = np.any(asked.pop() != members['embed'], axis=1)
      assert np.flatnonzero(changed).tolist() == seen[-1]
    return problems.fitness(stack.take(members, np.asarray(which)))

  search = functools.partial(
    evolution.evolve, strategy, None, score, population=population(6), seed=3
  )
  whole, notes = [], []
  for state, generation in search(refine=refine, generations=4):
    whole.append(jax.tree.map(np.array, state))
    if generation.number:
      said = strategy.notes(state.strategy)
      notes.append([said[slot] for slot in generation.slots])
      assert seen[-1] == np.flatnonzero(state.strategy.mutated).tolist()
  for note in sum(notes, []):
    assert set(note) <= {'curve', 'attention', 'mlp', 'mutation'} and note
  # Stopped after any generation, it goes on to the same end.
  for stop in (0, 2):
    again = jax.tree.map(jnp.array, whole[stop])
    *_, (end, _) = evolution.evolve(
      strategy, None, score, state=again, refine=refine, generations=4
    )
    jax.tree.map(np.testing.assert_array_equal, whole[-1], end)
  with pytest.raises(ValueError, match='no refine for EvoMerge'):
    search(generations=1)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'keep_top_k': 7}, 'population_size 6 with keep_top_k 7'),
    ({'min_population': 1}, 'min_population 1 with keep_top_k 2'),
    ({'min_population': 8}, 'max_population 6 with min_population 8'),
    (
      {'expand_steps': 3, 'target_generations': 2},
      'expand_steps 3 with target_generations 2',
    ),
    ({'curve': 'sine'}, "curve 'sine'; expected one of 'cosine', 'default'"),
  ],
)
def test_sizes_that_contradict_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    algorithm.EvoMerge(6, **options)
