"""Merges along great circles: of two parents, and means of more.

Directions are interpolated by angle, lengths linearly or with the direction.
Where directions are (anti)parallel or a parent is zero there is no one great
circle; what happens then is said at each function, and is never NaN.
"""

import jax
from jax import lax
import jax.numpy as jnp

from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges import tensors
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter
from evojax_llm.options import Option


def _angle_weights(cosine, t, is_linear):
  """Weights of both parents at t; (1 - t, t) where `is_linear`."""
  angle = jnp.arccos(jnp.where(is_linear, 0.0, jnp.clip(cosine, -1.0, 1.0)))
  sine = jnp.sin(angle)
  return (
    jnp.where(is_linear, 1.0 - t, jnp.sin((1.0 - t) * angle) / sine),
    jnp.where(is_linear, t, jnp.sin(t * angle) / sine),
  )


def _cosine(x, y, axis=None, least=1e-8):
  """Cosine of two tensors; a length not above `least` counts as one."""
  (xx, xy), (_, yy) = tensors.inner_products([x, y], axis)
  lengths = [tensors.divisor(jnp.sqrt(s), least) for s in (xx, yy)]
  return xy / (lengths[0] * lengths[1])


def slerp(parents: jax.Array, *, t: jax.Array) -> jax.Array:
  """Spherical interpolation over the flattened tensor, parent one at t = 0.

  EvoMerge's crossover (arXiv 2402.00070). Where abs(cos) > 0.9995, nearly
  (anti)parallel, (1 - t) x1 + t x2; a zero parent is at right angles to the
  other.
  """
  x, y = tensors.unstacked(parents)
  t = jnp.asarray(t, jnp.float32)
  cosine = _cosine(x, y)
  one, two = _angle_weights(cosine, t, jnp.abs(cosine) > 0.9995)
  return (one * x + two * y).astype(parents.dtype)


def nuslerp(
  parents: jax.Array,
  base: jax.Array | None = None,
  *,
  weights: jax.Array,
  axis: int,
  span: str,
) -> jax.Array:
  """Spherical interpolation at t = w2 / (w1 + w2), of deltas if with a base.

  Exactly (anti)parallel vectors are interpolated linearly; where the weights
  cancel (their sum within 1e-6 of zero), t is one half.

  Args:
    parents: (2, ...).
    base: (...) or None.
    weights: (2,).
    axis: the axis that runs along a row.
    span: what is one vector: the whole 'tensor', a 'row' (one output's inputs;
      mergekit's flatten=False), or a 'column' (its row_wise=True). A vector, or
      a number, is its own row and its own column.
  """
  first, second = tensors.each(weights, 2)
  weight = first + second
  cancels = jnp.abs(weight) < 1e-6
  t = jnp.where(cancels, 0.5, second / jnp.where(cancels, 1.0, weight))
  x, y = tensors.vectors(parents, base)
  row = axis if x.ndim else None
  vector = {'tensor': None, 'row': row, 'column': _other_axis(x, row)}[span]
  cosine = jnp.clip(_cosine(x, y, vector, 1e-7), -1.0, 1.0)
  # In f32 the test is whether the cosine is one or minus one to rounding.
  one, two = _angle_weights(cosine, t, 1.0 - jnp.square(cosine) <= 1e-16)
  return tensors.child(parents, base, one * x + two * y)


def _other_axis(x, axis):
  """The axis across rows; the same where there is only one."""
  return axis if axis is None or x.ndim < 2 else {-1: -2, -2: -1}[axis]


def multislerp(
  parents: jax.Array,
  base: jax.Array | None = None,
  *,
  weights: jax.Array,
  eps: jax.Array,
  normalize: str,
) -> jax.Array:
  """Barycentric interpolation in the tangent space at the weighted mean.

  With u_k = x_k / (|x_k| + eps) and m the direction of sum w_k u_k, the child
  is m sum w_k |x_k|. The released formula adds the exponential of sum w_k (u_k
  - <u_k, m> m), which is zero by the definition of m. Where the directions
  cancel there is no m; the weighted sum is used (mergekit does so for two
  parents, and stops for more).

  Args:
    parents: (k, ...).
    base: (...) or None; with it, of the deltas.
    weights: (k,).
    eps: () added to lengths. A mean no longer than this, or than 1e-6, has
      cancelled.
    normalize: 'weights' divides the weights by their sum (by one if zero);
      'none' takes them as given.
  """
  w = tensors.shares(weights, len(parents), normalize)
  eps = jnp.asarray(eps, jnp.float32)
  xs = tensors.vectors(parents, base)
  lengths = [jnp.sqrt(square) for square in tensors.sums([x * x for x in xs])]
  shares = [
    weight / tensors.divisor(length + eps)
    for weight, length in zip(w, lengths, strict=True)
  ]
  mean = tensors.weighted(xs, shares)
  mean_length = jnp.sqrt(tensors.sums([mean * mean])[0])
  # Below 1e-6 nothing but rounding is left.
  cancels = mean_length < jnp.maximum(eps, 1e-6)
  scale = tensors.weighted(lengths, w) / jnp.where(cancels, 1.0, mean_length)
  shares = [
    jnp.where(cancels, weight, share * scale)
    for weight, share in zip(w, shares, strict=True)
  ]
  return tensors.child(parents, base, tensors.weighted(xs, shares))


def karcher(
  parents: jax.Array, *, weights: jax.Array, tol: jax.Array, iterations: int
) -> jax.Array:
  """Mean on the sphere (Karcher, arXiv 2603.04972), at the mean length.

  From the normalised mean direction, repeatedly the weighted mean of the
  logarithms there and the exponential back. Parents no longer than `tol` have
  no direction and count for the length only; if no parent has one, the result
  is zero. Directions that cancel start from the first, and one opposite to the
  mean, from where no great circle is shortest, does not pull. The weights (k,)
  are divided by their sum (by one if zero).
  """
  xs = tensors.unstacked(parents)
  tol = jnp.asarray(tol, jnp.float32)
  w = jnp.stack(tensors.each(weights, len(xs)))
  w = w / tensors.divisor(jnp.sum(w), 1e-8)
  products = jnp.stack([jnp.stack(row) for row in tensors.inner_products(xs)])
  norms = jnp.sqrt(jnp.diagonal(products))
  valid = norms > tol
  lengths = jnp.where(valid, norms, 1.0)
  areas = tensors.divisor(lengths[:, None] * lengths[None, :])
  gram = jnp.where(valid[:, None] & valid[None, :], products / areas, 0.0)
  share = jnp.where(valid, w, 0.0)
  share = share / tensors.divisor(jnp.sum(share))
  length = jnp.sqrt(jnp.maximum(_form(gram, share, share), 0.0))
  first = jnp.arange(len(xs)) == jnp.argmax(valid)
  # Coordinates tell a length of zero to the root of their rounding only.
  cancels = length < jnp.maximum(tol, 1e-3)
  start = share / _off(length, cancels)
  start = jnp.where(cancels, first.astype(jnp.float32), start)

  def step(_, mean):
    # Coordinates in the directions of the parents, so that a step is k^2 work.
    dots = jnp.clip(_apply(gram, mean), -1.0, 1.0)
    angles = jnp.where(valid, jnp.arccos(dots), 0.0)
    near = jnp.sin(angles) < tol
    pull = share * jnp.where(near, 0.0, angles / jnp.sin(_off(angles, near)))
    tangent = pull - jnp.sum(pull * dots) * mean
    size = jnp.sqrt(jnp.maximum(_form(gram, tangent, tangent), 0.0))
    done = size < tol
    moved = jnp.cos(size) * mean + jnp.sin(size) * tangent / _off(size, done)
    length = jnp.sqrt(jnp.maximum(_form(gram, moved, moved), 0.0))
    moved = moved / jnp.where(length > tol, length, 1.0)
    return jnp.where(done, mean, moved)

  mean = lax.fori_loop(0, iterations, step, start)
  scale = jnp.sum(w * norms)
  mixed = jnp.where(valid, scale * mean / lengths, 0.0)
  return tensors.weighted(xs, list(mixed)).astype(parents.dtype)


def _off(value, where):
  """The value, or one where it must not be divided by."""
  return jnp.where(where, 1.0, value)


def _apply(matrix, vector):
  # No matrix product: accelerators would round its operands.
  return jnp.sum(matrix * vector, axis=-1)


def _form(matrix, left, right):
  return jnp.sum(left * _apply(matrix, right))


SLERP = Merge(
  'slerp', slerp, 'EvoMerge, arXiv 2402.00070', (takes.T,), parents=(2, 2)
)
NUSLERP = Merge(
  'nuslerp',
  nuslerp,
  'mergekit',
  (
    takes.WEIGHTS,
    takes.choice('span', 'what is one vector', 'tensor', 'row', 'column'),
  ),
  parents=(2, 2),
)
MULTISLERP = Merge(
  'multislerp',
  multislerp,
  'mergekit',
  (
    takes.WEIGHTS,
    Parameter('eps', 1e-8, 'added to lengths', 0.0, span=(0.0, 1e-4)),
    takes.NORMALIZE,
  ),
)
KARCHER = Merge(
  'karcher',
  karcher,
  'arXiv 2603.04972',
  (
    takes.WEIGHTS,
    Parameter(
      'tol', 1e-5, 'lengths and angles below are zero', 0.0, span=(0.0, 1e-2)
    ),
    Option('iterations', 10, 'most steps', low=1, kind=int),
  ),
)
