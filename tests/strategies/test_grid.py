import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import gates
from evojax_llm.strategies import base
from evojax_llm.strategies import registry
from tests.genomes import experts
from tests.strategies import problems

SPACE = gates.GateSpace(experts.adapter_set(3), experts.base())


@pytest.mark.parametrize(
  ('along', 'expected'),
  (
    ('sum', [[-1.0] * 3, [0.0] * 3, [1.0] * 3]),
    ('each', np.concatenate([np.outer((-1, 0, 1), row) for row in np.eye(3)])),
  ),
)
def test_every_point_is_scored_once_and_then_none(along, expected):
  options = {'along': along, 'low': -1.0, 'high': 1.0, 'points': 3}
  strategy = registry.make_strategy('grid', 2, SPACE, **options)
  members = {gates.GATES: jnp.eye(3)[:2]}

  def score(members):
    return members[gates.GATES] @ jnp.asarray([0.1, 0.2, 0.4])

  state = strategy.init(
    problems.KEY,
    members,
    base.Scores(score(members)),
    strategy.default_params,
  )
  points, ids = [], []
  for members, _, before, after in problems.play(
    strategy, state, 6, score=score
  ):
    filled = before.proposal.filled
    points += list(np.asarray(members[gates.GATES])[filled])
    ids += before.proposal.ids[filled].tolist()
    np.testing.assert_allclose(
      score(after.population), after.fitness, rtol=1e-6
    )
    assert (np.asarray(after.ids) >= 0).all()
    state = after
  np.testing.assert_allclose(points, expected, atol=1e-6)
  assert len(set(ids)) == len(ids)
  best = 0.7 if along == 'sum' else 0.4
  assert float(state.memory.best_fitness) == pytest.approx(best)


def test_a_grid_needs_a_space():
  with pytest.raises(ValueError, match='no space'):
    registry.make_strategy('grid', 2)
