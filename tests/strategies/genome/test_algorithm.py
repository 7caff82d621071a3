import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import succession
from evojax_llm.population import keys
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.genome import algorithm
from tests.strategies import problems

P = problems.P
NAMES = algorithm.OPERATORS


@functools.cache
def make(**options):
  return algorithm.Genome(P, **options)


def values(member_tree):
  return np.asarray(member_tree['layers']['mlp']['a'], np.float32)


def test_rounds_alternate_and_succession_comes_first():
  strategy = make()
  kinds = []
  for *_, before, _ in problems.play(strategy, problems.start(strategy), 4):
    operators = before.proposal.operator[before.proposal.ids >= 0]
    kinds.append({NAMES[o].split('+')[0] for o in operators})
  assert kinds[0] == kinds[2] == {'succession'}
  for kind in (kinds[1], kinds[3]):
    assert kind and kind <= {'crossover', 'mutation'}


def test_without_succession_there_is_variation_only():
  strategy = make(with_succession=False)
  state = problems.start(strategy)
  assert state.velocity is None and state.memory.personal is None
  for *_, before, _ in problems.play(strategy, state, 3):
    assert NAMES.index('succession') not in before.proposal.operator


@pytest.mark.parametrize('with_succession', (True, False))
def test_nobody_is_scored_twice_and_scores_are_never_stale(with_succession):
  strategy = make(with_succession=with_succession, scale_rate=0.3)
  seen = set(range(P))
  state = problems.start(strategy)
  for members, fitness, before, after in problems.play(strategy, state, 8):
    ids = before.proposal.ids
    new = ids[ids >= 0].tolist()
    assert len(set(new)) == len(new) and not seen & set(new)
    seen |= set(new)
    alive = np.asarray(after.ids).tolist()
    assert len(set(alive)) == P and set(alive) <= seen
    np.testing.assert_allclose(
      after.fitness, problems.fitness(after.population), rtol=1e-5
    )
    assert int(after.next_id) > max(seen)
    del members, fitness


def test_parents_are_alive_or_made_in_the_same_round():
  strategy = make(with_succession=False, mutation_rate=0.9)
  children_copied = False
  state = problems.start(strategy)
  for *_, before, _ in problems.play(strategy, state, 4):
    proposal = before.proposal
    children = set()
    for name, operator in zip(proposal.ids, proposal.operator, strict=True):
      if operator >= 0 and NAMES[operator].startswith('crossover'):
        children.add(int(name))
    for slot in np.flatnonzero(proposal.ids >= 0):
      one, two = (int(i) for i in proposal.parents[slot])
      if int(proposal.ids[slot]) in children:
        assert one != two and {one, two} <= set(before.ids.tolist())
      else:
        assert two == -1 and one in set(before.ids.tolist()) | children
        children_copied |= one in children
  assert children_copied


def test_the_best_survives_variation_and_memory_keeps_it_in_succession():
  strategy = make()
  best = -np.inf
  state = problems.start(strategy)
  for _, fitness, before, after in problems.play(strategy, state, 10):
    best = max(best, before.memory.best_fitness, np.nanmax(fitness))
    assert float(after.memory.best_fitness) == pytest.approx(best)
    np.testing.assert_allclose(
      problems.fitness(stack.stack([after.memory.best]))[0], best, rtol=1e-5
    )
    if int(before.generation) % 2:
      pool = np.concatenate([before.fitness, fitness])
      assert np.max(after.fitness) == np.nanmax(pool)


def test_a_move_is_the_published_formula_with_draws_of_its_own():
  strategy = make(step_length=0.5, step_decay=0.9)
  params = strategy.default_params
  state = problems.last(strategy, problems.start(strategy), 2)
  members, asked = strategy.ask(problems.KEY, state, params)
  length = 0.5 * 0.9**2
  assert float(asked.step_length) == pytest.approx(length)
  draws = keys.keys_for(problems.KEY, 2, state.ids, 'succession')
  phi = np.asarray([0.2, 0.2, 0.2, 0.1])
  x, v = values(state.population), values(state.velocity)
  p = values(state.memory.personal)
  g, w = values(state.memory.best), values(state.memory.worst)
  blends = []
  for i in range(P):
    r = np.asarray(jax.random.uniform(draws[i], (4,))) * phi
    a = r / r.sum()
    blends.append(tuple(a))
    speed = a[0] * v[i] + a[1] * (p[i] - x[i]) + a[2] * (g - x[i])
    speed -= a[3] * (w - x[i])
    np.testing.assert_allclose(
      values(members)[i], x[i] + length * speed, rtol=1e-4, atol=1e-5
    )
  assert len(set(blends)) == P


def test_lambda_decays_once_a_generation_whatever_the_population():
  strategy = make(step_length=1.0, step_decay=0.5, step_floor=0.2)
  lengths = [
    float(after.step_length)
    for *_, after in problems.play(strategy, problems.start(strategy), 8)
  ]
  assert lengths == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2])


def test_personal_bests_stay_behind_after_a_bad_move():
  strategy = make()
  state = problems.start(strategy)
  first = values(state.population)
  ((members, _, _, after),) = problems.play(
    strategy, state, 1, score=lambda m: -jnp.ones(strategy.num_proposals)
  )
  np.testing.assert_array_equal(values(after.memory.personal), first)
  np.testing.assert_array_equal(after.memory.personal_ids, np.arange(P))
  np.testing.assert_array_equal(values(after.population), values(members)[:P])
  assert np.all(values(after.population) != first)


def test_memory_and_velocity_follow_the_survivors():
  strategy = make(mutation_rate=0.5)
  state = problems.last(strategy, problems.start(strategy), 3)
  for _, _, before, after in problems.play(strategy, state, 1):
    former = {int(name): i for i, name in enumerate(before.ids)}
    fresh = 0
    for place, name in enumerate(np.asarray(after.ids).tolist()):
      personal = values(after.memory.personal)[place]
      if name in former:
        old = former[name]
        np.testing.assert_array_equal(
          personal, values(before.memory.personal)[old]
        )
        np.testing.assert_array_equal(
          values(after.velocity)[place], values(before.velocity)[old]
        )
      else:
        fresh += 1
        np.testing.assert_array_equal(personal, values(after.population)[place])
        assert int(after.memory.personal_ids[place]) == name
    assert 0 < fresh < P


@pytest.mark.parametrize('with_succession', (True, False))
def test_the_seed_decides_everything(with_succession):
  strategy = make(with_succession=with_succession)
  runs = [
    problems.last(strategy, problems.start(strategy), 5) for _ in range(2)
  ]
  problems.assert_same(*runs)
  other = problems.last(
    strategy, problems.start(strategy), 5, key=jax.random.key(7)
  )
  assert np.any(values(other.population) != values(runs[0].population))


@pytest.mark.parametrize('with_succession', (True, False))
def test_reordering_the_members_changes_no_result(with_succession):
  strategy = make(with_succession=with_succession)
  state = problems.start(strategy)
  order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])

  def reorder(tree):
    return None if tree is None else stack.take(tree, order)

  memory = state.memory
  shuffled = state.replace(
    population=reorder(state.population),
    fitness=state.fitness[order],
    ids=state.ids[order],
    velocity=reorder(state.velocity),
    memory=memory.replace(
      personal=reorder(memory.personal),
      personal_fitness=reorder(memory.personal_fitness),
      personal_ids=reorder(memory.personal_ids),
    ),
  )
  shuffled = jax.tree.map(jnp.copy, shuffled)
  if with_succession:
    # The round of moves gives ids by place; begin with the other.
    state = state.replace(generation=jnp.int32(1))
    shuffled = shuffled.replace(generation=jnp.int32(1))
  problems.assert_same(
    problems.last(strategy, state, 1), problems.last(strategy, shuffled, 1)
  )


def failing(share):
  """Fitness of which the members with low numbers fail."""

  def score(members):
    fitness = problems.fitness(members)
    return jnp.where(values(members)[:, 0, 0, 0] < share, jnp.nan, fitness)

  return score


@pytest.mark.parametrize('method', ('roulette', 'tournament', 'truncation'))
@pytest.mark.parametrize('with_succession', (True, False))
def test_failed_members_never_win(with_succession, method):
  strategy = make(with_succession=with_succession, survivors=method)
  score = failing(0.0)
  members = problems.population()
  state = strategy.init(
    problems.KEY, members, base.Scores(score(members)), strategy.default_params
  )
  assert 0 < np.isnan(state.fitness).sum() < P
  for _, _, before, after in problems.play(strategy, state, 8, score=score):
    assert np.isfinite(after.memory.best_fitness)
    assert np.isfinite(after.memory.worst_fitness)
    failed = set(before.ids[np.isnan(before.fitness)].tolist())
    varied = before.proposal.operator > NAMES.index('succession')
    assert not failed & set(before.proposal.parents[varied].ravel().tolist())
    for leaf in jax.tree.leaves(after.population):
      assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize('alive', (1, 2))
def test_only_the_living_are_parents(alive):
  strategy = make(with_succession=False, cross_rate=1.0, mutation_rate=1.0)
  members = problems.population()
  scores = base.Scores(problems.fitness(members).at[alive:].set(jnp.nan))
  state = strategy.init(problems.KEY, members, scores, strategy.default_params)
  _, state = strategy.ask(problems.KEY, state, strategy.default_params)
  proposal = jax.tree.map(np.asarray, state.proposal)
  crossed = proposal.operator == NAMES.index('crossover')
  # One parent alone has nobody to cross with.
  assert crossed.sum() == (P // 2 if alive == 2 else 0)
  parents = set(proposal.parents[proposal.ids >= 0].ravel().tolist())
  children = set(proposal.ids[crossed].tolist())
  assert parents - children == {-1, *range(alive)}


@pytest.mark.parametrize('with_succession', (True, False))
def test_a_population_of_failures_goes_on_and_recovers(with_succession):
  strategy = make(with_succession=with_succession)
  members = problems.population()
  state = strategy.init(
    problems.KEY,
    members,
    base.Scores(jnp.full(P, jnp.nan)),
    strategy.default_params,
  )
  state = problems.last(
    strategy, state, 4, score=lambda m: jnp.full(strategy.num_proposals, np.nan)
  )
  assert len(set(np.asarray(state.ids).tolist())) == P
  assert np.isnan(state.memory.best_fitness)
  state = problems.last(strategy, state, 2)
  assert np.isfinite(state.memory.best_fitness)


def test_a_failed_member_starts_over_from_its_own_best():
  strategy = make()
  params = strategy.default_params
  state = problems.start(strategy)
  wreck = jax.tree.map(lambda x: x.at[2].set(jnp.nan), state.population)
  state = state.replace(
    population=wreck, fitness=state.fitness.at[2].set(jnp.nan)
  )
  members, _ = strategy.ask(problems.KEY, state, params)
  assert np.all(np.isfinite(values(members)))


def test_fewer_slots_for_copies():
  strategy = make(with_succession=False, max_mutants=2, mutation_rate=1.0)
  assert strategy.num_proposals == P // 2 + 2
  state = problems.start(strategy)
  for *_, before, after in problems.play(strategy, state, 2):
    copies = before.proposal.operator >= NAMES.index('mutation')
    assert copies.sum() == 2
    assert len(set(np.asarray(after.ids).tolist())) == P


def test_scaling_is_named_in_the_lineage_and_changes_b_only():
  strategy = make(
    with_succession=False,
    cross_rate=0.0,
    mutation_rate=1.0,
    sigma=0.0,
    scale_rate=0.5,
  )
  params = strategy.default_params
  members, state = strategy.ask(problems.KEY, problems.start(strategy), params)
  kinds = set()
  for slot in np.flatnonzero(state.proposal.filled):
    name = NAMES[int(state.proposal.operator[slot])]
    parent = int(state.proposal.parents[slot, 0])
    kinds.add(name)
    source = stack.take(state.population, parent)['layers']['mlp']
    copy = stack.take(members, slot)['layers']['mlp']
    np.testing.assert_array_equal(copy['a'], source['a'])
    ratio = np.asarray(copy['b'] / source['b'])
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
    assert (ratio.flat[0] == 1.0) == (name == 'mutation')
  assert kinds == {'mutation', 'mutation+scale'}


def test_one_member_alone():
  strategy = algorithm.Genome(1, mutation_rate=1.0)
  state = problems.last(strategy, problems.start(strategy), 4)
  assert state.ids.shape == (1,)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'merge': 'tie'}, "'tie'"),
    ({'weighing': 'best'}, "'best'"),
    ({'survivors': 'lottery'}, "'lottery'"),
    ({'mask': 'head'}, "'head'"),
    ({'max_mutants': 13}, 'max_mutants 13; expected 0 to 12'),
    ({'elite_rounding': 'up'}, "'up'"),
    ({'elite_base': 'all'}, "'all'"),
    ({'sigmma': 0.1}, "'sigmma'"),
  ],
)
def test_unknown_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    algorithm.Genome(P, **options)


def test_memory_never_shares_buffers_with_the_population():
  state = problems.start(make())
  assert isinstance(state.memory, succession.Memory)
  pointers = [
    leaf.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves((state.population, state.memory))
  ]
  assert len(set(pointers)) == len(pointers)


def test_as_released_the_pull_to_the_own_best_is_zero():
  strategy = make(personal=False)
  params = strategy.default_params
  state = problems.last(strategy, problems.start(strategy), 2)
  one, _ = strategy.ask(problems.KEY, state, params)
  memory = state.memory.replace(
    personal=jax.tree.map(lambda leaf: leaf + 5.0, state.memory.personal)
  )
  two, _ = strategy.ask(problems.KEY, state.replace(memory=memory), params)
  problems.assert_same(one, two)


def test_as_released_moved_members_keep_scores_of_before():
  strategy = make(rescore=False)
  state = problems.start(strategy)
  rounds = problems.play(strategy, state, 2)
  _, _, before, after = next(rounds)
  assert (before.proposal.ids == -1).all()
  np.testing.assert_array_equal(after.fitness, before.fitness)
  np.testing.assert_array_equal(after.ids, before.ids)
  assert np.any(values(after.population) != values(before.population))
  _, _, before, _ = next(rounds)
  assert (before.proposal.ids >= 0).any()


def test_as_released_one_draw_serves_the_whole_run():
  strategy = make(draws='run')
  params = strategy.default_params
  state = problems.start(strategy)
  blend = np.array(state.run_blend)
  assert blend.sum() == pytest.approx(1.0)
  for number in (0, 2):
    state = problems.last(strategy, problems.start(strategy), number)
    x, v = values(state.population), values(state.velocity)
    p = values(state.memory.personal)
    g, w = values(state.memory.best), values(state.memory.worst)
    members, asked = strategy.ask(problems.KEY, state, params)
    speed = blend[0] * v + blend[1] * (p - x) + blend[2] * (g - x)
    speed -= blend[3] * (w - x)
    np.testing.assert_allclose(
      values(members)[:P],
      x + float(asked.step_length) * speed,
      rtol=1e-4,
      atol=1e-5,
    )


def test_as_released_the_step_shrinks_with_every_member():
  strategy = make(decay='member', step_length=0.5, step_decay=0.9)
  params = strategy.default_params
  state = problems.start(strategy)
  members, asked = strategy.ask(problems.KEY, state, params)
  moved = values(members)[:P] - values(state.population)
  for i in range(P):
    np.testing.assert_allclose(
      moved[i],
      0.5 * 0.9 ** (i + 1) * values(asked.velocity)[i],
      rtol=1e-3,
      atol=1e-5,
    )
  assert float(asked.step_length) == pytest.approx(0.5 * 0.9**P)
