"""Crossovers that draw: BLX-alpha, SBX, and uniform choice of a parent."""

import jax
import jax.numpy as jnp

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter


def blx(
  parents: jax.Array,
  *,
  key: jax.Array,
  alpha: jax.Array,
  weights: jax.Array,
  form: str,
) -> jax.Array:
  """BLX-alpha (Eshelman and Schaffer, 1993).

  Args:
    parents: (k, ...).
    key: () typed key.
    alpha: () how far beyond the parents, as a share of their range.
    weights: (k,), of the 'clamp' only.
    form: 'sample' draws each element from U(min - alpha I, max + alpha I), I
      the parents' range there. 'clamp', as GENOME's code has it (arXiv
      2503.01155), draws nothing: the normalised weighted sum is cut to those
      bounds, which a convex sum never reaches.
  """
  xs = tensors.unstacked(parents)
  low = high = xs[0]
  for x in xs[1:]:
    low, high = jnp.minimum(low, x), jnp.maximum(high, x)
  beyond = jnp.asarray(alpha, jnp.float32) * (high - low)
  low, high = low - beyond, high + beyond
  if form == 'sample':
    merged = low + (high - low) * draws.uniform(key, low.shape)
  else:
    w = tensors.each(weights, len(xs))
    mean = tensors.weighted(xs, w) / tensors.divisor(tensors.total(w), 1e-8)
    merged = jnp.clip(mean, low, high)
  return merged.astype(parents.dtype)


def sbx(parents: jax.Array, *, key: jax.Array, eta: jax.Array) -> jax.Array:
  """Simulated binary crossover (Deb and Agrawal, 1995).

  Each element is one of the two children m -/+ beta (y - x) / 2 of parents x
  and y with mean m, by chance; 1 is the most likely beta.

  Args:
    parents: (2, ...).
    key: () typed key.
    eta: () index of the distribution; the larger, the nearer to the parents.
  """
  x, y = tensors.unstacked(parents)
  # One draw says both which child and how far.
  u = 2.0 * draws.uniform(key, x.shape)
  side, u = jnp.where(u < 1.0, -0.5, 0.5), u % 1.0
  power = 1.0 / (jnp.asarray(eta, jnp.float32) + 1.0)
  beta = jnp.where(u < 0.5, 2.0 * u, 0.5 / (1.0 - u)) ** power
  return (0.5 * (x + y) + side * beta * (y - x)).astype(parents.dtype)


def uniform_element(parents: jax.Array, *, key: jax.Array) -> jax.Array:
  """Each element from any of the k parents, bits unchanged.

  All parents are equally likely to within 2^-16.
  """
  (number,) = draws.decisions(key, parents.shape[1:], 1)
  child = parents[0]
  for parent in range(1, len(parents)):
    first = -(-parent * draws.STEPS // len(parents))
    child = jnp.where(number >= first, parents[parent], child)
  return child


def uniform_whole(parents: jax.Array, *, key: jax.Array) -> jax.Array:
  """A whole matrix, or layer, from any of the k parents, bits unchanged."""
  parent = jax.random.randint(key, (), 0, len(parents))
  return parents[parent]


BLX = Merge(
  'blx',
  blx,
  'BLX-alpha; GENOME, arXiv 2503.01155',
  (
    takes.WEIGHTS,
    Parameter('alpha', 0.5, 'reach beyond the parents', 0.0, span=(0.0, 2.0)),
    takes.choice('form', 'a draw or a clipped mean', 'sample', 'clamp'),
  ),
)
SBX = Merge(
  'sbx',
  sbx,
  'simulated binary crossover; Deb and Agrawal, 1995',
  (
    Parameter(
      'eta',
      15.0,
      'the larger, the nearer to the parents',
      0.0,
      span=(1.0, 30.0),
    ),
  ),
  parents=(2, 2),
)
_SOURCE = 'uniform crossover'
UNIFORM_ELEMENT = Merge('uniform_element', uniform_element, _SOURCE)
UNIFORM_MATRIX = Merge('uniform_matrix', uniform_whole, _SOURCE, scope='matrix')
UNIFORM_LAYER = Merge('uniform_layer', uniform_whole, _SOURCE, scope='layer')
