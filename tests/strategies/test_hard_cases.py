"""What no search should stumble over, each with its documented outcome.

| case | outcome |
|---|---|
| some members fail (NaN) | never the best or the worst; finite proposals |
| all fail | the run goes on, and finds a best as soon as one lives |
| all fitness equal | the first member stays the best; finite proposals |
| one expert only | as `ONE_EXPERT` says: a run, or an error that says why |
| more members than pairs | pairs return with weights of their own |
| a small sigma on bf16 | rounded at random: kept on average |
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import initial
from evojax_llm.population import stack
from evojax_llm.strategies import registry
from evojax_llm.strategies.genome import algorithm
from evojax_llm.systems import evogm
from tests.strategies import problems

P = 6
_AS_RELEASED = {
  'personal': False,
  'rescore': False,
  'draws': 'run',
  'decay': 'member',
}
STRATEGIES = {
  'genome': ('genome', {'merge': 'dare_ties', 'parents': 'universal'}),
  'genome_plus, growing': ('genome_plus', {'max_population': 9}),
  'genome_plus, as released': ('genome_plus', _AS_RELEASED),
  'model_swarms': ('model_swarms', {'restart_after': 2}),
  'model_swarms, as released': ('model_swarms', {'restart': 'forever'}),
  'low_rank_es': ('low_rank_es', {}),
  'pso_merging': ('pso_merging', {}),
  'm2n2': ('m2n2', {'archive': 7, 'children': 2}),
  'evomerge, growing': (
    'evomerge',
    {'mutation': 'gaussian', 'max_population': 8, 'expand_steps': 2},
  ),
  'evogm': ('evogm', {'top_k': 4, 'width': 8, 'epochs': 2, 'inner': 2}),
  'SimpleGA': ('SimpleGA', {'sigma': 0.1}),
  'PSO': ('PSO', {}),
  'Sep_CMA_ES': ('Sep_CMA_ES', {'sigma': 0.1}),
  'bipop_cma_es': ('bipop_cma_es', {'doublings': 1, 'min_num_gens': 1.0}),
}


@functools.cache
def make(row):
  name, options = STRATEGIES[row]
  one = jax.tree.map(lambda leaf: leaf[0], problems.population(members=P))
  if name == 'genome':
    options = {'merge_base': jax.tree.map(jnp.zeros_like, one)} | options
  return registry.make_strategy(name, P, genome=one, **options)


def start(strategy, score):
  members = problems.population(members=P)
  scores = problems.seen(strategy, score(members))
  return strategy.init(problems.KEY, members, scores, strategy.default_params)


def some_fail(members):
  first = members['layers']['mlp']['a'][:, 0, 0, 0]
  return jnp.where(first < 0.0, jnp.nan, problems.fitness(members))


def all_fail(members):
  return jnp.full(members['layers']['mlp']['a'].shape[0], jnp.nan)


def all_equal(members):
  return jnp.full(members['layers']['mlp']['a'].shape[0], 0.5)


def is_finite(tree):
  return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('row', STRATEGIES)
def test_failures_and_draws_of_fitness(row):
  strategy = make(row)

  first = start(strategy, some_fail)
  assert 0 < np.isnan(some_fail(problems.population(members=P))).sum() < P
  best = -np.inf
  for members, fitness, before, after in problems.play(
    strategy, first, 4, score=some_fail
  ):
    assert is_finite(members)
    living = fitness[np.isfinite(fitness)]
    best = max([best, before.memory.best_fitness, *living])
    assert float(after.memory.best_fitness) == pytest.approx(best)
    assert np.isfinite(after.memory.worst_fitness)

  first = start(strategy, all_fail)
  for members, *_, after in problems.play(strategy, first, 2, score=all_fail):
    assert is_finite(members) and np.isnan(after.memory.best_fitness)
  assert np.isfinite(problems.last(strategy, after, 2).memory.best_fitness)

  first = start(strategy, all_equal)
  for members, *_, after in problems.play(strategy, first, 4, score=all_equal):
    assert is_finite(members)
    assert int(after.memory.best_id) == 0 == int(after.memory.worst_id)
    assert float(after.memory.best_fitness) == 0.5


# What each preset's initial population makes of a single expert.
_PAIRS = 'at least two to make pairs'
_FEW = "makes 1 members out of 1 experts.*End it with 'extrapolants'"
_ANCHORS = 'makes 2 members out of 1 experts'
ONE_EXPERT = {
  **dict.fromkeys(evogm.PRESETS),
  'genome': None,
  'genome_plus': None,
  'genome_as_published': _PAIRS,
  'genome_as_published_cli': _PAIRS,
  'genome_plus_as_published': _PAIRS,
  'genome_plus_as_published_cli': _FEW,
  'low_rank_es': None,
  'seeded_es': None,
  'seeded_es_1024': None,
  'seeded_es_8192': None,
  'm2n2': None,
  'm2n2_ga': None,
  'm2n2_as_published': _FEW,
  'model_swarms': None,
  'model_swarms_as_published': "possible parents for 'extrapolants'",
  'model_swarms_as_published_cli': _FEW,
  'model_swarms_as_published_light': _FEW,
  'model_swarms_by_genome': _PAIRS,
  'moco': _FEW,
  'pso_merging': _ANCHORS,
  'pso_merging_long': _ANCHORS,
}


def experts(count):
  return problems.population(members=count, seed=3)


@pytest.mark.parametrize('name', problems.PRESETS)
def test_one_expert_only(name):
  preset = problems.PRESETS[name]
  population_of = functools.partial(
    initial.make_initial,
    experts(1),
    preset.recipe,
    preset.population,
    problems.KEY,
  )
  if ONE_EXPERT[name]:
    with pytest.raises(ValueError, match=ONE_EXPERT[name]):
      population_of()
    return
  made = population_of()
  leaf = made.population['layers']['mlp']['b']
  assert leaf.shape[0] == preset.population and is_finite(leaf)
  # Beyond the expert, members differ from it in their mass.
  assert len({bytes(np.asarray(row)) for row in leaf}) > 2


def test_more_members_than_pairs():
  # Three experts make three pairs; the as-published presets ask for ten.
  for name in ('genome_as_published', 'genome_plus_as_published'):
    preset = problems.PRESETS[name]
    made = initial.make_initial(
      experts(3), preset.recipe, preset.population, problems.KEY
    )
    pairs = [tuple(row.parents) for row in made.rows]
    assert len(set(pairs)) == 3 and pairs[:3] == pairs[3:6]
    leaf = made.population['layers']['mlp']['b']
    assert len({bytes(np.asarray(row)) for row in leaf}) == len(pairs)
  # The others fill up with points between members that there are.
  preset = problems.PRESETS['model_swarms_as_published']
  made = initial.make_initial(
    experts(3), preset.recipe, preset.population, problems.KEY
  )
  assert len(made.rows) == preset.population


def test_mutants_of_bf16_are_changed_by_a_small_sigma():
  strategy = algorithm.Genome(
    P, with_succession=False, cross_rate=0.0, mutation_rate=1.0, sigma=1e-3
  )
  state = problems.start(strategy, jnp.bfloat16)
  ((members, _, before, _),) = problems.play(strategy, state, 1)
  slots = np.flatnonzero(before.proposal.ids >= 0)
  assert len(slots)
  first = np.asarray(before.proposal.parents)[slots, 0]
  sources = stack.take(problems.population(jnp.bfloat16, P), first)
  old, new = (
    np.asarray(population['layers']['mlp']['a'], np.float32)
    for population in (sources, stack.take(members, slots))
  )
  # Half a step of these is nearly three sigma, or more.
  large = np.abs(old) > 1.5 * np.std(old)
  assert np.any((new != old)[large])
