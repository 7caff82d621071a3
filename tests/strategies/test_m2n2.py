"""M2N2 against the formulas by hand, and against a plain genetic algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import niching
from evojax_llm.operators import selection
from evojax_llm.operators.merges import split
from evojax_llm.population import keys
from evojax_llm.population import sharding
from evojax_llm.strategies import base
from evojax_llm.strategies import m2n2
from tests.strategies import problems

P, ITEMS = problems.P, 5
VARIANTS = {
  'm2n2': {},
  'ga': {'alpha': 0.0, 'matchmaker': False, 'span': 'tensor'},
  # With an archive to fill, and children for each of four devices.
  'no split': {
    'split': False,
    'children': 4,
    'archive': P + 4,
    'alpha': 2.0,
    'capacity': 'best',
  },
}


@functools.cache
def make(variant):
  return m2n2.M2N2(P, **VARIANTS[variant])


def items_of(members):
  """(M, ITEMS) of 0 and 1: whether a number of a member is above zero."""
  leaf = members['layers']['mlp']['b'].reshape(-1, 16)
  return (leaf[:, :ITEMS] > 0).astype(jnp.float32)


def scores_of(members, items=items_of):
  items = items(members)
  return base.Scores(jnp.mean(items, axis=1), items[:, :2], items)


def start(strategy, members=None, items=items_of):
  members = problems.population(members=P) if members is None else members
  return strategy.init(
    problems.KEY, members, scores_of(members, items), strategy.default_params
  )


def play(strategy, state, rounds, items=items_of):
  """Yields (state before as numpy, members, state after)."""
  params = strategy.default_params
  for _ in range(rounds):
    members, asked = strategy.ask(problems.KEY, state, params)
    before = jax.tree.map(np.array, asked)
    scores = scores_of(members, items)
    state = strategy.tell(problems.KEY, members, scores, asked, params)
    yield before, members, state


def flat(genome):
  """One vector in the order of jax.tree, f64."""
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(genome)]
  return np.concatenate(leaves)


def slerp(x, y, t):
  cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  angle = np.arccos(np.clip(cosine, -1, 1))
  if np.sin(angle) <= 1e-6:
    return (1 - t) * x + t * y
  return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def shared(items, alpha, capacity):
  """F of the published formula, without a member that failed."""
  z = items.sum(axis=0)
  return capacity * items / np.where(z > 0, z, 1) ** alpha


def draws_of(state, child=0):
  of = functools.partial(
    keys.key_for, problems.KEY, state.generation, state.next_id + child
  )
  return of('parents'), np.asarray(jax.random.uniform(of('child'), (2,)))


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_round_is_that_of_the_formulas(variant):
  strategy, options = make(variant), VARIANTS[variant]
  alpha = options.get('alpha', 1.0)
  for before, members, after in play(strategy, start(strategy), 5):
    pairs = np.asarray(before.proposal.parents)
    for child in range(len(pairs)):
      _, (t, share) = draws_of(before, child)
      rows = [int(np.flatnonzero(before.ids == i)[0]) for i in pairs[child]]
      x, y = (
        flat(jax.tree.map(lambda leaf, r=r: leaf[r], before.population))
        for r in rows
      )
      share = 1.0 if variant == 'no split' else share
      inside = np.arange(x.size) < share * x.size
      expected = np.where(inside, slerp(x, y, t), slerp(x, y, 1 - t))
      found = flat(jax.tree.map(lambda leaf, c=child: leaf[c], members))
      if variant != 'ga':
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # The least fit go one by one, each time shared anew.
    pool = np.concatenate([before.items, items_of(members)])
    ids = [*before.ids, *before.proposal.ids]
    best = np.nanmax(pool, axis=0) if options.get('capacity') else 1.0
    alive = [i for i in range(len(ids)) if ids[i] >= 0]
    while len(alive) > strategy.capacity:
      fitness = np.float32(shared(pool[alive], alpha, best).sum(axis=1))
      close = np.flatnonzero(np.isclose(fitness, fitness.min(), rtol=1e-6))
      alive.remove(alive[min(close, key=lambda i: ids[alive[i]])])
    filled = set(after.ids.tolist()) - {-1}
    assert filled == {ids[i] for i in alive}
    for slot in np.flatnonzero(after.ids >= 0):
      own = pool[ids.index(int(after.ids[slot]))]
      np.testing.assert_array_equal(after.items[slot], own)


def test_alpha_zero_without_the_matchmaker_is_the_genetic_algorithm():
  """Parents in proportion to the sum of scores, the worst of all replaced."""
  strategy = make('ga')
  state = start(strategy)
  for before, members, after in play(strategy, state, 6):
    total = jnp.asarray(before.items).sum(axis=1)
    key, _ = draws_of(before)
    first = selection.roulette(
      jax.random.fold_in(key, 0), total, 1, jnp.asarray(before.ids)
    )[0]
    rest = total.at[first].set(jnp.nan)
    second = selection.roulette(
      jax.random.fold_in(key, 1), rest, 1, jnp.asarray(before.ids)
    )[0]
    drawn = before.ids[[int(first), int(second)]]
    np.testing.assert_array_equal(before.proposal.parents[0], drawn)
    child = float(items_of(members).sum())
    worst = min(range(P), key=lambda i: (float(total[i]), before.ids[i]))
    expected = jax.tree.map(jnp.asarray, before.population)
    if child >= float(total[worst]):
      expected = jax.tree.map(
        lambda old, new, i=worst: old.at[i].set(new[0]), expected, members
      )
    problems.assert_same(after.population, expected)


def test_an_archive_covers_no_fewer_items_than_a_genetic_algorithm():
  """Of items that no member can have together, at equal evaluations."""

  def items(members):
    x, y, z = jnp.moveaxis(
      members['layers']['mlp']['b'].reshape(-1, 16)[:, :3], 1, 0
    )
    solved = x > 0.3, x < -0.3, y > 0.3, y < -0.3, z > 0.0
    return jnp.stack(solved, axis=1).astype(jnp.float32)

  covered = {}
  for variant in ('m2n2', 'ga'):
    covered[variant] = []
    for seed in range(4):
      members = problems.population(members=P, seed=seed)
      state = start(make(variant), members, items)
      *_, (_, _, state) = play(make(variant), state, 40, items)
      solved = items(state.population).max(axis=0).sum()
      covered[variant].append(float(solved))
  assert np.mean(covered['m2n2']) > np.mean(covered['ga']) + 0.5


def test_the_ends_of_a_split_are_plain_slerp():
  members = problems.population(members=2)
  x, y = (
    flat(jax.tree.map(lambda leaf, i=i: leaf[i], members)) for i in (0, 1)
  )
  cross = jax.jit(split.split_slerp_whole)
  for share, t in ((1.0, 0.3), (0.0, 0.7)):
    child = cross(members, t=0.3, split=share)
    np.testing.assert_allclose(flat(child), slerp(x, y, t), atol=1e-6)
  same = jax.tree.map(lambda leaf: jnp.stack([leaf[0], 2 * leaf[0]]), members)
  child = cross(same, t=0.25, split=1.0)
  np.testing.assert_allclose(flat(child), 1.25 * x, rtol=1e-6)


def test_an_archive_is_filled_by_merges_of_members_drawn_evenly():
  strategy = make('no split')
  operators, alive = [], []
  for before, _, after in play(strategy, start(strategy), 2):
    operators.append(before.proposal.operator[0])
    alive.append(int((after.ids >= 0).sum()))
    assert set(before.proposal.parents.ravel()) <= set(before.ids.tolist())
    assert -1 not in before.proposal.parents
  assert operators == [0, 1] and alive == [P + 4, P + 4]


def test_the_archive_begins_with_one():
  strategy = m2n2.M2N2(1, archive=3)
  members = problems.population(members=1)
  for before, children, _ in play(strategy, start(strategy, members), 2):
    assert set(before.proposal.parents[0]) <= set(before.ids.tolist()) - {-1}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(children))


def test_failed_members_go_first_and_errors_count_as_scores():
  scores = jnp.asarray([[-3.0, 1], [-1, 0], [jnp.nan, 1], [-2, 1]])
  lifted = niching.not_negative(scores)
  np.testing.assert_allclose(
    lifted, [[0, 1], [2, 0], [np.nan, 1], [1, 1]], rtol=1e-6
  )
  ids = jnp.asarray([4, 3, 2, 1])
  left = jax.jit(niching.survivors, static_argnums=2)
  order = [left(lifted, ids, count).tolist() for count in (3, 2, 1)]
  with jax.disable_jit():
    assert niching.survivors(lifted, ids, 1).tolist() == order[-1]
  assert order == [
    [True, True, False, True],
    [False, True, False, True],
    [False, False, False, True],
  ]


def test_genomes_that_are_cut_evolve_as_whole_ones(monkeypatch):
  monkeypatch.setattr(sharding, '_FEW', 1)
  mesh = sharding.population_mesh(jax.devices()[:2])
  apart = make('no split').cut_over(mesh)
  found = [[*play(s, start(s), 3)] for s in (make('no split'), apart)]
  compiled, spread = (rounds[-1][-1] for rounds in found)
  leaf = jax.tree.leaves(spread.population)[0]
  assert not leaf.sharding.is_fully_replicated
  np.testing.assert_array_equal(compiled.ids, spread.ids)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    compiled.population,
    spread.population,
  )


def test_noise_and_capacities():
  loud = m2n2.M2N2(P, mutate=True, sigma=0.5, capacities=[0, 0, 0, 0, 9.0])
  state, params = start(loud), loud.default_params
  noisy, asked = loud.ask(problems.KEY, state, params)
  params = params.replace(sigma=jnp.float32(0.0))
  quiet, _ = loud.ask(problems.KEY, state, params)
  moved = flat(noisy) - flat(quiet)
  assert moved.std() == pytest.approx(0.5, rel=0.3)
  # One item alone counts: the first parent is among those that solve it.
  solves = np.flatnonzero(np.asarray(state.items)[:, 4])
  assert int(asked.proposal.parents[0, 0]) in solves


def test_other_items_are_scored_anew():
  strategy = make('m2n2')
  *_, (_, _, state) = play(strategy, start(strategy), 2)
  genomes, _ = strategy.held(state)
  again = strategy.rescored(state, scores_of(genomes, lambda m: -items_of(m)))
  np.testing.assert_array_equal(again.items, -items_of(again.population))
  assert float(strategy.monitors(again)['best_of_each_item']) <= 0


def test_the_archive_is_written_in_place():
  """No round holds a second one: a child and its parents at most."""
  strategy = make('m2n2')
  params, genome = strategy.default_params, 4 << 14
  members = {'x': jax.ShapeDtypeStruct((P, genome // 4), jnp.float32)}
  scores = base.Scores(
    *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((P,), (P, 1)))
  ).replace(items=jax.ShapeDtypeStruct((P, 3), jnp.float32))
  state = jax.eval_shape(
    lambda *given: strategy.init(problems.KEY, *given, params), members, scores
  )
  ask = base.Strategy._ask.lower(strategy, problems.KEY, state, params)
  used = ask.compile().memory_analysis()
  assert used.temp_size_in_bytes + used.output_size_in_bytes < 5 * genome
  child = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype),
    (members, scores),
  )
  tell = base.Strategy._tell.lower(
    strategy, problems.KEY, *child, state, params
  )
  used = tell.compile().memory_analysis()
  assert used.alias_size_in_bytes > P * genome
  assert used.temp_size_in_bytes < 3 * genome
