"""Parts of a layer in several ways, beside the limits of the device."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import decode_attention
from evojax_llm.engine import decode_kernel
from evojax_llm.models.linear import matmul
from experiments.benchmarks.accelerator_clock import Clock

# Rows of the cache have this share of their columns at least.
_SHORTEST = 0.25
# Tokens of the products.
_TOKENS = 1 << 15
# Results are numbers of about 1, the largest above 8.
_TOLERANCE = {'bfloat16': 0.1, 'float32': 1e-3}
_REPEATS, _CALLS = 5, 10
# Seconds that a case may take, compiling included.
_SECONDS = 5.0

# Name, function of arrays, what is shared and what each member has.
_Case = tuple[str, Callable[..., jax.Array], tuple]


def layer(bench: Any, clock: Clock, found: dict[str, Any]) -> None:
  """Times parts of a layer for all members, and compares what they give.

  Args:
    bench: the `accelerator_parts.Bench`.
    clock: has the time, and keeps errors of a kernel that does not compile.
    found: rows by name.
  """
  products = 2 * _tokens(bench) * bench.config.embed_dim * _out(bench)
  for cases, moved, computed in (
    (_attention, *_cost_of_attention(bench)),
    (_product, 0, products),
    (_alone, 0, products),
  ):
    expected = None
    for name, function, given in cases(bench):
      if not clock.fits(_SECONDS if expected is not None else 0):
        clock.skip(f'layer: {name}', 'no time is left')
        continue
      try:
        program = jax.jit(function)
        result = np.asarray(program(*given), np.float32)
        seconds = _seconds(functools.partial(program, *given))
        expected = result if expected is None else expected
        difference = float(np.abs(result - expected).max())
        if not difference <= _TOLERANCE[bench.dtype.name]:
          raise ValueError(f'differs from the first by {difference}')
      except Exception as error:
        clock.fail(f'layer: {name}', error)
        continue
      row = {'seconds': seconds, 'difference': difference}
      if moved:
        row['bytes_per_second'] = moved / seconds
        if 'copy' in bench.rates:
          row['copy_share'] = moved / seconds / bench.rates['copy']
      elif 'product' in bench.rates:
        row['rate_share'] = computed / seconds / bench.rates['product']
      found[name] = row
      shown = ', '.join(f'{key} {value:.4g}' for key, value in row.items())
      clock.say(f'layer: {name}: {shown}')
      clock.keep()


def _seconds(run: Callable[[], jax.Array]) -> float:
  """Seconds of a call, the best of some rows of calls."""
  seconds = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    jax.block_until_ready([run() for _ in range(_CALLS)])
    seconds.append((time.perf_counter() - start) / _CALLS)
  return min(seconds)


def _held(bench: Any) -> np.ndarray:
  """Keys of each row (P, B) of a cache, in a step of decoding."""
  columns = 60 + bench.new_tokens
  return np.random.default_rng(0).integers(
    int(_SHORTEST * columns), columns + 1, (bench.members, bench.items)
  )


def _cost_of_attention(bench: Any) -> tuple[float, float]:
  """Bytes of the keys and values that rows see, and no operations."""
  c = bench.config
  keys = _held(bench).sum() * c.num_kv_heads * c.head_dim
  return 2 * keys * bench.dtype.itemsize, 0


def _attention(bench: Any) -> Iterator[_Case]:
  """Attention of a step of decoding: plain, and the kernel by its blocks."""
  c, dtype, held = bench.config, bench.dtype, _held(bench)
  columns = 60 + bench.new_tokens
  groups = c.num_heads // c.num_kv_heads
  q, k, v = (
    jax.random.normal(
      jax.random.key(i), (*held.shape, c.num_kv_heads, n, c.head_dim), dtype
    )
    for i, n in enumerate((groups, columns, columns))
  )
  column = np.arange(columns, dtype=np.int32)
  positions = jnp.asarray(np.where(column < held[..., None], column, -1))
  given = q, k, v, positions, jnp.asarray(held - 1, jnp.int32)

  def case(
    name: str, implementation: str, blocks: decode_kernel.Blocks | None = None
  ) -> _Case:
    attend = functools.partial(
      decode_attention.decode_attention,
      scale=c.query_pre_attn_scalar**-0.5,
      softcap=c.attn_softcap,
      implementation=implementation,
      blocks=blocks,
    )
    return name, jax.vmap(attend), given

  yield case('attention, plain', 'plain')
  on_gpu = jax.default_backend() == 'gpu'
  chosen = decode_kernel.default_blocks(c.head_dim, dtype)
  name = f'attention, {chosen.columns} columns, {chosen.warps} warps, '
  name += f'{chosen.stages} stages' + ', exact' * chosen.exact
  yield case(name, 'pallas' if on_gpu else 'interpreted', chosen)


def _tokens(bench: Any) -> int:
  return bench.members * (8 if bench.small else _TOKENS // bench.members)


def _out(bench: Any) -> int:
  return bench.config.ffn_dim


def _product(bench: Any) -> Iterator[_Case]:
  """A projection and the low rank of each member, by type and form."""
  c, dtype, members = bench.config, bench.dtype, bench.members
  rank = bench.rank

  def draw(seed: int, *shape: int) -> jax.Array:
    scale = shape[-2] ** -0.5
    return scale * jax.random.normal(jax.random.key(seed), shape, dtype)

  x = jax.random.normal(
    jax.random.key(0), (members, _tokens(bench) // members, c.embed_dim), dtype
  )
  w = draw(1, c.embed_dim, _out(bench))
  a, b = (
    draw(2, members, c.embed_dim, rank),
    draw(3, members, rank, _out(bench)),
  )

  def rounded(x, w):
    y = jnp.einsum('...i,io->...o', x, w, preferred_element_type=jnp.float32)
    return y.astype(x.dtype)

  def added(product):
    def one(w, x, a, b):
      return product(x, w) + product(product(x, a), b)

    return jax.vmap(one, in_axes=(None, 0, 0, 0))

  def together(w, x, a, b):
    """One product with the factors of all members behind the weights."""
    own = jnp.eye(members, dtype=x.dtype)
    low = jnp.einsum('pti,pir,pq->ptqr', x, a, own).reshape(*x.shape[:2], -1)
    return matmul(
      jnp.concatenate([x, low], axis=-1),
      jnp.concatenate([w, b.reshape(-1, b.shape[-1])]),
    )

  def beside(w, x, a, b):
    """One product a member, with its factors behind a copy of the weights."""

    def one(w, x, a, b):
      low = jnp.concatenate([x, matmul(x, a)], axis=-1)
      return matmul(low, jnp.concatenate([w, b]))

    return jax.vmap(one, in_axes=(None, 0, 0, 0))(w, x, a, b)

  yield 'product and low rank', added(matmul), (w, x, a, b)
  yield 'the same, f32 between', added(rounded), (w, x, a, b)
  yield 'the same, in one product', together, (w, x, a, b)
  yield 'the same, in one product a member', beside, (w, x, a, b)


def _alone(bench: Any) -> Iterator[_Case]:
  """The projection without what members add."""
  w, x, *_ = next(_product(bench))[-1]
  yield 'product alone', lambda w, x: matmul(x, w), (w, x)
