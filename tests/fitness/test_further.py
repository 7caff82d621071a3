import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.fitness import further
from evojax_llm.models import expression


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def test_distance_is_the_norm_of_what_is_changed():
  kernel = normal(0, 2, 5, 4)
  factors = {'a': normal(1, 2, 5, 3), 'b': normal(2, 2, 3, 4)}
  params = {
    'norm': {'scale': normal(3, 7)},
    'layers': {'q': {'kernel': kernel, **factors}, 'k': {'kernel': kernel}},
  }
  gates = expression.Gates({'layers': {'q': normal(4, 2, 3)}})
  members = [
    expression.LowRank({'layers': {'q': factors}}),
    gates,
    expression.as_low_rank(gates, params),
    expression.LowRank(
      {'layers': {'q': jax.tree.map(jnp.zeros_like, factors)}}
    ),
    expression.Weights(jax.tree.map(lambda leaf: leaf + 0.5, params)),
  ]

  @jax.jit
  def both(members, params):
    folded = [expression.fold(params, member) for member in members]
    # Factors are folded into kernels, and are gone with it.
    changes = [model['layers']['q']['kernel'] - kernel for model in folded[:-1]]
    changes.append(jax.tree.map(jnp.subtract, folded[-1], params))
    return [expression.distance(m, params) for m in members], changes

  found, changes = both(members, params)
  for distance, change in zip(found, changes, strict=True):
    squares = [np.square(x, dtype=np.float64) for x in jax.tree.leaves(change)]
    wanted = np.sqrt(sum(map(np.sum, squares)))
    assert distance == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
  'text, names',
  [('', ()), (' distance, length ', ('distance', 'length'))],
)
def test_objectives_are_named_with_commas(text, names):
  assert further.parse(text) == names


def test_members_that_fail_have_no_objectives():
  class Found:
    lengths = np.float32([2.0, 4.0])
    task_scores = np.float32([[0.5, np.nan], [0.5, 1.0]])

  found = further.columns(('length',), None, None, None, [0, 1], Found())
  np.testing.assert_array_equal(found, [[np.nan], [4.0]])
