"""EvoGM: generators that learn to make better merges of worse ones.

A member is a row of coefficients times a basis. In a round, which begins with
the unit rows, their average and random rows, generators learn from the round's
history to make winners of losers (`training`), and propose a member for each
of the population. After T such iterations the best members of the history
become the basis of the next round (arXiv 2605.29295).

The basis holds these members as they were scored, and each member is one
product with it, so no error adds up over rounds. What the released code does
otherwise is reached by options; see experiments/evogm/README.md.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
from jax import flatten_util
import jax.numpy as jnp

from evojax_llm.options import option
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.strategies import base
from evojax_llm.strategies.evogm import coordinates
from evojax_llm.strategies.evogm import training
from evojax_llm.strategies.evogm.history import History
from evojax_llm.strategies.evogm.history import counts
from evojax_llm.strategies.evogm.training import Generator

# The first is that of all slots of an iteration.
OPERATORS = ('generator', 'elite', 'average', 'uniform')
# The basis is their square, and generators are as wide as a genome at the ends.
MAX_NUMBERS = 512


@flax.struct.dataclass
class Params:
  """Hyperparameters; () f32 arrays that a sweep may vary."""

  learning_rate: jax.Array = option(1e-4, 'of Adam', low=0.0)
  cycle_scale: jax.Array = option(
    100.0, 'alpha_c, weight of the cycle error; 0 for no cycle', low=0.0
  )
  opt_scale: jax.Array = option(
    1.0, 'alpha_o, weight of the distance to the mean winner', low=0.0
  )


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the strategy is made."""

  inner: int = option(3, 'T, iterations of generators in a round', low=1)
  epochs: int = option(200, 'steps of Adam in an iteration', low=1)
  winners: float = option(
    0.3, 'rho, share of the history that wins', low=0.0, high=1.0
  )
  top_k: int | None = option(
    None,
    'elites that are the next basis; as many as a genome has numbers if unset',
    low=1,
    kind=int,
  )
  mode: str = option(
    'code',
    "generators are new in every round ('code', as released) or in every "
    "iteration ('paper')",
    choices=('code', 'paper'),
  )
  generators: str = option(
    'dual',
    "'dual', a forward and a reverse one, or the forward one alone",
    choices=('dual', 'single'),
  )
  cache: bool = option(
    True,
    'whether members that are known already, carried elites among them, are '
    'not scored again; off in the released code',
  )
  width: int = option(128, 'of the first hidden layer of the generators', low=1)


@flax.struct.dataclass
class State(base.State):
  """State of the strategy, for genomes of D numbers.

  Attributes:
    basis: (D, D) f32; rows from top_k on are zero but in the first round.
    rows: (P, D) f32 coefficients of the population in the basis.
    asked: (P, D) f32 likewise of the members of the latest ask.
    history: of the round.
    learner: generators and Adam's state.
    cycle_error: () f32 of the latest training; NaN where there is none.
  """

  basis: jax.Array
  rows: jax.Array
  asked: jax.Array
  history: History
  learner: training.Learner
  cycle_error: jax.Array


class EvoGM(base.Strategy):
  """The strategy; T asks in a round are of generators, one begins the next."""

  declared = (Params, Options)
  # The scores of a round's history are of the same items.
  can_rescore = False

  def __init__(self, population_size: int, **options: Any):
    """Makes the strategy; options are the fields of `Params` and `Options`."""
    self.take(options)
    super().__init__(population_size, population_size, OPERATORS)
    self.static = EvoGM, self.options
    self._generator = Generator(self.options.width)
    self._history_size = population_size * (self.options.inner + 1)
    self._winners, self._batch = counts(
      self.options.winners, self._history_size, population_size
    )

  def check_genome(self, genome: stack.Genome) -> None:
    numbers = sum(leaf.size for leaf in jax.tree.leaves(genome))
    if numbers > MAX_NUMBERS:
      raise ValueError(
        f'Got genomes of {numbers:,} numbers for EvoGM, which works on weights '
        f"of experts; expected at most {MAX_NUMBERS}. Take the space 'gates'."
      )
    elites = self._elites(numbers)
    if elites > numbers or elites >= self.population_size:
      raise ValueError(
        f'Got a population of {self.population_size} and {elites} elites for '
        f'genomes of {numbers} numbers; expected at most {numbers} elites and '
        'a larger population, since a round begins with the elites and their '
        'average. Enlarge the population or lower top_k.'
      )

  def _elites(self, numbers):
    """K; the coordinates of all rounds but the first."""
    return self.options.top_k or numbers

  @functools.partial(jax.jit, static_argnames=('self',))
  def monitors(self, state: State) -> dict[str, jax.Array]:
    """Returns what shows whether a search has narrowed down.

    `spread`, the deviation of the coefficients of the latest members from their
    mean; `cycle_error`; `singular_values` of the basis (K,); and `known`, how
    many of the latest members were not scored again.
    """
    active = self._active(state.generation, state.asked)
    variance = jnp.sum(jnp.var(state.asked, axis=0)) / jnp.sum(active)
    values = jnp.linalg.svd(state.basis, compute_uv=False)
    filled = state.proposal.filled | (state.generation == 0)
    return {
      'spread': jnp.sqrt(variance),
      'cycle_error': state.cycle_error,
      'singular_values': values[: self._elites(values.size)],
      'known': jnp.sum(~filled).astype(jnp.int32),
    }

  def _active(self, next_generation, rows):
    """(D,) f32, 1 for the coordinates that a round has, else 0.

    Args:
      next_generation: () i32, completed generations after the ask in question.
      rows: (P, D).
    """
    numbers = rows.shape[1]
    first = next_generation <= self.options.inner
    elite = jnp.arange(numbers) < self._elites(numbers)
    return (elite | first).astype(jnp.float32)

  def _iteration(self, state):
    """() i32 iteration of its round that is next; `inner` for a new round."""
    return state.generation % (self.options.inner + 1)

  def _start(self, key, state, scores, params):
    del scores, params
    rows = _flat(state.population)
    history = History(rows, rows, state.fitness, state.ids)
    return State(
      **vars(state),
      basis=jnp.eye(rows.shape[1], dtype=jnp.float32),
      rows=rows,
      asked=jnp.copy(rows),
      history=history.with_room(self._history_size),
      learner=self._fresh(key, jnp.int32(0), rows),
      cycle_error=jnp.float32(jnp.nan),
    )

  def _fresh(self, key, generation, rows):
    key = keys.key_for(key, generation, lineage.NO_MEMBER, 'generators')
    active = self._active(generation + 1, rows)
    dual = self.options.generators == 'dual'
    return training.start(key, self._generator, active, dual)

  def _propose(self, key, state, params):
    return jax.lax.cond(
      self._iteration(state) < self.options.inner,
      lambda: self._generate(key, state, params),
      lambda: self._begin_round(key, state),
    )

  def _generate(self, key, state, params):
    active = self._active(state.generation + 1, state.rows)
    fresh = self._fresh(key, state.generation, state.rows)
    anew = (self._iteration(state) == 0) | (self.options.mode == 'paper')
    learner = jax.tree.map(
      lambda new, old: jnp.where(anew, new, old), fresh, state.learner
    )
    learner, cycle_error = training.train(
      keys.key_for(key, state.generation, lineage.NO_MEMBER, 'training'),
      learner,
      self._generator,
      state.history.pools(self._winners),
      active,
      params,
      batch=self._batch,
      epochs=self.options.epochs,
    )
    rows = training.propose(learner, self._generator, state.rows, active)
    members = coordinates.combine(rows, state.basis)
    unknown = ~self._known(members, state.history)
    proposal = lineage.fill(unknown, state.next_id, state.ids)
    return self._as_population(members, state), {
      'basis': state.basis,
      'asked': rows,
      'learner': learner,
      'cycle_error': cycle_error,
      'proposal': proposal,
    }

  def _known(self, members, history):
    """(P,) bool, which members need no score."""
    if not self.options.cache:
      return jnp.zeros(members.shape[:1], bool)
    valid = history.ids >= 0
    return coordinates.is_known(members, history.members, valid)

  def _begin_round(self, key, state):
    numbers, slots = state.rows.shape[1], jnp.arange(self.population_size)
    count = self._elites(numbers)
    elites = state.history.ranking[:count]
    basis = jnp.zeros_like(state.basis)
    basis = basis.at[:count].set(state.history.members[elites])
    # Unit rows are the elites themselves.
    active = self._active(state.generation + 1, state.rows)
    rows = jax.vmap(
      lambda key: jax.random.uniform(key, (numbers,), jnp.float32, -1, 1)
    )(keys.keys_for(key, state.generation, state.next_id + slots, 'uniform'))
    rows = rows.at[:count].set(jnp.eye(count, numbers, dtype=jnp.float32))
    rows = rows.at[count].set(1.0 / count) * active
    members = coordinates.combine(rows, basis)
    is_elite = slots < count
    known = self._known(members, state.history)
    own = jnp.pad(
      state.history.ids[elites],
      (0, self.population_size - count),
      constant_values=lineage.NO_MEMBER,
    )
    operator = jnp.where(is_elite, 1, jnp.where(slots == count, 2, 3))
    proposal = lineage.fill(~known, state.next_id, own, operator)
    return self._as_population(members, state), {
      'basis': basis,
      'asked': rows,
      'learner': state.learner,
      'cycle_error': jnp.float32(jnp.nan),
      'proposal': proposal,
    }

  def _succeed(self, key, population, scores, state, params):
    del key, params
    new = History(
      state.asked, _flat(population), scores.fitness, state.proposal.ids
    )
    return jax.lax.cond(
      self._iteration(state) < self.options.inner,
      lambda: self._add(new, population, state),
      lambda: self._replace(new, population, state),
    )

  def _add(self, new, population, state):
    """The population is the best of itself and the new members."""
    offset = self.population_size * (self._iteration(state) + 1)
    history = jax.tree.map(
      lambda old, leaf: jax.lax.dynamic_update_slice_in_dim(
        old, leaf, offset, axis=0
      ),
      state.history,
      new,
    )
    old = History(state.rows, _flat(state.population), state.fitness, state.ids)
    both = stack.concatenate(old, new)
    best = both.ranking[: self.population_size]
    return state.replace(
      population=stack.take_of_both(
        state.population, population, best, mesh=self.mesh
      ),
      fitness=both.fitness[best],
      ids=both.ids[best],
      rows=both.rows[best],
      history=history,
    )

  def _replace(self, new, population, state):
    """The members that begin a round are its population and history."""
    count = self._elites(new.rows.shape[1])
    elites = stack.take(state.history, state.history.ranking[:count])
    # Those that were not scored again keep what is known of them.
    carried = new.ids[:count] < 0
    new = new.replace(
      fitness=new.fitness.at[:count].set(
        jnp.where(carried, elites.fitness, new.fitness[:count])
      ),
      ids=new.ids.at[:count].set(
        jnp.where(carried, elites.ids, new.ids[:count])
      ),
    )
    return state.replace(
      population=population,
      fitness=new.fitness,
      ids=new.ids,
      rows=new.rows,
      history=new.with_room(self._history_size),
    )

  def _as_population(self, members, state):
    """Genomes (P, ...) of numbers (P, D), in the types of the population."""
    one = jax.tree.map(lambda leaf: leaf[0], state.population)
    restore = flatten_util.ravel_pytree(
      jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one)
    )[1]
    return jax.tree.map(
      lambda leaf, kind: leaf.astype(kind.dtype),
      jax.vmap(restore)(members),
      one,
    )


def _flat(population):
  """Numbers (P, D) f32 of genomes."""
  leaves = jax.tree.leaves(population)
  return jnp.concatenate(
    [leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in leaves], axis=1
  )
