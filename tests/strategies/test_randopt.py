import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import seeded
from evojax_llm.operators import low_rank
from evojax_llm.operators import noise
from evojax_llm.population import leaves
from evojax_llm.population import stack
from evojax_llm.runs import run_state
from evojax_llm.strategies import randopt
from tests.strategies import problems

P, N, KEEP, MEANS = problems.P, 12, 4, 2


@functools.cache
def make(**options):
  given = {'members': N, 'keep': KEEP, 'means': MEANS} | options
  strategy = randopt.RandOpt(P, **given)
  strategy.layers = leaves.LAYERS
  return strategy


@jax.jit
def formed(members):
  return stack.mapped(
    lambda one: seeded.formed(one, 1, True, leaves.LAYERS), members
  )


def fitness(members):
  return problems.fitness(formed(members))


@functools.cache
def played(**options):
  strategy = make(**options)
  params = strategy.default_params
  members = seeded.still(problems.population())
  state = strategy.init(
    problems.KEY, members, problems.scores(problems.population()), params
  )
  start = jax.tree.map(np.array, state.memory.best[seeded.CENTRE])
  plays = problems.play(strategy, state, MEANS + 2, score=fitness)
  rounds = [(*row, jax.tree.map(np.array, after)) for *row, after in plays]
  return start, rounds


def test_the_best_seeds_live_on_and_their_mean_is_gated():
  start, rounds = played()
  members, scored, before, after = rounds[0]
  assert stack.size(members) == N + 1
  assert members[seeded.CENTRE]['layers']['mlp']['a'].shape[0] == 1
  filled = before.proposal.ids >= 0
  assert filled[:N].all() and not filled[N]
  first = float(before.fitness[0])
  best = np.sort(np.append(scored[:N], first))[::-1][:KEEP]
  np.testing.assert_allclose(after.fitness, best, rtol=1e-6)
  assert first < best[0]
  # Three deviations, and a mean of what is better than the centre.
  scales = np.unique(np.asarray(members[seeded.SCALE])[:N])
  np.testing.assert_allclose(scales, [0.05, 0.1, 0.2], rtol=1e-5)
  kept = after.population
  gate = np.maximum(best - first, 0.0)
  change = low_rank.update(
    jax.vmap(seeded.key_of)({seeded.SEED: kept[seeded.SEED]}),
    jnp.asarray(gate / gate.sum()) * kept[seeded.SCALE][:, 0],
    start,
    1,
    layers=leaves.LAYERS,
  )
  for c in range(MEANS):
    members, scored, before, after = rounds[1 + c]
    assert np.flatnonzero(before.proposal.ids >= 0).tolist() == [N]
    wanted = leaves.map_indexed(
      lambda _, path, x, step, c=c: (
        x + 2**c * noise.root_mean_square(path, x, leaves.LAYERS) * step
      ),
      start,
      change,
    )
    mean = jax.tree.map(lambda leaf: leaf[N], formed(members))
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), mean, wanted
    )
    assert float(after.memory.personal_fitness[c]) == pytest.approx(scored[N])
    assert int(after.memory.personal_ids[c]) == before.proposal.ids[N]
  # Then it proposes nothing, and all may be picked or vote.
  assert not (rounds[-1][2].proposal.ids >= 0).any()
  state = run_state.RunState(rounds[-1][3], *jnp.zeros((3,), jnp.int32))
  found = run_state.best_members(state, 99)
  assert len(found.ids) == KEEP + MEANS
  np.testing.assert_allclose(
    fitness(found.population), found.fitness, rtol=1e-5
  )


def test_without_means_and_where_all_fail_nothing_moves():
  strategy = make(means=0)
  members = seeded.still(problems.population())
  given = problems.scores(problems.population())
  params = strategy.default_params
  state = strategy.init(problems.KEY, members, given, params)
  best = float(state.memory.best_fitness)
  plays = problems.play(
    strategy, state, 2, score=lambda _: jnp.full(N + 1, jnp.nan)
  )
  *_, (_, _, before, after) = plays
  assert not (before.proposal.ids >= 0).any()
  assert after.memory.personal is None
  assert float(after.memory.best_fitness) == best
  assert np.asarray(after.ids >= 0).tolist() == [True] + [False] * (KEEP - 1)


def test_genomes_without_seeds_are_refused():
  with pytest.raises(ValueError, match="expected the space 'seeded'"):
    problems.start(make())
