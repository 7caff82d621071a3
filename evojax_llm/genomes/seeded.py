"""Seeded: a genome is a centre, a seed and a scale; noise is made where used.

A member is x + scale s E, with E the low-rank noise of its seed and s the root
mean square of each matrix of the centre x (see `operators.low_rank`). Members
of one population may share the centre, which is then kept once (see
`population.stack`): thousands of them take 20 bytes each.
"""

from collections.abc import Sequence
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import options
from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import initial
from evojax_llm.genomes import space
from evojax_llm.genomes import weights as weight_genomes
from evojax_llm.genomes.seeded_options import SeededOptions
from evojax_llm.models.expression import Expression
from evojax_llm.models.expression import LowRank
from evojax_llm.operators import low_rank
from evojax_llm.population import keys
from evojax_llm.population import stack

CENTRE, SEED, SCALE = 'centre', 'seed', 'scale'
# The largest scale that `sample` draws.
_LARGEST = 0.3


def is_seeded(genome: Any) -> bool:
  """Whether a genome, or a population, is of this space."""
  return isinstance(genome, dict) and set(genome) == {CENTRE, SEED, SCALE}


def around(
  centre: stack.Genome, seeds: jax.Array, scale: jax.Array
) -> stack.Population:
  """Returns M members around one centre, whose leaves are (1, ...).

  Args:
    centre: genome of the plain space.
    seeds: (M,) typed Threefry keys.
    scale: (M,) f32.
  """
  words = jax.random.key_data(seeds)
  halves = jnp.stack([words >> 16, words & jnp.uint32(0xFFFF)], axis=-1)
  return {
    CENTRE: jax.tree.map(lambda leaf: leaf[None], centre),
    # Half words are whole numbers of f32, as all leaves of genomes are floats.
    SEED: halves.reshape(len(scale), 4).astype(jnp.float32),
    SCALE: scale.astype(jnp.float32)[:, None],
  }


def key_of(genome: stack.Genome) -> jax.Array:
  """Returns the () key of one member's noise."""
  halves = jnp.nan_to_num(genome[SEED]).astype(jnp.uint32).reshape(2, 2)
  words = halves[:, 0] << 16 | halves[:, 1]
  return jax.random.wrap_key_data(words, impl='threefry2x32')


@functools.partial(jax.jit, static_argnames=('rank', 'relative', 'layers'))
def formed(
  genome: stack.Genome, rank: int, relative: bool, layers: str | None
) -> stack.Genome:
  """Returns one member as a genome of the plain space."""
  return low_rank.perturb(
    key_of(genome),
    genome[CENTRE],
    genome[SCALE][0],
    rank,
    relative=relative,
    layers=layers,
  )


class SeededSpace(space.Space):
  """Seeds around centres, which are genomes of a plain space.

  A genome is {'centre': genome of the plain space, 'seed': (4,) f32, half words
  of a key, 'scale': (1,) f32}. An expert is its own centre with a scale of
  zero. Noise of rank r in each factor A and B leaves the rank of the adapter as
  it is.

  Attributes:
    told: `SeededOptions`.
  """

  options = SeededOptions
  learns = False
  on = 'factors'

  def __init__(self, plain: space.Space, **given: Any):
    """Makes the space around genomes of another.

    Args:
      plain: the other one; noise is put on all its leaves.
      **given: values of `SeededOptions`.

    Raises:
      ValueError: an option is unknown or cannot have its value.
    """
    self.told = _checked(given)
    self._plain, self.names = plain, plain.names
    if hasattr(plain, 'rank'):
      self.rank = plain.rank

  @classmethod
  def configured(cls, **given: Any) -> type['SeededSpace']:
    """Returns the class of these options, which it checks."""
    kinds = {kind.on: kind for kind in (SeededSpace, SeededWeightSpace)}
    return kinds[_checked(given).on]

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | space.Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
    **given: Any,
  ) -> 'SeededSpace':
    """Makes the space around the adapters, or the models, of a base on disk."""
    kind = {
      'factors': adapter_genomes.AdapterSpace,
      'weights': weight_genomes.WeightSpace,
    }[cls.on]
    return cls(kind.from_files(base, adapters, models, dtype), **given)

  @property
  def plain(self) -> space.Space:
    return self._plain.plain

  def model(self) -> space.Model:
    return self._plain.model()

  def experts(self) -> stack.Population:
    return still(self._plain.experts())

  def base(self) -> stack.Genome:
    return _alone(self._plain.base())

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    return still(self._plain.mix(weights, factors))

  def mix_rows(self, rows: Sequence[initial.Row]) -> stack.Population:
    return still(self._plain.mix_rows(rows))

  def adapted(self, adapter: LowRank) -> stack.Genome | None:
    return _alone(self._plain.adapted(adapter))

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    """Draws a centre of the plain space, a seed, and a scale ~ U(0, 0.3)."""
    seed = keys.key_for(key, 0, 0, 'seed')
    scale = jax.random.uniform(
      keys.key_for(key, 0, 0, 'scale'), (1,), jnp.float32, maxval=_LARGEST
    )
    made = around(self._plain.sample(key, **options), seed[None], scale)
    return jax.tree.map(lambda leaf: leaf[0], made)

  def formed(self, genome: stack.Genome) -> stack.Genome:
    """Returns one member as a genome of the plain space."""
    return formed(genome, self.told.rank, self.told.relative, self.layers)

  def express(self, genome: stack.Genome) -> Expression:
    """Returns what the plain space makes of the member, noise and all."""
    return self._plain.express(self.formed(genome))

  def deviation(self) -> float:
    """Returns that of the plain space."""
    return self._plain.deviation()

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns that of the plain space, with the seed and the scale."""
    return {
      **self._plain.recipe(self.formed(genome)),
      'seed': [float(half) for half in np.nan_to_num(genome[SEED])],
      'scale': float(np.nan_to_num(genome[SCALE][0])),
    }

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as the plain space does, its noise in it."""
    space.check_genome(self, genome)
    return self._plain.export(self.formed(genome), folder)


class SeededWeightSpace(SeededSpace):
  """Seeds around models: noise on all parameters, formed a group at a time."""

  exports, takes, shares_base = 'model', ('adapters', 'models'), False
  on = 'weights'


def check_noise(space_: Any, options: Any) -> None:
  """Refuses a strategy's `rank` and `relative_sigma` that a space makes unlike.

  Raises:
    ValueError: naming the option.
  """
  if not isinstance(space_, SeededSpace):
    return
  for name, there in (
    ('rank', space_.told.rank),
    ('relative_sigma', space_.told.relative),
  ):
    if getattr(options, name) != there:
      of_space = f'config.seeded.{name.removesuffix("_sigma")}'
      raise ValueError(
        f'Got {name} {getattr(options, name)!r} for the space seeded, whose is '
        f'{there!r}; expected the same. Set {of_space} as well.'
      )


def _checked(given: dict[str, Any]) -> SeededOptions:
  options.check(given, SeededOptions)
  return SeededOptions(**given)


def _alone(genome: stack.Genome | None) -> stack.Genome | None:
  """One genome of the plain space, without noise; None where there is none."""
  if genome is None:
    return None
  zeros = jnp.zeros((4,), jnp.float32), jnp.zeros((1,), jnp.float32)
  return {CENTRE: genome, SEED: zeros[0], SCALE: zeros[1]}


def still(population: stack.Population) -> stack.Population:
  """Returns members (P, ...) of the plain space as genomes without noise."""
  size = stack.size(population)
  return {
    CENTRE: population,
    SEED: jnp.zeros((size, 4), jnp.float32),
    SCALE: jnp.zeros((size, 1), jnp.float32),
  }
