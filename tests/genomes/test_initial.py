import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import initial
from evojax_llm.population import stack
from tests.genomes import experts

KEY = jax.random.key(42)


def population(num_experts=10, dtype=jnp.float32):
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf, dtype),
    experts.adapter_set(num_experts).factors,
  )


def module(tree, name='q_proj'):
  return tree['layers']['self_attn'][name]


def make(recipe, size, num_experts=10, key=KEY, dtype=jnp.float32):
  return initial.make_initial(population(num_experts, dtype), recipe, size, key)


@pytest.mark.parametrize('dtype', (jnp.float32, jnp.bfloat16))
def test_experts_are_untouched(dtype):
  made = make(('experts',), 10, dtype=dtype)
  jax.tree.map(
    np.testing.assert_array_equal, made.population, population(dtype=dtype)
  )
  assert made.operators == ('expert',) * 10
  np.testing.assert_array_equal(made.parents[:, 0], np.arange(10))


def test_ten_experts_make_45_pairs_then_the_same_again():
  pairs = initial.expert_pairs(10, 50, KEY)
  assert len(set(pairs)) == len(set(pairs[:45])) == 45
  assert pairs[45:] == pairs[:5]
  assert len(set(initial.expert_pairs(10, 40, KEY))) == 40
  assert pairs != initial.expert_pairs(10, 50, jax.random.key(1))


def test_pairs_are_convex_with_both_factors_alike():
  made = make(('pairs',), 6)
  source, children = module(population()), module(made.population)
  shares = set()
  for place, (row, (a, b)) in enumerate(
    zip(made.rows, made.parents, strict=True)
  ):
    u, w = row.first[a], row.first[b]
    assert u + w == pytest.approx(1.0) and 0 < u < 1
    assert np.count_nonzero(row.first) == 2
    shares.add(round(u, 6))
    for x in ('a', 'b'):
      np.testing.assert_allclose(
        children[x][place], u * source[x][a] + w * source[x][b], atol=1e-5
      )
  assert len(shares) == 6


def test_zero_average_and_scaled_average():
  made = make(('zero', 'average', ('scaled_average', {'factor': 4.0})), 3)
  source, children = module(population()), module(made.population)
  mean = {x: np.mean(source[x], axis=0) for x in ('a', 'b')}
  for place, mass in enumerate((0.0, 1.0, 4.0)):
    np.testing.assert_allclose(children['a'][place], mean['a'], atol=1e-6)
    np.testing.assert_allclose(
      children['b'][place], mass * mean['b'], atol=1e-5
    )
  assert made.operators == ('zero', 'average', 'scaled_average')


@pytest.mark.parametrize('bad', (np.nan, np.inf))
def test_an_expert_that_is_not_finite_spoils_what_it_is_in_alone(bad):
  experts = population()
  pair = module(experts)
  pair['b'] = pair['b'].at[3, 0, 0, 0].set(bad)
  weights = np.array([[0.0] * 10, [0.5, 0.5] + [0.0] * 8, [0.1] * 10])
  mixed = module(initial.combine(experts, weights, weights))
  finite = np.isfinite(np.asarray(mixed['b'])).reshape(3, -1)
  assert finite[:2].all() and not finite[2].any()
  assert np.isfinite(mixed['a']).all()
  np.testing.assert_array_equal(mixed['b'][0], 0.0)


@pytest.mark.parametrize(
  'name, beyond', [('interpolants', False), ('extrapolants', True)]
)
def test_children_of_a_growing_list(name, beyond):
  made = make(('experts', 'zero', name), 60)
  rows = made.rows
  # Experts are 0..9; members of the population are 10 + place.
  for place in range(11, 60):
    a, b = made.parents[place] - 10
    assert a != b and max(a, b) < place
    t = np.linalg.lstsq(
      (rows[a].first - rows[b].first)[:, None],
      rows[place].first - rows[b].first,
    )[0][0]
    assert 0 <= t < (2 if beyond else 1)
    np.testing.assert_allclose(
      rows[place].second,
      t * rows[a].second + (1 - t) * rows[b].second,
      atol=1e-9,
    )
  grandchildren = made.parents[11:] - 10 >= 11
  assert np.any(grandchildren)
  weights = np.stack([row.first for row in rows[11:]])
  assert np.any(weights < -1e-9) == beyond
  assert stack.size(made.population) == 60


def test_a_child_is_made_of_its_parents_tensors():
  made = make(('experts', 'extrapolants'), 12)
  row, (a, b) = made.rows[10], made.parents[10] - 10
  t = row.first[a]
  for leaf in module(made.population).values():
    np.testing.assert_allclose(
      leaf[10], t * leaf[a] + (1 - t) * leaf[b], atol=1e-4
    )


def test_noise_copies_differ_from_their_expert_and_from_each_other():
  made = make((('noise', {'sigma': 0.1}),), 20)
  source, copies = module(population()), module(made.population)
  gaps = np.asarray(copies['a']) - np.tile(source['a'], (2, 1, 1, 1))
  assert np.std(gaps) == pytest.approx(0.1, rel=0.2)
  assert np.any(gaps[:10] != gaps[10:])


def test_the_seed_decides_and_size_does_not():
  recipe = ('experts', 'extrapolants')
  small, large, other = (
    make(recipe, 12),
    make(recipe, 15),
    make(recipe, 12, key=jax.random.key(1)),
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y[:12]),
    small.population,
    large.population,
  )
  assert np.any(module(small.population)['a'] != module(other.population)['a'])


@pytest.mark.parametrize(
  'recipe, size, num_experts, message',
  [
    (('expert',), 3, 3, "'expert'. Did you mean 'experts'"),
    (('experts',), 4, 3, 'makes 3 members out of 3 experts; expected 4'),
    ((('zero', {'mass': 1}),), 1, 3, "'mass'.*'zero'"),
    (('pairs',), 2, 1, 'expected at least two'),
    (('zero', 'interpolants'), 2, 3, 'Got 1 possible parents'),
    (('experts',), 0, 3, 'population of 0'),
  ],
)
def test_recipes_that_cannot_be_made(recipe, size, num_experts, message):
  with pytest.raises(ValueError, match=message):
    make(recipe, size, num_experts)
