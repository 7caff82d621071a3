"""NSGA-II: a search for the front of several objectives.

Deb et al., 2002, IEEE Trans. Evol. Comput. 6:182. In every round P children are
made of parents that win binary tournaments, and of members and children the
best P live on, by non-dominated front and then by crowding distance. The
objectives are the fitness on every task, and what else the run names
(`config.pareto.objectives`).

Numbers within bounds, as weights of experts and recipes are, are crossed by
simulated binary crossover and mutated by polynomial mutation; genomes without
bounds, as adapters and whole weights, by a merge of the table and noise.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators import bounded
from evojax_llm.operators import mutation
from evojax_llm.operators import pareto
from evojax_llm.options import option
from evojax_llm.options import option_of
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.genome import algorithm
from evojax_llm.strategies.genome import crossover
from evojax_llm.strategies.genome import parent_selection
from evojax_llm.strategies.genome import variation

OPERATORS = ('crossover', 'mutation', 'crossover+mutation')


@flax.struct.dataclass
class Params:
  """Hyperparameters; all but the trees () f32 arrays that a sweep may vary.

  Attributes:
    merge: hyperparameters of the merge by name.
    base: genome that a merge takes the parents' changes from; None for zeros.
    lowest: genome of the lowest values; None without bounds.
    highest: likewise.
  """

  cross_rate: jax.Array = option(
    0.9, 'chance that a child has two parents', low=0.0, high=1.0
  )
  mutation_rate: jax.Array = option(
    0.9,
    'chance that a child is mutated; one that has a single parent always is',
    low=0.0,
    high=1.0,
  )
  cross_eta: jax.Array = option(
    15.0, 'within bounds: the larger, the nearer to the parents', low=0.0
  )
  mutation_eta: jax.Array = option(
    20.0, 'within bounds: the larger, the smaller the changes', low=0.0
  )
  genes_changed: jax.Array = option(
    1.0, 'within bounds: how many genes a mutation changes on average', low=0.0
  )
  cross_low: jax.Array = option_of(algorithm.Params, 'cross_low')
  cross_high: jax.Array = option_of(algorithm.Params, 'cross_high')
  temperature: jax.Array = option_of(algorithm.Params, 'temperature')
  sigma: jax.Array = option_of(algorithm.Params, 'sigma')
  gene_rate: jax.Array = option(
    1.0, 'without bounds: chance that a gene changes', low=0.0, high=1.0
  )
  merge: Any = None
  base: Any = None
  lowest: Any = None
  highest: Any = None


@dataclasses.dataclass(frozen=True)
class Options:
  """What is fixed when the strategy is made."""

  vary: str = option(
    'auto',
    "how children are made: within 'bounds', by SBX and polynomial mutation, "
    "or by a 'merge' and noise; 'auto' takes bounds where the space has them",
    choices=('auto', 'bounds', 'merge'),
  )
  low: float | None = option(None, "of every gene, in place of the space's")
  high: float | None = option(None, 'likewise')
  merge: str = option_of(variation.Options, 'merge')
  weighing: str = option_of(variation.Options, 'weighing')
  merge_options: Mapping[str, Any] = option(
    {},
    'choices of the merge by name; see operators/README.md',
    parts=crossover.MERGE_OPTIONS,
  )
  merge_parameters: Mapping[str, float | None] = option(
    {},
    'numbers of the merge by name; see operators/README.md',
    parts=crossover.MERGE_PARAMETERS,
  )
  relative_sigma: bool = option_of(variation.Options, 'relative_sigma')
  mask: str = option_of(variation.Options, 'mask')

  def __post_init__(self):
    options_lib.check(vars(self), Options)


@flax.struct.dataclass
class State(base.State):
  """State of the search.

  Attributes:
    reference: (K,) f32, the worst of the first population on each objective.
  """

  reference: jax.Array


class NSGA2(base.Strategy):
  """NSGA-II with P members and as many children in every ask."""

  declared = (Params, Options)
  sees = 'tasks'
  ends_in_front = True

  def __init__(
    self,
    population_size: int,
    *,
    bounds: tuple[stack.Genome, stack.Genome] | None = None,
    merge_base: stack.Genome | None = None,
    **options: Any,
  ):
    """Makes the strategy.

    Options are those of `Params` and `Options`; `bounds` are the lowest and the
    highest genome, `merge_base` is the genome of the base.

    Raises:
      ValueError: if an option is unknown or out of range, bounds are wanted and
        there are none, or there is no second parent.
    """
    self.take(options)
    if population_size < 2:
      raise ValueError(
        f'Got population_size {population_size}; expected 2 or more, as a '
        'child has two parents.'
      )
    own = self.options
    if own.vary == 'bounds' and bounds is None:
      raise ValueError(
        "Got vary 'bounds' for genomes without; expected low and high, or "
        "vary 'merge'."
      )
    self.within_bounds = bounds is not None and own.vary != 'merge'
    self._bounds = bounds if self.within_bounds else (None, None)
    self.crossover = crossover.make(own.merge, own.weighing, own.merge_options)
    self._merge_values = crossover.parameters(own.merge, own.merge_parameters)
    self._base = None
    if self.crossover.method.needs_base:
      self._base = jax.tree.map(jnp.asarray, merge_base)
    super().__init__(population_size, population_size, OPERATORS)
    kind = self.within_bounds, self.crossover.method
    self.static = NSGA2, kind, repr(own)

  @classmethod
  def for_space(cls, population_size, space, genome, **options):
    """See base.Strategy; bounds are those of the space, or `low` and `high`."""
    bounds = None
    if space is not None:
      options['merge_base'] = space.base()
      bounds = space.bounds()
    ends = options.get('low'), options.get('high')
    if bounds is None and genome is not None and None not in ends:
      bounds = genome, genome
    if bounds is not None:
      if None not in ends and ends[0] >= ends[1]:
        raise ValueError(
          f'Got low {ends[0]} and high {ends[1]}; expected low below high.'
        )
      bounds = tuple(
        jax.tree.map(
          lambda leaf, end=end: (
            leaf if end is None else jnp.full(leaf.shape, end, jnp.float32)
          ),
          tree,
        )
        for tree, end in zip(bounds, ends, strict=True)
      )
      options['bounds'] = bounds
    return super().for_space(population_size, space, genome, **options)

  @property
  def default_params(self) -> Params:
    merge = {name: jnp.float32(v) for name, v in self._merge_values.items()}
    low, high = self._bounds
    return base.make_params(
      Params,
      self._values,
      merge=merge,
      base=self._base,
      lowest=low,
      highest=high,
    )

  def check_genome(self, genome: stack.Genome) -> None:
    """See base.Strategy; merges may need a base that there is not."""
    if not self.within_bounds:
      crossover.check_base(self.crossover, self._base)
    elif jax.tree.structure(genome) != jax.tree.structure(self._bounds[0]):
      raise ValueError(
        'Got bounds of another structure than the genomes; expected one number '
        'or leaf for each of theirs.'
      )

  def _start(self, key, state, scores, params):
    del key, params
    known = _known(scores.fitness, scores.tasks)
    worst = jnp.min(jnp.where(jnp.isfinite(known), known, jnp.inf), axis=0)
    worst = jnp.where(jnp.isfinite(worst), worst, 0.0)
    return State(**vars(state), reference=worst)

  def _propose(self, key, state, params):
    ids = state.next_id + jnp.arange(self.num_proposals, dtype=jnp.int32)
    value = pareto.fitness(_known(state.fitness, state.tasks), state.ids)

    def keyed(purpose):
      return keys.keys_for(key, state.generation, ids, purpose)

    def draw(parents_key):
      return parent_selection.parents(
        'tournament', parents_key, value, state.ids, jnp.float32(1.0), 2
      )

    pairs = jax.vmap(draw)(keyed('parents'))
    draws = jax.vmap(lambda k: jax.random.uniform(k, (4,), jnp.float32))(
      keyed('child')
    )
    crossed = draws[:, 0] < params.cross_rate
    mutated = (draws[:, 1] < params.mutation_rate) | ~crossed
    children = self._cross(key, keyed, state, params, ids, pairs, draws[:, 2:])
    first = stack.take(state.population, pairs[:, 0])
    children = stack.select(crossed, children, first)
    mutants = self._mutate(keyed('mutation'), children, params)
    members = stack.select(mutated, mutants, children)
    parents = state.ids[pairs]
    parents = parents.at[:, 1].set(
      jnp.where(crossed, parents[:, 1], lineage.NO_MEMBER)
    )
    operator = jnp.where(crossed, jnp.where(mutated, 2, 0), 1)
    # Slots that fill up the last device stay empty.
    filled = jnp.arange(self.num_proposals) < self.population_size
    proposal = lineage.fill(filled, state.next_id, parents, operator)
    return members, {'proposal': proposal}

  def _cross(self, key, keyed, state, params, ids, pairs, draws):
    """Children (M, ...) of pairs (M, 2), with draws (M, 2) of a weighing."""
    if self.within_bounds:
      one, two = (stack.take(state.population, pairs[:, i]) for i in (0, 1))
      return jax.vmap(bounded.sbx, in_axes=(0, 0, 0, None, None, None))(
        keyed('crossover'),
        one,
        two,
        params.lowest,
        params.highest,
        params.cross_eta,
      )
    return crossover.children(
      self, self.options.weighing, key, state, params, ids, pairs, draws
    )

  def _mutate(self, mutant_keys, children, params):
    if self.within_bounds:
      genes = sum(leaf[0].size for leaf in jax.tree.leaves(children))
      rate = jnp.minimum(params.genes_changed / genes, 1.0)
      return jax.vmap(
        bounded.polynomial, in_axes=(0, 0, None, None, None, None)
      )(
        mutant_keys,
        children,
        params.lowest,
        params.highest,
        params.mutation_eta,
        rate,
      )

    def mutate(mutant_key, genome):
      return mutation.gaussian(
        mutant_key,
        genome,
        params.sigma,
        params.gene_rate,
        relative=self.options.relative_sigma,
        mask=self.options.mask,
        rounding='stochastic',
        layers=self.layers,
      )

    return jax.vmap(mutate)(mutant_keys, children)

  def _succeed(self, key, population, scores, state, params):
    del key, params
    fitness = jnp.concatenate([state.fitness, scores.fitness])
    tasks = jnp.concatenate([state.tasks, scores.tasks])
    ids = jnp.concatenate([state.ids, state.proposal.ids])
    # Of members that failed the elder live on, and empty slots never.
    order = jnp.where(ids < 0, jnp.iinfo(jnp.int32).max, ids)
    chosen = pareto.ranking(_known(fitness, tasks), order)[: self.capacity]
    return state.replace(
      population=stack.take_of_both(
        state.population, population, chosen, mesh=self.mesh
      ),
      fitness=fitness[chosen],
      tasks=tasks[chosen],
      ids=ids[chosen],
    )


def _known(fitness: jax.Array, tasks: jax.Array) -> jax.Array:
  """Objectives (P, K), NaN where a member failed."""
  return jnp.where(jnp.isfinite(fitness)[:, None], tasks, jnp.nan)
