"""One new token a row over a cache: against a softmax over what it sees."""

import functools

import jax
import jaxlib
import numpy as np
import pytest

from evojax_llm.engine import decode_kernel
from evojax_llm.engine.decode_attention import decode_attention

_SCALE = 0.3


def _case(
  seed=0, rows=3, heads=2, groups=2, columns=40, prefix=0, width=8, dtype='f4'
):
  """Arguments of `decode_attention`: rings with gaps, the last row idle."""
  draw = np.random.default_rng(seed)

  def normal(*shape):
    return draw.normal(size=shape).astype(dtype)

  # Row r holds the positions of its tokens from column `begin` on, round the
  # ring; what is behind them is empty.
  positions = np.full((rows, columns), -1, np.int32)
  query = np.full(rows, -1, np.int32)
  for row in range(rows - 1):
    held = int(draw.integers(1, columns + 1))
    begin = int(draw.integers(columns))
    for i in range(held):
      positions[row, (begin + i) % columns] = prefix + i
    query[row] = prefix + held - 1 if row else prefix + held // 2
  k = normal(rows, heads, columns, width)
  v = normal(rows, heads, columns, width)
  first = None
  if prefix:
    # The first column of a prefix may be padding.
    at = np.arange(-1, prefix, dtype=np.int32)
    first = (
      normal(heads, prefix + 1, width),
      normal(heads, prefix + 1, width),
      at,
    )
  return (normal(rows, heads, groups, width), k, v, positions, query), first


def _expected(arguments, prefix, window=None, softcap=None):
  """The same, row after row and head after head, in f64."""
  q, k, v, positions, query = arguments
  out = np.zeros(q.shape)
  for row, head, group in np.ndindex(q.shape[:3]):
    keys, values, at = k[row, head], v[row, head], positions[row]
    if prefix is not None:
      keys = np.concatenate([prefix[0][head], keys])
      values = np.concatenate([prefix[1][head], values])
      at = np.concatenate([prefix[2], at])
    seen = (at >= 0) & (at <= query[row])
    if window is not None:
      seen &= query[row] - at < window
    if not seen.any():
      continue
    scores = keys[seen].astype('f8') @ q[row, head, group].astype('f8') * _SCALE
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max())
    out[row, head, group] = weights @ values[seen] / weights.sum()
  return out


CASES = {
  'plain': ({}, {}),
  'soft cap and window': ({}, {'softcap': 0.5, 'window': 7}),
  'prefix': ({'prefix': 5}, {}),
  'all': ({'prefix': 20, 'seed': 1}, {'softcap': 2.0, 'window': 9}),
}


@pytest.mark.parametrize('case', CASES)
def test_each_query_sees_what_it_may(case):
  given, options = CASES[case]
  arguments, prefix = _case(**given)
  result = decode_attention(*arguments, prefix=prefix, scale=_SCALE, **options)
  np.testing.assert_allclose(
    result, _expected(arguments, prefix, **options), atol=2e-6
  )


@pytest.mark.parametrize('implementation', ['plain', 'interpreted'])
def test_a_population_is_its_members(implementation):
  # Three blocks a row at most, and rows that begin and end within one.
  blocks = decode_kernel.Blocks(columns=16)
  cases = [_case(seed=seed, prefix=3) for seed in range(2)]
  options = {'window': 8, 'softcap': 0.5}
  arguments, prefixes = jax.tree.map(lambda *x: np.stack(x), *cases)

  def attend(own, prefix, window):
    return decode_attention(
      *own,
      prefix=prefix,
      scale=_SCALE,
      window=window,
      softcap=options['softcap'],
      implementation=implementation,
      blocks=blocks,
    )

  result = jax.jit(jax.vmap(attend, in_axes=(0, 0, None)))(
    arguments, prefixes, options['window']
  )
  for member, (own, prefix) in enumerate(cases):
    np.testing.assert_allclose(
      result[member], _expected(own, prefix, **options), atol=2e-6
    )


def test_the_kernel_takes_any_width_and_number_of_heads():
  arguments, _ = _case(seed=3, groups=17, width=6, columns=33, heads=1)
  attend = functools.partial(
    decode_attention,
    scale=_SCALE,
    implementation='interpreted',
    blocks=decode_kernel.Blocks(columns=16, exact=False),
  )
  np.testing.assert_allclose(
    jax.jit(attend)(*arguments), _expected(arguments, None), atol=2e-6
  )


@pytest.mark.skipif(
  tuple(map(int, jaxlib.__version__.split('.'))) > (0, 10, 2),
  reason='lowering for a GPU asks for one',
)
@pytest.mark.parametrize(
  'dtype, width, groups', [('bfloat16', 256, 2), ('float32', 80, 8)]
)
def test_the_kernel_lowers_for_a_gpu(dtype, width, groups):
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (3, *x.shape), dtype if x.dtype == np.float32 else x.dtype
    ),
    _case(width=width, groups=groups, columns=260, prefix=30),
  )

  def attend(own, prefix):
    return decode_attention(
      *own, prefix=prefix, scale=1.0, softcap=50.0, implementation='pallas'
    )

  lowered = (
    jax.jit(jax.vmap(attend)).trace(*shapes).lower(lowering_platforms=('cuda',))
  )
  assert 'xla.gpu.triton' in lowered.as_text()


def test_an_unknown_implementation_is_refused():
  arguments, _ = _case()
  with pytest.raises(ValueError, match="'cuda'; expected one of plain"):
    decode_attention(*arguments, scale=1.0, implementation='cuda')
