"""What ends a search, and what begins none."""

import types

import jax
import numpy as np
import pytest

from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.runs import evolution
from evojax_llm.runs import memory
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


def test_seeds_of_an_ask_are_not_counted_as_genomes():
  checked = []
  evaluator = types.SimpleNamespace(
    check_population=lambda _, members, devices: checked.append(members)
  )

  def check(seeds, members):
    strategy = types.SimpleNamespace(
      capacity=12, num_proposals=members, shares_centre=seeds
    )
    memory.check_population(
      types.SimpleNamespace(
        strategy=strategy,
        setup=types.SimpleNamespace(space=None),
        evaluator=evaluator,
        host=None,
        mesh=None,
      )
    )

  check(False, 100_000)
  check(True, 100_000)
  assert checked == [100_000, 12]
  with pytest.raises(MemoryPlanError, match='at most 131,072'):
    check(True, 200_000)


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
  'limits, message',
  [
    ({}, 'no limit'),
    ({'tokens': 5}, 'count_tokens'),
    ({'generations': -1}, 'generations -1; expected 0 or more'),
    ({'generations': 2.5}, 'generations 2.5; expected 0 or more, whole'),
    ({'evaluations': 0}, 'evaluations 0; expected 1 or more'),
    ({'seconds': np.float64('nan')}, 'seconds nan; expected 0 or more, finite'),
  ],
)
def test_a_search_needs_a_limit_that_can_be(limits, message):
  with pytest.raises(ValueError, match=message):
    evolve(**limits)


@pytest.mark.parametrize(
  'returned, message',
  [
    (None, 'NoneType as the fitness of 6 members; expected one number each'),
    (1.0, r'float of shape \(\) as the fitness'),
    (['a'] * P, 'list as the fitness'),
    ([1.0] * 3, r'list of shape \(3,\)'),
    ([np.nan] * P, 'Have score return a finite number'),
  ],
)
def test_a_score_returns_a_number_for_each_member(returned, message):
  with pytest.raises(ValueError, match=message) as caught:
    list(evolve(score=lambda population, which: returned, generations=1))
  assert 'adapters' not in str(caught.value)


def test_a_search_needs_something_to_begin_with():
  with pytest.raises(ValueError, match='no space, population or state'):
    evolution.evolve(Genome(P), None, of_x, generations=1)
