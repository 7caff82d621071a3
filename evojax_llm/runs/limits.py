"""The limits that end a search."""

import time

import numpy as np

from evojax_llm.options import Option

# A search that proposes no members any more spends no evaluations; it ends
# after so many generations for each evaluation.
_GENERATIONS = 10
# Tokens and seconds may be spent before a search goes on.
_LEAST = {
  'generations': 0,
  'evaluations': 1,
  'patience': 1,
  'tokens': 0,
  'seconds': 0.0,
}


class Limits:
  """When a search ends; see `evolution.evolve`.

  Raises:
    ValueError: there is none, one cannot be, or tokens are not counted.
  """

  def __init__(
    self, generations, evaluations, tokens, count_tokens, seconds, patience
  ):
    limits = (generations, evaluations, patience, tokens, seconds)
    self._most = dict(zip(_LEAST, limits, strict=True))
    if all(limit is None for limit in limits):
      raise ValueError(
        'Got no limit of the search; expected one of generations, '
        'evaluations, tokens, seconds or patience.'
      )
    for name, limit in self._most.items():
      limit = limit.item() if isinstance(limit, np.generic) else limit
      least = _LEAST[name]
      Option(name, None, '', low=least, kind=type(least)).check(limit)
    if tokens is not None and count_tokens is None:
      raise ValueError(
        f'Got tokens {tokens} without count_tokens; expected a function that '
        'returns how many there were so far.'
      )
    if generations is None and evaluations is not None:
      self._most['generations'] = _GENERATIONS * evaluations
    self._count = count_tokens or (lambda: 0)

  def begin(self) -> None:
    """Notes the time and the tokens so far."""
    self._began, self._before = time.monotonic(), self._count()

  def left(self, state) -> int | None:
    """How many members may still be scored; None for no limit."""
    most = self._most['evaluations']
    done = 0 if state is None else int(state.evaluations)
    return None if most is None else max(0, most - done)

  def reached(self, state) -> str | None:
    """The limit that a state has reached, if any."""
    generation = int(state.generation)
    now = {
      'generations': generation,
      'evaluations': int(state.evaluations),
      'patience': generation - int(state.strategy.memory.best_generation),
      'tokens': self._count() - self._before,
      'seconds': time.monotonic() - self._began,
    }
    for name, most in self._most.items():
      if most is not None and now[name] >= most:
        return name
    return None
