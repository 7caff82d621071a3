import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import keys
from evojax_llm.strategies import base
from evojax_llm.strategies import model_swarms
from tests.strategies import problems

P = problems.P
PHI = np.asarray([0.2, 0.3, 0.4, 0.05])


@functools.cache
def make(**options):
  return model_swarms.ModelSwarms(P, **options)


def values(member_tree):
  return np.asarray(member_tree['layers']['mlp']['a'], np.float32)


def flat_fitness(members):
  """No particle ever improves."""
  return jnp.zeros((P,)) + 0.0 * values(members).sum()


def restarts_by_round(strategy, rounds, score):
  state = strategy.init(
    problems.KEY,
    problems.population(),
    base.Scores(-jnp.arange(P, dtype=jnp.float32)),
    strategy.default_params,
  )
  counts = []
  for *_, before, _ in problems.play(strategy, state, rounds, score=score):
    counts.append(int((before.proposal.operator == 1).sum()))
  return counts


def worse(members):
  del members
  return jnp.full((P,), -99.0)


def test_a_step_is_the_published_formula():
  strategy = make(step_length=0.7, step_decay=0.5)
  state = problems.start(strategy)
  x, v = values(state.population), values(state.velocity)
  p = values(state.memory.personal)
  g, w = values(state.memory.best), values(state.memory.worst)
  members, asked = strategy.ask(problems.KEY, state, strategy.default_params)
  draws = keys.keys_for(problems.KEY, 0, state.ids, 'succession')
  for i in range(P):
    r = np.asarray(jax.random.uniform(draws[i], (4,))) * PHI
    a = r / r.sum()
    speed = a[0] * v[i] + a[1] * (p[i] - x[i]) + a[2] * (g - x[i])
    speed += a[3] * (x[i] - w)
    np.testing.assert_allclose(
      values(members)[i], x[i] + 0.7 * speed, rtol=1e-4, atol=1e-5
    )
  # The step length shrinks behind the step, not in front of it.
  assert float(asked.step_length) == pytest.approx(0.35)


def test_the_step_length_has_a_floor():
  strategy = make(step_decay=0.5, step_floor=0.3)
  state = problems.last(strategy, problems.start(strategy), 4)
  assert float(state.step_length) == pytest.approx(0.3)


def test_a_swarm_gets_better_and_scores_are_never_stale():
  strategy = make()
  state = problems.start(strategy)
  first, seen = float(state.memory.best_fitness), set(range(P))
  for _, fitness, before, after in problems.play(strategy, state, 12):
    new = before.proposal.ids.tolist()
    assert len(set(new)) == P and not set(new) & seen
    seen |= set(new)
    np.testing.assert_allclose(after.fitness, fitness, rtol=1e-6)
    np.testing.assert_allclose(
      problems.fitness(after.memory.personal),
      after.memory.personal_fitness,
      rtol=1e-5,
    )
    state = after
  assert float(state.memory.best_fitness) > first
  assert np.all(state.memory.personal_fitness >= state.fitness - 1e-6)


def test_a_stale_particle_is_restarted_once_and_then_left_alone():
  counts = restarts_by_round(make(restart_after=2, refractory=3), 9, worse)
  # Two stale rounds, a restart; then three refractory rounds before the next.
  assert counts == [0, 0, P, 0, 0, P, 0, 0, P]


def test_as_released_a_stale_particle_is_restarted_for_ever():
  counts = restarts_by_round(make(restart='forever', restart_after=2), 6, worse)
  assert counts == [0, 0, P, P, P, P]


def test_without_restarts_nobody_goes_back():
  counts = restarts_by_round(make(restart='never', restart_after=1), 4, worse)
  assert counts == [0, 0, 0, 0]


def test_a_restart_begins_at_the_own_best_at_rest():
  strategy = make(restart_after=1, inertia=1.0, cognitive=0.0, repel=0.0)
  params = strategy.default_params.replace(social=jnp.float32(0.0))
  state = problems.start(strategy)
  members, asked = strategy.ask(problems.KEY, state, params)
  scores = base.Scores(worse(members))
  state = strategy.tell(problems.KEY, members, scores, asked, params)
  own = values(state.memory.personal).copy()
  members, asked = strategy.ask(problems.KEY, state, params)
  assert (np.asarray(asked.proposal.operator) == 1).all()
  # With inertia alone, a particle at rest stays where it is.
  np.testing.assert_allclose(values(members), own, rtol=1e-6)


@pytest.mark.parametrize('dropout', ('drop_round', 'drop_member'))
def test_who_is_dropped_moves_without_being_scored(dropout):
  strategy = make(**{dropout: 0.5})
  state = problems.start(strategy)
  scored = []
  for members, _, before, after in problems.play(strategy, state, 12):
    asked = before.proposal.ids >= 0
    scored.append(int(asked.sum()))
    np.testing.assert_array_equal(np.isfinite(after.fitness), asked)
    np.testing.assert_array_equal(
      after.population['layers']['mlp']['a'], members['layers']['mlp']['a']
    )
    np.testing.assert_array_equal(after.ids[~asked], before.ids[~asked])
    assert len(set(after.ids.tolist())) == P
  if dropout == 'drop_round':
    assert set(scored) == {0, P}
  else:
    assert 0 < sum(scored) < 12 * P and len(set(scored)) > 1


def test_a_dropped_particle_is_not_taken_for_failed():
  strategy = make(drop_member=1.0)
  state = problems.start(strategy)
  for *_, before, _ in problems.play(strategy, state, 3):
    assert (before.proposal.operator == -1).all()
    assert not before.scored.any() or before.generation == 0
    assert (before.patience.stale == 0).all()


def test_a_failed_particle_starts_over_and_never_wins():
  strategy = make()
  params = strategy.default_params
  state = problems.start(strategy)
  members, asked = strategy.ask(problems.KEY, state, params)
  scores = base.Scores(problems.fitness(members).at[2].set(jnp.nan))
  state = strategy.tell(problems.KEY, members, scores, asked, params)
  assert np.isfinite(state.memory.personal_fitness).all()
  members, asked = strategy.ask(problems.KEY, state, params)
  assert int(asked.proposal.operator[2]) == 1
  assert np.isfinite(values(members)).all()


@pytest.mark.parametrize('start', ('random', 'zero', 'best'))
def test_velocity_starts(start):
  strategy = make(velocity_start=start)
  state = problems.start(strategy)
  x, v = values(state.population), values(state.velocity)
  if start == 'zero':
    assert not v.any()
  elif start == 'best':
    np.testing.assert_allclose(v, values(state.memory.best) - x, rtol=1e-5)
  else:
    nearest = np.abs((x + v)[:, None] - x[None]).sum(axis=(2, 3, 4))
    assert (nearest.argmin(axis=1) != np.arange(P)).all()
    assert nearest.min(axis=1).max() < 1e-4


def test_reordering_the_particles_reorders_the_result():
  strategy = make()
  params = strategy.default_params
  state = problems.start(strategy)
  order = jnp.asarray([3, 1, 7, 0, 2, 6, 5, 4])
  shuffled = jax.tree.map(
    lambda leaf: leaf[order] if leaf.ndim and leaf.shape[0] == P else leaf,
    state,
  )
  members, _ = strategy.ask(problems.KEY, state, params)
  others, _ = strategy.ask(problems.KEY, shuffled, params)
  np.testing.assert_allclose(
    values(others), values(members)[order], rtol=1e-6, atol=1e-7
  )


def test_unknown_options_are_refused():
  with pytest.raises(ValueError, match='restart'):
    model_swarms.ModelSwarms(4, restart='twice')
  with pytest.raises(ValueError, match='velocity_start'):
    model_swarms.ModelSwarms(4, velocity_start='fast')
  with pytest.raises(ValueError, match='unknown option'):
    model_swarms.ModelSwarms(4, sigma=0.1)


def test_the_swarm_that_genome_is_compared_with():
  strategy = make(
    restart='never',
    personal=False,
    draws='run',
    decay='member',
    step_length=0.1,
  )
  params = strategy.default_params
  state = problems.last(strategy, problems.start(strategy), 2)
  length = float(state.step_length)
  assert length == pytest.approx(0.1 * 0.95 ** (2 * P), rel=1e-4)
  x, v = values(state.population), values(state.velocity)
  g, w = values(state.memory.best), values(state.memory.worst)
  a = np.asarray(state.run_blend)
  members, _ = strategy.ask(problems.KEY, state, params)
  for i in range(P):
    # Nothing pulls a particle to its own best, and each steps less far.
    speed = a[0] * v[i] + a[2] * (g - x[i]) + a[3] * (x[i] - w)
    np.testing.assert_allclose(
      values(members)[i],
      x[i] + length * 0.95 ** (i + 1) * speed,
      rtol=1e-4,
      atol=1e-5,
    )
