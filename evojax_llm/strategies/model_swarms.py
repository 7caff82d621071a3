"""Model Swarms: experts as particles that search together, arXiv 2410.11163.

In every round all particles move: by inertia, towards their own best and the
best of all, away from the worst of all; then they are scored. A particle that
has long not improved goes back to its own best. The swarm begins as the experts
and as extrapolations between them (`genomes.initial`: 'experts',
'extrapolants').

The defaults are the corrected algorithm. What the released code does instead
is reached by options; see experiments/model_swarms/README.md.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from evojax_llm import options as options_lib
from evojax_llm.operators import restarts
from evojax_llm.operators import succession
from evojax_llm.options import option
from evojax_llm.options import option_of
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.strategies import base
from evojax_llm.strategies import succession_round

OPERATORS = ('succession', 'restart+succession')
RESTARTS = ('once', 'forever', 'never')


@flax.struct.dataclass
class Params(succession_round.Params):
  """Hyperparameters; () f32 arrays that a sweep may vary."""

  cognitive: jax.Array = option_of(succession_round.Params, 'cognitive', 0.3)
  social: jax.Array = option_of(succession_round.Params, 'social', 0.4)
  repel: jax.Array = option_of(succession_round.Params, 'repel', 0.05)
  step_length: jax.Array = option_of(
    succession_round.Params, 'step_length', 1.0
  )
  step_floor: jax.Array = option_of(succession_round.Params, 'step_floor', 0.1)
  restart_after: jax.Array = option(
    4.0,
    'rounds without a better position after which a particle is restarted',
    low=1.0,
  )
  refractory: jax.Array = option(
    3.0,
    'rounds, that of a restart among them, in which a particle has no other',
    low=0.0,
  )
  drop_round: jax.Array = option(
    0.0, 'chance that no particle is scored in a round', low=0.0, high=1.0
  )
  drop_member: jax.Array = option(
    0.0, 'chance that a particle is not scored in a round', low=0.0, high=1.0
  )


@dataclasses.dataclass(frozen=True)
class Options(base.Options):
  """What is fixed when the swarm is made."""

  restart: str = option(
    'once',
    "'once', after which the count of stale rounds begins anew; 'forever', "
    'every round until the particle improves, as in the released code; or '
    "'never'",
    choices=RESTARTS,
  )
  draws: str = option_of(succession_round.Options, 'draws')
  decay: str = option_of(succession_round.Options, 'decay', 'after')
  personal: bool = option_of(succession_round.Options, 'personal')
  velocity_start: str = option_of(succession_round.Options, 'velocity_start')


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

  declared = (Params, Options)
  personal = True

  def __init__(self, population_size: int, **options: Any):
    """Makes the strategy; options are the fields of `Params` and `Options`."""
    self.take(options)
    super().__init__(population_size, population_size, OPERATORS)
    self.static = ModelSwarms, self.options
    self.restart = self.options.restart
    self.succession, _ = options_lib.split(
      succession_round.Options, vars(self.options)
    )

  def _start(self, key, state, scores, params):
    del scores
    return State(
      **vars(state),
      patience=restarts.start(self.population_size),
      scored=jnp.ones((self.population_size,), bool),
      **succession_round.begin(
        key, state.population, state.ids, state.memory, params, self.succession
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
    return members, changes | {'proposal': proposal, 'patience': patience}

  def _scores(self, key, state, params):
    """(P,) bool, which particles are scored in this round."""
    round_key = keys.key_for(
      key, state.generation, lineage.NO_MEMBER, 'dropout'
    )
    member_keys = keys.keys_for(key, state.generation, state.ids, 'dropout')
    chances = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))
    any_scored = jax.random.uniform(round_key) >= params.drop_round
    return any_scored & (chances(member_keys) >= params.drop_member)

  def _succeed(self, key, population, scores, state, params):
    del key, params
    fitness = scores.fitness
    members = self.population_size
    scored = state.proposal.ids[:members] >= 0
    improved = succession.improves(
      jnp.where(scored, fitness[:members], jnp.nan),
      state.memory.personal_fitness,
    )
    state = state.replace(
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
