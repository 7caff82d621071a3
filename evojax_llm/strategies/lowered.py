"""A strategy's programs, lowered for shapes, to ask what they take."""

from typing import Any

import jax

from evojax_llm.strategies import base


def lowered(
  strategy: base.Strategy,
  state: Any,
  population: Any,
  scores: base.Scores,
  params: Any,
) -> dict[str, Any]:
  """Returns the programs of an ask and a tell, of shapes of their arguments."""
  kind, key = type(strategy), jax.random.key(0)
  tell = key, population, scores, state, params
  return {
    'ask': kind._ask.lower(strategy, key, state, params),
    'tell': kind._tell.lower(strategy, *tell),
  }
