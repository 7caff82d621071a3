"""Children by any merge of two parents, on every kind of genome."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.strategies import base
from evojax_llm.strategies import registry
from evojax_llm.strategies.genome import algorithm
from evojax_llm.strategies.genome import crossover
from evojax_llm.systems import genome as genome_config
from tests.strategies import problems

P = 4
TWO_PARENTS = [n for n, m in MERGES.items() if (m.most or 2) >= 2 >= m.least]


def gates():
  return {'gates': jax.random.normal(problems.KEY, (P, 5))}


def weights():
  kernel = jax.random.normal(problems.KEY, (P, 2, 3, 4))
  return {'layers': {'mlp': {'kernel': kernel}}, 'norm': jnp.ones((P, 3))}


def all_kinds():
  """Factors beside whole kernels and a vector, in one genome."""
  members = weights()
  members['layers'] |= {'lora': problems.population(members=P)['layers']['mlp']}
  return members


def base_of(members):
  return jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), members)


def children(strategy, members):
  strategy.layers = 'layers'
  scores = base.Scores(jnp.linspace(1.0, 0.2, P))
  params = strategy.default_params
  state = strategy.init(problems.KEY, members, scores, params)
  made, asked = strategy.ask(problems.KEY, state, params)
  half = strategy.num_children
  return jax.tree.map(lambda leaf: np.asarray(leaf[:half]), made), asked


@pytest.mark.parametrize('merge', TWO_PARENTS)
def test_every_merge_of_two_fits_every_genome_or_says_why_not(merge):
  for members in (gates(), all_kinds()):
    one = jax.tree.map(lambda leaf: leaf[0], members)
    options = {'merge': merge, 'with_succession': False}
    if MERGES[merge].needs_base:
      with pytest.raises(ValueError, match='change of a base, and no base'):
        algorithm.Genome(P, **options).check_genome(one)
      options['merge_base'] = jax.tree.map(jnp.zeros_like, one)
    strategy = algorithm.Genome(P, **options)
    params = strategy.default_params
    strategy.check_genome(one)

    def ask(members, strategy=strategy, params=params):
      scores = base.Scores(jnp.zeros((P,)))
      state = strategy.init(problems.KEY, members, scores, params)
      return strategy.ask(problems.KEY, state, params)[0]

    made = jax.eval_shape(ask, members)
    kinds = jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), members)
    assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), made) == kinds


@pytest.mark.parametrize('merge', ('dare_ties', 'slerp', 'uniform_layer'))
def test_children_are_finite_and_their_own(merge):
  members = problems.population(members=P)
  strategy = algorithm.Genome(
    P,
    merge=merge,
    merge_base=base_of(members),
    with_succession=False,
    cross_rate=1.0,
    mutation_rate=0.0,
  )
  made, asked = children(strategy, members)
  assert int(asked.proposal.filled.sum()) == P // 2
  for leaf in jax.tree.leaves(made):
    assert np.all(np.isfinite(leaf))
    assert np.any(leaf[0] != leaf[1])


def test_ties_of_adapters_is_the_published_one():
  # GENOME's released code: 0.7 of each parent by magnitude, the sign of their
  # sum, and a weighted sum divided by how many have that sign.
  members = problems.population(members=P)
  strategy = algorithm.Genome(
    P,
    merge='ties',
    merge_base=base_of(members),
    merge_options={'normalize': 'count', 'election': 'unweighted'},
    merge_parameters={'density': 0.7, 'epsilon': None},
    weighing='fitness',
    with_succession=False,
    cross_rate=1.0,
  )
  made, asked = children(strategy, members)
  fitness = np.linspace(1.0, 0.2, P)
  pairs = np.asarray(asked.proposal.parents[: P // 2])
  for child, pair in enumerate(pairs):
    w = fitness[pair] / fitness[pair].sum()
    for name in 'ab':
      leaf = np.asarray(members['layers']['mlp'][name])[pair]
      for layer in range(leaf.shape[1]):
        x = leaf[:, layer]
        kept = np.zeros_like(x)
        for i in range(2):
          count = int(0.7 * x[i].size)
          order = np.argsort(-np.abs(x[i]).ravel())[:count]
          kept[i].ravel()[order] = x[i].ravel()[order]
        sign = np.where(kept.sum(axis=0) >= 0, 1.0, -1.0)
        agree = (np.sign(kept) == sign) & (kept != 0)
        total = (w[:, None, None] * kept * agree).sum(axis=0)
        wanted = total / np.maximum(1, agree.sum(axis=0))
        np.testing.assert_allclose(
          made['layers']['mlp'][name][child, layer], wanted, rtol=1e-5
        )


def test_hyperparameters_of_a_merge_recompile_nothing():
  members = problems.population(members=P)
  strategy = algorithm.Genome(
    P, merge='ties', merge_base=base_of(members), with_succession=False
  )
  params = strategy.default_params
  state = strategy.init(problems.KEY, members, problems.scores(members), params)
  one, _ = strategy.ask(problems.KEY, state, params)
  compiled = type(strategy)._ask._cache_size()
  thin = params.replace(merge=params.merge | {'density': jnp.float32(0.2)})
  two, _ = strategy.ask(problems.KEY, state, thin)
  assert type(strategy)._ask._cache_size() == compiled
  assert np.any(
    one['layers']['mlp']['a'][: P // 2] != two['layers']['mlp']['a'][: P // 2]
  )


@pytest.mark.parametrize(
  'weighing, wanted',
  [
    ('line', (1.0, 0.0)),
    ('fitness', (0.25, 0.75)),
    ('softmax', (1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-2.0)))),
    ('random', (2 / 3, 1 / 3)),
    ('equal', (0.5, 0.5)),
  ],
)
def test_weighings(weighing, wanted):
  params = base.make_params(
    algorithm.Params, {'cross_high': 2.0, 'temperature': 0.1}
  )
  weights = crossover.weigh(
    weighing, jnp.asarray([0.5, 0.25]), jnp.asarray([0.1, 0.3]), params
  )
  np.testing.assert_allclose(weights, wanted, rtol=1e-5)


@pytest.mark.parametrize('weighing', crossover.WEIGHINGS)
def test_weighings_bear_failures(weighing):
  params = base.make_params(algorithm.Params, {})
  for fitness in ([np.nan, 0.5], [np.nan, np.nan], [0.0, 0.0], [-1.0, 2.0]):
    weights = crossover.weigh(
      weighing, jnp.asarray([0.5, 0.25]), jnp.asarray(fitness), params
    )
    assert float(jnp.sum(weights)) == pytest.approx(1.0)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'merge': 'nearswap'}, "'nearswap', which is of 1 parents"),
    ({'merge': 'nonsense'}, "'nonsense'; expected one of"),
    (
      {'merge_parameters': {'density': 0.5}},
      "unknown parameter 'density' for linear",
    ),
    (
      {'merge': 'ties', 'merge_parameters': {'density': 1.5}},
      'Got density 1.5 for ties; expected 0 to 1',
    ),
    (
      {'merge_options': {'election': 'weighted'}},
      "unknown option 'election' for linear",
    ),
    (
      {'merge': 'ties', 'merge_options': {'election': 'most'}},
      "Got election 'most' for ties",
    ),
  ],
)
def test_what_cannot_be_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    algorithm.Genome(P, **options)


def test_whole_weights_are_merged_by_what_they_change_of_the_base():
  members = weights()
  one = jax.tree.map(lambda leaf: leaf[0], members)
  options = {'merge': 'task_arithmetic', 'weighing': 'equal'}
  with pytest.raises(ValueError, match='or give merge_base=space.base'):
    registry.make_strategy('genome', P, genome=one, **options)

  class Space:
    """A space of whole weights."""

    def experts(self):
      return members

    def base(self):
      return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, one)

  base_genome = Space().base()
  strategy = registry.make_strategy(
    'genome',
    P,
    Space(),
    merge_parameters={'lambda_': 3.0},
    cross_rate=1.0,
    **options,
  )
  made, asked = children(strategy, members)
  pairs = np.asarray(asked.proposal.parents[: P // 2])
  for child, start, leaf in zip(
    *map(jax.tree.leaves, (made, base_genome, members)), strict=True
  ):
    mean = np.asarray(leaf)[pairs].mean(axis=1)
    np.testing.assert_allclose(
      child, start + 3.0 * (mean - start), rtol=1e-4, atol=1e-5
    )


def test_the_configuration_names_what_merges_take():
  parameters = {
    name for merge in TWO_PARENTS for name in MERGES[merge].parameters
  }
  options = {name for merge in TWO_PARENTS for name in MERGES[merge].options}
  config = genome_config.get_config().strategy.options
  assert set(config.merge_parameters) == parameters - {'weights', 't'}
  assert set(config.merge_options) == options
