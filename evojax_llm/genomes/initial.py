"""Initial populations, made of experts by a list of recipes.

Everything but noise is linear in the experts, factor by factor: a member is
A = sum_n u_n A_n and B = sum_n w_n B_n, with u = w but for members whose mass
is chosen (the zero adapter, the scaled average). A population is thus worked
out as two (P, N) tables first, and made in one pass over the experts.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import lookup
from evojax_llm.operators import mutation
from evojax_llm.population import keys
from evojax_llm.population import leaves
from evojax_llm.population import lineage
from evojax_llm.population import stack


@dataclasses.dataclass(frozen=True)
class Row:
  """How one member is made.

  Attributes:
    operator: what made it, for the lineage.
    first: (N,) f64 weights u of the experts' A, and of all other leaves.
    second: (N,) f64 weights w of the experts' B.
    parents: indices of up to two parents, -1 where there is none: experts
      0..N-1, then members of this population as N + position.
    sigma: relative deviation of Gaussian noise put on it.
  """

  operator: str
  first: np.ndarray
  second: np.ndarray
  parents: tuple[int, int] = (lineage.NO_MEMBER, lineage.NO_MEMBER)
  sigma: float = 0.0


@dataclasses.dataclass(frozen=True)
class Initial:
  """An initial population and where it comes from.

  Leaves (P, ...) in the experts' types; of each member the name of its
  operator, its parents (P, 2) i32 as in Row, and how it was made.
  """

  population: stack.Population
  operators: tuple[str, ...]
  parents: np.ndarray
  rows: tuple[Row, ...]


# A recipe entry: its name, or its name with options.
Entry = str | tuple[str, Mapping[str, Any]]


def make_initial(
  experts: stack.Population,
  recipe: Sequence[Entry],
  size: int,
  seed_key: jax.Array,
) -> Initial:
  """Makes P members by a list of recipes, in order; too many are cut off at P.

  The last entry fills what is left, so it must be one without a fixed number
  ('pairs', 'interpolants', 'extrapolants', 'noise', 'uniform') unless the
  others make P already.

  Args:
    experts: leaves (N, ...).
    recipe: entries of RECIPES, for example ('experts', 'zero',
      ('scaled_average', {'factor': 3.0}), 'extrapolants').
    size: P.
    seed_key: () typed key of the run.

  Raises:
    ValueError: an entry or its options are unknown, there are too few experts,
      or the recipe ends before P.
  """
  rows = make_rows(stack.size(experts), recipe, size, seed_key)
  if any(row.operator in OF_SPACE for row in rows):
    raise ValueError(
      f'Got the recipe {tuple(recipe)} for experts alone; expected a space, '
      'whose `initial` knows its centre and its draws.'
    )
  return finish(rows, combine_rows(experts, rows), seed_key)


def combine_rows(
  experts: stack.Population, rows: Sequence[Row]
) -> stack.Population:
  """Makes the members of rows; see `combine`."""
  first, second = ([getattr(r, n) for r in rows] for n in ('first', 'second'))
  return combine(experts, np.stack(first), np.stack(second))


def finish(
  rows: Sequence[Row], population: stack.Population, seed_key: jax.Array
) -> Initial:
  """Puts the noise on members (P, ...) whose rows ask for it."""
  sigma = np.asarray([row.sigma for row in rows], np.float32)
  if np.any(sigma):
    indices = np.flatnonzero(sigma)
    noisy = jax.vmap(
      lambda key, genome, s: mutation.gaussian(
        key, genome, s, 1.0, rounding='stochastic', layers=leaves.LAYERS
      )
    )(
      keys.keys_for(seed_key, 0, jnp.asarray(indices, jnp.int32), 'noise'),
      stack.take(population, indices),
      jnp.asarray(sigma[indices]),
    )
    population = jax.tree.map(
      lambda leaf, new: leaf.at[indices].set(new.astype(leaf.dtype)),
      population,
      noisy,
    )
  return Initial(
    population=population,
    operators=tuple(row.operator for row in rows),
    parents=np.asarray([row.parents for row in rows], np.int32),
    rows=tuple(rows),
  )


def combine(
  experts: stack.Population,
  first: np.ndarray,
  second: np.ndarray,
  dtype: Any = None,
) -> stack.Population:
  """Members (P, ...) as weighted sums of experts, B weighed apart from the
  rest.

  `first` (P, N) weighs all leaves but B, `second` (P, N) B. Summed in f32, in
  the experts' types or in `dtype`; a member that is one expert alone is that
  bit for bit.
  """
  index = np.argmax(first, axis=1)
  one_hot = np.eye(stack.size(experts))[index]
  alone = ((first == one_hot) & (second == one_hot)).all(axis=1)
  return _combine(
    experts,
    jnp.asarray(first, jnp.float32),
    jnp.asarray(second, jnp.float32),
    jnp.asarray(np.where(alone, index, lineage.NO_MEMBER), jnp.int32),
    dtype,
  )


@functools.partial(jax.jit, static_argnames='dtype')
def _combine(experts, first, second, copied, dtype=None):
  def mix(index, path, leaf):
    del index
    weights = second if leaves.is_second_factor(path) else first
    # An expert that is not finite spoils what it is in, and nothing else.
    values, finite = leaf.astype(jnp.float32), jnp.isfinite(leaf)
    mixed = jnp.einsum(
      'pn,n...->p...',
      weights,
      jnp.where(finite, values, 0),
      precision=jax.lax.Precision.HIGHEST,
    ).astype(dtype or leaf.dtype)
    broken = ~finite.reshape(len(leaf), -1).all(axis=1)
    spoilt = ((weights != 0) & broken).any(axis=1)
    mixed = stack.select(spoilt, jnp.full_like(mixed, jnp.nan), mixed)
    # A matrix product may round even a sum of one term; a copy may not.
    copies = leaf[jnp.maximum(copied, 0)].astype(mixed.dtype)
    return stack.select(copied >= 0, copies, mixed)

  return leaves.map_indexed(mix, experts)


def random_mix(
  key: jax.Array,
  num_experts: int,
  concentration: float = 1.0,
  low: float = 0.0,
  high: float = 4.0,
) -> tuple[jax.Array, jax.Array]:
  """Draws a mix (N,) f32 ~ Dirichlet and its mass () f32 ~ U(low, high)."""
  mix_key, mass_key = jax.random.split(key)
  mix = jax.random.dirichlet(
    mix_key, jnp.full((num_experts,), concentration, jnp.float32)
  )
  return mix, jax.random.uniform(mass_key, (), jnp.float32, low, high)


def sum_experts(
  experts: stack.Population,
  first: jax.Array,
  second: jax.Array,
  dtype: Any = None,
) -> stack.Genome:
  """Returns one sum of experts, weights (N,), as `combine` does for many."""
  none = jnp.full((1,), lineage.NO_MEMBER, jnp.int32)
  made = _combine(experts, first[None], second[None], none, dtype)
  return jax.tree.map(lambda leaf: leaf[0], made)


def make_rows(
  num_experts: int, recipe: Sequence[Entry], size: int, seed_key: jax.Array
) -> list[Row]:
  """Returns the rows of `make_initial` without making members."""
  if size < 1:
    raise ValueError(f'Got a population of {size}; expected at least one.')
  rows: list[Row] = []
  for entry in recipe:
    try:
      name, options = (entry, {}) if isinstance(entry, str) else entry
    except (TypeError, ValueError):
      raise ValueError(
        f'Got the entry {entry!r} of a recipe; expected a name, or a pair of a '
        "name and options such as ('noise', {'sigma': 0.1})."
      ) from None
    make = lookup.find(name, RECIPES, 'recipe')
    if len(rows) >= size:
      break
    draw = Draw(seed_key, num_experts, tuple(rows), size - len(rows))
    known = list(inspect.signature(make).parameters)[1:]
    if not set(options) <= set(known):
      raise ValueError(
        f'Got options {dict(options)} for recipe {name!r}; expected some of '
        f'{known}.'
      )
    rows += make(draw, **options)
  if len(rows) < size:
    raise ValueError(
      f'The recipe {tuple(recipe)} makes {len(rows)} members out of '
      f"{num_experts} experts; expected {size}. End it with 'extrapolants' or "
      'another entry that fills up, or ask for fewer members.'
    )
  return rows[:size]


@dataclasses.dataclass(frozen=True)
class Draw:
  """Inputs of a recipe: experts, the rows so far, and how many are missing."""

  seed_key: jax.Array
  num_experts: int
  rows: tuple[Row, ...]
  missing: int

  def uniform(self, position: int, purpose: str, count: int = 1) -> np.ndarray:
    """(count,) draws in [0, 1) of the member at a position."""
    key = keys.key_for(self.seed_key, 0, position, purpose)
    return np.asarray(jax.random.uniform(key, (count,), jnp.float32), float)

  def expert(self, index: int) -> Row:
    """Returns the row of a copy of one expert."""
    weights = np.eye(self.num_experts)[index]
    return Row('expert', weights, weights, (index, lineage.NO_MEMBER))


def _experts(draw: Draw) -> list[Row]:
  """The N experts themselves."""
  return [draw.expert(n) for n in range(draw.num_experts)]


def expert_pairs(
  num_experts: int, count: int, seed_key: jax.Array
) -> list[tuple[int, int]]:
  """GENOME's pairs: all unordered ones, shuffled, repeated beyond their number.

  Raises:
    ValueError: there are fewer than two experts.
  """
  if num_experts < 2:
    raise ValueError(
      f'Got {num_experts} experts; expected at least two to make pairs.'
    )
  pairs = list(itertools.combinations(range(num_experts), 2))
  key = keys.key_for(seed_key, 0, lineage.NO_MEMBER, 'pairs')
  order = np.asarray(jax.random.permutation(key, len(pairs)))
  return [pairs[order[i % len(pairs)]] for i in range(count)]


def _pairs(draw: Draw) -> list[Row]:
  """Convex pairs with random normalised weights u = U1 / (U1 + U2)."""
  rows = []
  pairs = expert_pairs(draw.num_experts, draw.missing, draw.seed_key)
  for position, (a, b) in enumerate(pairs, start=len(draw.rows)):
    u = draw.uniform(position, 'pair weights', 2) + 1e-12
    weights = np.zeros(draw.num_experts)
    weights[[a, b]] = u / u.sum()
    rows.append(Row('pair', weights, weights, (a, b)))
  return rows


def _between(name: str, low: float, high: float) -> Callable[..., list[Row]]:
  """Children t x_a + (1 - t) x_b of a list that grows by them."""

  def make(draw: Draw, low: float = low, high: float = high) -> list[Row]:
    # Before the first member, experts that are no members are the parents.
    offset = draw.num_experts
    pool = [(offset + i, row) for i, row in enumerate(draw.rows)]
    pool = pool or [(n, row) for n, row in enumerate(_experts(draw))]
    if len(pool) < 2:
      raise ValueError(
        f'Got {len(pool)} possible parents for {name!r}; expected at least two.'
      )
    rows = []
    for position in range(len(draw.rows), len(draw.rows) + draw.missing):
      first, second, t = draw.uniform(position, name, 3)
      a = int(first * len(pool))
      b = (a + 1 + int(second * (len(pool) - 1))) % len(pool)
      t = low + (high - low) * t
      (index_a, row_a), (index_b, row_b) = pool[a], pool[b]
      row = Row(
        name.removesuffix('s'),
        t * row_a.first + (1 - t) * row_b.first,
        t * row_a.second + (1 - t) * row_b.second,
        (index_a, index_b),
      )
      rows.append(row)
      pool.append((offset + position, row))
    return rows

  return make


def _scaled_average(draw: Draw, factor: float = 3.0) -> list[Row]:
  """The experts' mean, its B multiplied by a factor."""
  mean = np.full(draw.num_experts, 1.0 / draw.num_experts)
  return [Row('scaled_average', mean, mean * factor)]


def _average(draw: Draw) -> list[Row]:
  """The experts' mean."""
  (row,) = _scaled_average(draw, factor=1.0)
  return [dataclasses.replace(row, operator='average')]


def _averages(draw: Draw) -> list[Row]:
  """The experts' mean, as often as there are members left."""
  return _average(draw) * draw.missing


def _zero(draw: Draw) -> list[Row]:
  """The base: the experts' mean A, which is theirs if they share it, and B 0.

  With A zero as well, steps towards it would lose the shared A.
  """
  (row,) = _scaled_average(draw, factor=0.0)
  return [dataclasses.replace(row, operator='zero')]


def _noise(draw: Draw, sigma: float = 0.1) -> list[Row]:
  """Copies of the experts in turn, with noise relative to each matrix."""
  rows = [draw.expert(i % draw.num_experts) for i in range(draw.missing)]
  return [
    dataclasses.replace(row, operator='noise', sigma=sigma) for row in rows
  ]


def _uniform(draw: Draw, low: float = -1.0, high: float = 1.0) -> list[Row]:
  """A weight ~ U(low, high) for every expert."""
  rows = []
  for position in range(len(draw.rows), len(draw.rows) + draw.missing):
    chances = draw.uniform(position, 'uniform', draw.num_experts)
    weights = low + (high - low) * chances
    rows.append(Row('uniform', weights, weights))
  return rows


def _centre(draw: Draw, members: int | None = None) -> list[Row]:
  """The middle of the space's bounds; as often as there are members left."""
  return _of_space(draw, 'centre', members)


def _random(draw: Draw, members: int | None = None) -> list[Row]:
  """Draws of the space."""
  return _of_space(draw, 'random', members)


def _of_space(draw, name, members):
  nothing = np.zeros(draw.num_experts)
  count = draw.missing if members is None else members
  return [Row(name, nothing, nothing)] * count


# Rows that a space makes, out of no experts.
OF_SPACE = ('centre', 'random')
RECIPES: dict[str, Callable[..., list[Row]]] = {
  'experts': _experts,
  'pairs': _pairs,
  # t ~ U(0, 1): the paper of Model Swarms; U(0, 2): its released code.
  'interpolants': _between('interpolants', 0.0, 1.0),
  'extrapolants': _between('extrapolants', 0.0, 2.0),
  'zero': _zero,
  'average': _average,
  'averages': _averages,
  'scaled_average': _scaled_average,
  'noise': _noise,
  'uniform': _uniform,
  'centre': _centre,
  'random': _random,
}
