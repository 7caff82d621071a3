"""A grid of scales of the experts: task arithmetic, arXiv 2212.04089.

Every ask proposes the next P points; when all were scored, its slots are empty.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import options as options_lib
from evojax_llm.options import option
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """The points, C in all."""

  along: str = option(
    'sum',
    "scales of the 'sum' of the changes of all experts, or of 'each' expert "
    'alone',
    choices=('sum', 'each'),
  )
  low: float = option(0.0, 'the lowest scale')
  high: float = option(1.0, 'the highest scale')
  points: int = option(21, 'scales from low to high, evenly', low=1)


@flax.struct.dataclass
class Params:
  """Genomes (C, ...) of all points."""

  genomes: Any


class Grid(base.Strategy):
  """Scores genomes that are known beforehand, in their order."""

  declared = (Options,)
  can_rescore = False

  def __init__(
    self, population_size: int, genomes: stack.Population, options: Options
  ):
    """Makes the strategy of C genomes."""
    super().__init__(population_size, population_size, ('point',))
    self.options = options
    self._params = Params(genomes)
    self.static = Grid, stack.size(genomes)

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy; options are those of `Options`."""
    if space is None:
      raise ValueError("Got no space for 'grid', whose points are its mixes.")
    options_lib.check(options, *cls.declared)
    own = Options(**options)
    count = len(space.names)
    scales = np.linspace(own.low, own.high, own.points)
    if own.along == 'each':
      weights = np.repeat(np.eye(count), own.points, axis=0)
      factors = np.tile(scales, count)
    else:
      weights = np.full((own.points, count), 1 / count)
      factors = scales * count
    genomes = jax.tree.map(jnp.asarray, space.mix(weights, factors))
    strategy = cls(population_size, genomes, own)
    strategy.layers = getattr(space, 'layers', None)
    return strategy

  @property
  def default_params(self) -> Params:
    return self._params

  def _start(self, key, state, scores, params):
    del key, scores, params
    return state

  def _propose(self, key, state, params):
    del key
    count, slots = stack.size(params.genomes), self.num_proposals
    points = state.generation * slots + jnp.arange(slots, dtype=jnp.int32)
    proposal = lineage.fill(points < count, state.next_id)
    members = stack.take(params.genomes, jnp.minimum(points, count - 1))
    return members, {'proposal': proposal}

  def _succeed(self, key, population, scores, state, params):
    del key, params
    filled = state.proposal.filled
    return state.replace(
      population=stack.select(filled, population, state.population),
      fitness=jnp.where(filled, scores.fitness, state.fitness),
      ids=jnp.where(filled, state.proposal.ids, state.ids),
    )
