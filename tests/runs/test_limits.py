"""What ends a search."""

import types

import jax
import numpy as np
import pytest

from evojax_llm.runs import evolution
from evojax_llm.runs import runner
from evojax_llm.strategies.genome.algorithm import Genome

P = 6


def make_population():
  return {'x': jax.random.normal(jax.random.key(3), (P, 4))}


def of_x(population, which):
  return -np.abs(np.asarray(population['x'])[which] - 1).mean(axis=1)


def evolve(strategy=None, score=of_x, **limits):
  return evolution.evolve(
    strategy or Genome(P),
    None,
    score,
    population=make_population(),
    **limits,
  )


def test_a_search_that_proposes_nothing_ends():
  strategy = Genome(P, with_succession=False, mutation_rate=0.0, cross_rate=0.0)
  search = evolve(strategy, evaluations=P + 1)
  assert list(search)[-1][1].number == 10 * (P + 1)
  assert search.stop == 'generations'


def test_tokens_and_seconds_end_a_search(monkeypatch):
  tokens = []

  def score(population, which):
    tokens.extend(which)
    return of_x(population, which)

  search = evolve(score=score, tokens=2 * P, count_tokens=lambda: len(tokens))
  assert len(list(search)) == 2 and search.stop == 'tokens'
  clock = iter(range(100))
  ticking = types.SimpleNamespace(monotonic=lambda: next(clock))
  monkeypatch.setattr(evolution, 'time', ticking)
  search = evolve(seconds=3)
  assert len(list(search)) == 3 and search.stop == 'seconds'


def test_members_beyond_the_budget_are_no_failures():
  *_, (_, last) = evolve(evaluations=P + 1)
  beyond = len(last.ids) - 1
  told = f'  1 scored, {beyond} beyond the budget not scored'
  assert beyond > 0 and runner._line(last, percent=False).endswith(told)


@pytest.mark.parametrize(
  'limits, message', [({}, 'no limit'), ({'tokens': 5}, 'count_tokens')]
)
def test_a_search_needs_a_limit(limits, message):
  with pytest.raises(ValueError, match=message):
    evolve(**limits)
