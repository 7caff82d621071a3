"""Populations and scores for the strategy tests."""

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.strategies import base
from evojax_llm.systems import evogm as evogm_config
from evojax_llm.systems import genome as genome_config
from evojax_llm.systems import low_rank_es as low_rank_config
from evojax_llm.systems import m2n2 as m2n2_config
from evojax_llm.systems import model_swarms as swarms_config
from evojax_llm.systems import pso_merging as pso_config

PRESETS = {
  **genome_config.PRESETS,
  **swarms_config.PRESETS,
  **low_rank_config.PRESETS,
  **pso_config.PRESETS,
  **evogm_config.PRESETS,
  **m2n2_config.PRESETS,
}
P = 8
KEY = jax.random.key(42)


def population(dtype=jnp.float32, members=P, seed=0):
  """Adapter-like genomes."""
  a, b = jax.random.split(jax.random.key(seed))
  return {
    'layers': {
      'mlp': {
        'a': jax.random.normal(a, (members, 2, 3, 2), jnp.float32).astype(
          dtype
        ),
        'b': jax.random.normal(b, (members, 2, 2, 4), jnp.float32).astype(
          dtype
        ),
      }
    }
  }


def fitness(members):
  """(M,) in (0, 1], the higher the nearer to a point."""
  squares = [
    jnp.sum(
      jnp.square(leaf.astype(jnp.float32) - 0.5),
      axis=tuple(range(1, leaf.ndim)),
    )
    for leaf in jax.tree.leaves(members)
  ]
  return jnp.exp(-0.02 * sum(squares))


def scores(members):
  return base.Scores(fitness(members))


def seen(strategy, values):
  """Scores of fitness (M,), with three items where the strategy sees them."""
  if strategy.sees != 'items':
    return base.Scores(values)
  items = jnp.stack([values, 1.0 - values, jnp.square(values)], axis=1)
  return base.Scores(values, values[:, None], items)


def start(strategy, dtype=jnp.float32, key=KEY):
  members = population(dtype, strategy.population_size)
  given = seen(strategy, fitness(members))
  return strategy.init(key, members, given, strategy.default_params)


def play(strategy, state, rounds, key=KEY, score=fitness, params=None):
  """Rounds of ask and tell; yields (members, fitness, before, after).

  States before are copied to the host, since tell gives up their buffers.
  """
  params = strategy.default_params if params is None else params
  for _ in range(rounds):
    members, asked = strategy.ask(key, state, params)
    values = score(members)
    values = jnp.where(asked.proposal.filled, values, jnp.nan)
    before = jax.tree.map(np.array, asked)
    given = seen(strategy, values)
    state = strategy.tell(key, members, given, asked, params)
    yield members, np.asarray(values), before, state


def last(strategy, state, rounds, **options):
  for *_, after in play(strategy, state, rounds, **options):
    state = after
  return state


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)
