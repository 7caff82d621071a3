"""Model Swarms: experts as particles that search together, arXiv 2410.11163.

In every round all particles move: by inertia, towards their own best and the
best of all, away from the worst of all; then they are scored. Who has long not
improved goes back to its own best. The swarm begins as the experts and as
extrapolations between them (`genomes.initial`: 'experts', 'extrapolants').

The defaults are the corrected algorithm. What the released code does instead
is reached by options; see presets.py and experiments/model_swarms/README.md.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm.operators import restarts
from evojax_llm.operators import succession
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.strategies import base
from evojax_llm.strategies import succession_round

OPERATORS = ('succession', 'restart+succession')
RESTARTS = ('once', 'forever', 'never')


@flax.struct.dataclass
class Params(succession_round.Params):
  """Hyperparameters; every one a () f32 array that a sweep may vary.

  Attributes:
    restart_after: rounds without a better position after which a particle is
      restarted.
    refractory: rounds, that of a restart among them, in which a particle has no
      other.
    drop_round: probability that nobody is scored in a round (Dropout-K).
    drop_member: probability that a particle is not scored in a round
      (Dropout-N).
  """

  restart_after: jax.Array
  refractory: jax.Array
  drop_round: jax.Array
  drop_member: jax.Array


DEFAULTS = {
  'inertia': 0.2,
  'cognitive': 0.3,
  'social': 0.4,
  'repel': 0.05,
  'step_length': 1.0,
  'step_decay': 0.95,
  'step_floor': 0.1,
  'restart_after': 4.0,
  'refractory': 3.0,
  'drop_round': 0.0,
  'drop_member': 0.0,
}
RANGES = succession_round.RANGES | {
  'restart_after': (1.0, math.inf),
  'refractory': base.NOT_NEGATIVE,
  'drop_round': base.SHARE,
  'drop_member': base.SHARE,
}


@flax.struct.dataclass
class State(succession_round.State):
  """State of a swarm.

  Attributes:
    patience: how long each particle has not improved.
    scored: (P,) bool, whether the present position was scored; a dropped one
      has no fitness (NaN) without having failed, and the id of before.
  """

  patience: restarts.Patience
  scored: jax.Array


class ModelSwarms(base.Strategy):
  """A swarm of P particles; every ask moves all of them."""

  def __init__(
    self,
    population_size: int,
    *,
    restart: str = 'once',
    draws: str = 'particle',
    decay: str = 'after',
    personal: bool = True,
    velocity_start: str = 'random',
    keep_best: bool = True,
    sharding: jax.sharding.Sharding | None = None,
    **params: float,
  ):
    """Makes the strategy.

    Args:
      population_size: P.
      restart: 'once', after which the count of stale rounds begins anew;
        'forever', every round until the particle improves, as in the released
        code; or 'never'.
      draws: whose random coefficients; see succession_round.Options.
      decay: when lambda shrinks; likewise.
      personal: whether a particle knows its own best; likewise.
      velocity_start: first velocities are 'random' (towards another particle),
        'zero', or towards the 'best'.
      keep_best: whether a run ends with the best particle of all time; see
        base.Strategy.
      sharding: of population leaves.
      **params: hyperparameters to change in `default_params`.

    Raises:
      ValueError: if an option is unknown.
    """
    if restart not in RESTARTS:
      raise ValueError(f'Got restart {restart!r}; expected one of {RESTARTS}.')
    super().__init__(
      population_size,
      population_size,
      OPERATORS,
      sharding,
      keep_best=keep_best,
    )
    self.restart = restart
    self.succession = succession_round.Options(
      draws=draws,
      decay=decay,
      personal=personal,
      velocity_start=velocity_start,
    )
    self._params = dict(params)
    base.make_params(Params, DEFAULTS, params, RANGES)

  @property
  def _default_params(self) -> Params:
    return base.make_params(Params, DEFAULTS, self._params, RANGES)

  def _start(self, key, population, fitness, params, objectives):
    del objectives
    ids = jnp.arange(self.population_size, dtype=jnp.int32)
    memory = succession.start_memory(population, fitness, ids)
    return State(
      population=population,
      fitness=fitness,
      objectives=None,
      ids=ids,
      next_id=jnp.int32(self.population_size),
      generation=jnp.int32(0),
      memory=memory,
      proposal=lineage.empty_proposal(self.num_proposals),
      patience=restarts.start(self.population_size),
      scored=jnp.ones((self.population_size,), bool),
      **succession_round.begin(
        key, population, ids, memory, params, self.succession
      ),
    )

  def _propose(self, key, state, params):
    failed = state.scored & ~jnp.isfinite(state.fitness)
    stale, patience = jnp.zeros_like(failed), state.patience
    if self.restart != 'never':
      stale, patience = restarts.due(
        state.patience,
        params.restart_after.astype(jnp.int32),
        params.refractory.astype(jnp.int32),
        forever=self.restart == 'forever',
      )
    restarted = stale | failed
    moved, changes = succession_round.move(
      key, state, params, self.succession, restarted=restarted
    )
    members, proposal = succession_round.propose(
      moved,
      state,
      self._scores(key, state, params),
      restarted.astype(jnp.int32),
      self.num_proposals,
    )
    changes['velocity'] = self._constrain_population(changes['velocity'])
    return members, changes | {'proposal': proposal, 'patience': patience}

  def _scores(self, key, state, params):
    """(P,) bool, who is scored in this round."""
    round_key = keys.key_for(
      key, state.generation, lineage.NO_MEMBER, 'dropout'
    )
    member_keys = keys.keys_for(key, state.generation, state.ids, 'dropout')
    chances = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))
    somebody = jax.random.uniform(round_key) >= params.drop_round
    return somebody & (chances(member_keys) >= params.drop_member)

  def _succeed(self, key, population, fitness, state, params, objectives):
    del key, params, objectives
    members = self.population_size
    scored = state.proposal.ids[:members] >= 0
    improved = succession.improves(
      jnp.where(scored, fitness[:members], jnp.nan),
      state.memory.personal_fitness,
    )
    state = state.replace(
      memory=succession.remember_extremes(
        state.memory, population, fitness, state.proposal.ids
      ),
      next_id=state.next_id + self.num_proposals,
      # A round in which a particle was not scored says nothing about it.
      patience=jax.tree.map(
        lambda new, old: jnp.where(scored, new, old),
        restarts.count(state.patience, improved),
        state.patience,
      ),
      scored=scored,
    )
    return succession_round.replace(
      population, fitness, state, kept=jnp.full((members,), jnp.nan)
    )

  def _constrain(self, state):
    state = super()._constrain(state)
    return state.replace(velocity=self._constrain_population(state.velocity))
