"""Where a formula has no value, and the traps of mergekit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import draws
from evojax_llm.operators.merges import registry
from evojax_llm.operators.merges import sparsify

KEY = jax.random.key(0)
X = jnp.asarray([[0.4, -0.3, 0.3], [0.2, 0.55, -0.8]], jnp.float32)
Y = jnp.asarray([[-0.02, -0.5, 0.5], [0.11, 0.45, -0.31]], jnp.float32)
BASE = jnp.asarray([[0.1, -0.2, 0.3], [0.0, 0.5, -0.4]], jnp.float32)
ALL = pytest.mark.parametrize(
  'merge', registry.MERGES.values(), ids=lambda m: m.name
)


@functools.cache
def program(name, options=()):
  """One program for each merge and its options."""
  return jax.jit(functools.partial(registry.MERGES[name], **dict(options)))


def run(name, parents, base=None, **given):
  merge = registry.MERGES[name]
  values = {
    n: jnp.asarray(given.pop(n, p.default), jnp.float32)
    for n, p in merge.parameters.items()
  }
  drawn = {'key': KEY} if merge.draws else {}
  bases = () if base is None else (base,)
  parents = jnp.stack(parents[:1] if merge.most == 1 else parents)
  function = program(name, tuple(given.items()))
  return np.asarray(function(parents, *bases, **values, **drawn))


def base_for(name, base):
  return base if registry.MERGES[name].needs_base else None


HOSTILE = {
  'all equal': ([0.5] * 6, [0.5] * 6, [0.5] * 6),
  'zero parents': ([0.0] * 6, [0.0] * 6, [0.5] * 6),
  'all zero': ([0.0] * 6, [0.0] * 6, [0.0] * 6),
  'antipodal': ([0.5, -0.25] * 3, [-0.5, 0.25] * 3, [0.0] * 6),
  'colinear': ([0.5, -0.25] * 3, [1.0, -0.5] * 3, [0.0] * 6),
  'zero delta': ([0.5, -0.25] * 3, [1.0, 0.5] * 3, [0.5, -0.25] * 3),
}


@ALL
def test_is_finite_whatever_the_tensors_and_weights(merge):
  weights = ((1.0, 1.0), (0.0, 0.0), (1.0, -1.0))
  cases = [(name, w) for name in HOSTILE for w in weights]
  rows = jnp.asarray([HOSTILE[name] for name, _ in cases], jnp.float32)

  def child(row, weight):
    values = {n: jnp.float32(p.default) for n, p in merge.parameters.items()}
    values |= {'density': jnp.float32(0.5)} if 'density' in values else {}
    values |= {'weights': weight} if 'weights' in values else {}
    drawn = {'key': KEY} if merge.draws else {}
    bases = (row[2:],) if merge.needs_base else ()
    count = 1 if merge.most == 1 else 2
    return merge(row[:count, None], *bases, **values, **drawn)

  made = jax.jit(jax.vmap(child))(rows, jnp.asarray([w for _, w in cases]))
  assert made.shape == (len(cases), 1, 6)
  for case, one in zip(cases, np.asarray(made), strict=True):
    assert np.all(np.isfinite(one)), case


@ALL
def test_one_element(merge):
  one, two, base = (jnp.full((1, 1), x, jnp.float32) for x in (0.5, -0.2, 0.1))
  given = {'density': 0.5} if 'density' in merge.parameters else {}
  child = run(merge.name, [one, two], base_for(merge.name, base), **given)
  assert child.shape == (1, 1) and np.isfinite(child[0, 0])


@pytest.mark.parametrize(
  'merge',
  [m for m in registry.MERGES.values() if m.least == 1 and m.most is None],
  ids=lambda m: m.name,
)
def test_a_parent_alone_is_the_child(merge):
  child = run(merge.name, [X], base_for(merge.name, BASE))
  np.testing.assert_allclose(child, X, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
  'merge',
  [m for m in registry.MERGES.values() if 'density' in m.parameters],
  ids=lambda m: m.name,
)
def test_density_zero_gives_the_base_and_one_keeps_all(merge):
  none = run(merge.name, [X, Y], BASE, density=jnp.float32(0.0))
  np.testing.assert_array_equal(none, BASE)
  kind = registry.MERGES[merge.name]
  elects = 'election' in kind.options
  plain = 'ties' if elects else 'task_arithmetic'
  whole = run(merge.name, [X, Y], BASE, normalize='none')
  same = run(plain, [X, Y], BASE, normalize='none')
  np.testing.assert_allclose(whole, same, rtol=1e-6)


@ALL
def test_what_is_not_a_number_in_a_parent_is_seen_in_the_child(merge):
  if merge.name in ('uniform_matrix', 'uniform_layer'):
    pytest.skip('they may take the other parent')
  child = run(merge.name, [X * jnp.nan, Y], base_for(merge.name, BASE))
  assert np.any(np.isnan(child))


@pytest.mark.parametrize('name', ('nuslerp', 'model_stock'))
@pytest.mark.parametrize('span', ('row', 'column', 'tensor'))
def test_a_number_is_its_own_row(name, span):
  if span not in registry.MERGES[name].options['span'].choices:
    pytest.skip(f'{name} knows no {span}')
  one, two, base = (jnp.float32(x) for x in (0.5, -0.2, 0.1))
  child = run(name, [one, two], base, span=span)
  assert child.shape == ()
  vectors = run(name, [one[None], two[None]], base[None], span=span)
  np.testing.assert_allclose(child, vectors[0], rtol=1e-6)


def test_the_ninth_parent_is_drawn_and_rescaled_on_its_own():
  parents = [(i + 1.0) * X for i in range(9)]
  weights, half = jnp.eye(9, dtype=jnp.float32)[8], jnp.float32(0.5)
  kept = draws.decisions(KEY, X.shape, 9)[8] < draws.STEPS // 2
  delta = np.asarray(parents[8] - BASE)
  for rescale in ('none', 'l1'):
    child = run(
      'dare_linear',
      parents,
      BASE,
      weights=weights,
      density=half,
      rescale=rescale,
    )
    wanted = np.where(kept, delta, 0.0)
    if rescale == 'l1':
      wanted = wanted * np.abs(delta).sum() / np.abs(wanted).sum()
    np.testing.assert_allclose(child, BASE + wanted, rtol=1e-5, atol=1e-6)


# The traps: small tensors lose everything, or stop the merge.
def test_a_density_below_one_element_keeps_one():
  child = run('ties', [X[0], Y[0]], BASE[0], density=jnp.float32(0.1))
  assert np.sum(child != np.asarray(BASE[0])) in (1, 2)
  (kept,) = sparsify.magnitude(X[:1], BASE[0], jnp.float32(0.1))
  np.testing.assert_array_equal(kept, [X[0, 0] - BASE[0, 0], 0.0, 0.0])


def test_breadcrumbs_without_outliers_is_trimming():
  for name, plain in (
    ('breadcrumbs', 'magnitude_linear'),
    ('breadcrumbs_ties', 'ties'),
  ):
    given = {'density': jnp.float32(0.5), 'normalize': 'none'}
    crumbs = run(name, [X, Y], BASE, gamma=jnp.float32(0.1), **given)
    np.testing.assert_array_equal(crumbs, run(plain, [X, Y], BASE, **given))
    assert np.any(crumbs != np.asarray(BASE))


def test_breadcrumbs_takes_fewer_outliers_rather_than_less_than_the_density():
  parent = jnp.asarray([[5.0, -4.0, 3.0, 2.0, 1.0]], jnp.float32)
  base, gamma = jnp.zeros(5, jnp.float32), jnp.float32(0.6)
  (kept,) = sparsify.middle(parent, base, jnp.float32(0.6), gamma)
  np.testing.assert_array_equal(kept, [0.0, 0.0, 3.0, 2.0, 1.0])
  (whole,) = sparsify.middle(parent, base, jnp.float32(1.0), gamma)
  np.testing.assert_array_equal(whole, parent[0])


def test_della_of_one_element_has_the_chance_of_the_density():
  for shape in ((1,), (3, 1), ()):
    chances = sparsify.keep_chances(
      jnp.ones(shape, jnp.float32), jnp.float32(0.4), jnp.float32(0.3)
    )
    np.testing.assert_allclose(chances, np.full(shape, 0.4), rtol=1e-6)


def test_della_cuts_chances_to_zero_and_one():
  chances = sparsify.keep_chances(
    jnp.arange(5, dtype=jnp.float32), jnp.float32(0.9), jnp.float32(0.3)
  )
  np.testing.assert_allclose(chances, [0.6, 0.75, 0.9, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize('shape,axis', [((7, 300), -1), ((300, 7), -2)])
def test_della_keeps_what_the_chance_of_the_rank_keeps(shape, axis):
  rng, key = np.random.default_rng(0), jax.random.key(5)
  deltas = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)
  density, epsilon = jnp.float32(0.5), jnp.asarray([0.3, 0.0], jnp.float32)
  kept = sparsify.by_rank(
    deltas,
    jnp.zeros(shape, jnp.float32),
    density,
    epsilon,
    key,
    axis=axis,
    rescale='none',
  )
  numbers = draws.decisions(key, shape, 2)
  for delta, width, number, mine in zip(
    deltas, epsilon, numbers, kept, strict=True
  ):
    chances = sparsify.keep_chances(delta, density, width, axis)
    np.testing.assert_array_equal(mine != 0.0, number < draws.steps(chances))


def test_equals_have_one_chance_in_della():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 4, size=(40_000, 6)).astype(np.float32)
  delta, (density, epsilon) = jnp.asarray(sizes), jnp.full(2, 0.4)
  kept = sparsify.by_rank(
    delta[None],
    jnp.zeros_like(delta),
    density,
    epsilon,
    jax.random.key(0),
    rescale='none',
  )
  kept = np.asarray(kept[0]) != 0.0
  chances = np.asarray(sparsify.keep_chances(delta, density, epsilon))
  np.testing.assert_allclose(chances[0], _mean_chances(sizes[0]), rtol=1e-5)
  for size in (1.0, 2.0, 3.0):
    alike = sizes == size
    assert np.mean(kept[alike]) == pytest.approx(
      np.mean(chances[alike]), abs=0.01
    )


def _mean_chances(sizes):
  """By definition: that of the mean rank of its equals, at 0.4 +- 0.4."""
  ranks = [np.mean(np.flatnonzero(np.sort(sizes) == one)) for one in sizes]
  return 0.8 * np.asarray(ranks) / (len(sizes) - 1)


def test_arcee_fusion_draws_nothing():
  rng = np.random.default_rng(0)
  base = jnp.asarray(rng.normal(size=(1100, 1000)), jnp.float32)
  other = base + jnp.asarray(rng.normal(size=base.shape) ** 3, jnp.float32)
  one, two = (run('arcee_fusion', [other], base) for _ in range(2))
  np.testing.assert_array_equal(one, two)
  taken = np.mean(one != np.asarray(base))
  assert 0.01 < taken < 0.3


def test_a_merge_can_be_made_again_from_its_key():
  given = {'density': jnp.float32(0.5)}
  one, two = (run('dare_ties', [X, Y], BASE, **given) for _ in range(2))
  np.testing.assert_array_equal(one, two)


def test_k_of_zero_positions_is_the_base():
  child = run('sce', [X, Y], BASE, select_topk=jnp.float32(0.1))
  np.testing.assert_array_equal(child, BASE)


def test_directions_that_cancel_are_merged_linearly():
  weights = jnp.asarray([0.5, 0.5], jnp.float32)
  for name in ('multislerp', 'nuslerp'):
    np.testing.assert_allclose(
      run(name, [X, -X], weights=weights), 0.0 * X, atol=1e-6
    )
  child = run('slerp', [X, -X], t=jnp.float32(0.25))
  np.testing.assert_allclose(child, 0.5 * X, atol=1e-6)
  # Halfway on some great circle there is no child; the mean has that length.
  child = run('karcher', [X, -X])
  assert np.linalg.norm(child) == pytest.approx(np.linalg.norm(X), rel=1e-3)


def test_a_parent_of_zero_has_no_direction():
  np.testing.assert_allclose(
    run('karcher', [X, 0.0 * X]), 0.5 * np.asarray(X), atol=1e-6
  )
  assert not np.any(run('karcher', [0.0 * X, 0.0 * X]))


def test_model_stock_of_opposed_deltas():
  child = run('model_stock', [BASE + X, BASE - X], BASE)
  np.testing.assert_allclose(child, BASE, atol=1e-6)  # 1 + (k - 1) c = 0
  delta = jnp.asarray([[1.0, 0.0]], jnp.float32)
  other = jnp.asarray([[-0.6, 0.8]], jnp.float32)
  origin = jnp.zeros((1, 2), jnp.float32)
  far = run('model_stock', [delta, other], origin)
  t = 2 * -0.6 / (1 - 0.6)
  np.testing.assert_allclose(far, t * (delta + other) / 2, rtol=1e-5)
  near = run('model_stock', [delta, other], origin, negative='base')
  np.testing.assert_array_equal(near, origin)


def test_zero_in_an_election_is_a_plus_and_never_agrees():
  base = jnp.zeros(4, jnp.float32)
  one = jnp.asarray([1.0, 0.0, 0.0, 0.0], jnp.float32)
  two = jnp.asarray([-1.0, -2.0, 2.0, 0.0], jnp.float32)
  child = run('ties', [one, two], base)
  np.testing.assert_array_equal(child, [1.0, -2.0, 2.0, 0.0])


@pytest.mark.parametrize(
  'election, expected',
  [('weighted', -3.0), ('unweighted', -3.0), ('frequency', 1.0)],
)
def test_elections(election, expected):
  parents = [jnp.asarray([x], jnp.float32) for x in (1.0, 1.0, -3.0)]
  child = run('ties', parents, jnp.zeros(1, jnp.float32), election=election)
  np.testing.assert_allclose(child, [expected])


def test_the_paper_elects_without_weights():
  parents = [jnp.asarray([x], jnp.float32) for x in (1.0, -3.0)]
  weights = jnp.asarray([1.0, 0.1], jnp.float32)
  given = {'weights': weights, 'normalize': 'count'}
  zero = jnp.zeros(1, jnp.float32)
  assert run('ties', parents, zero, election='weighted', **given) == 1.0
  paper = run('ties', parents, zero, election='unweighted', **given)
  np.testing.assert_allclose(paper, [-0.3])


def test_rescales():
  parent = jnp.asarray([[4.0, 2.0, 1.0, 1.0]], jnp.float32)
  base, half = jnp.zeros(4, jnp.float32), jnp.float32(0.5)
  expected = {'none': 1.0, 'density': 2.0, 'l1': 8.0 / 6.0}
  for rescale, factor in expected.items():
    (kept,) = sparsify.magnitude(parent, base, half, rescale=rescale)
    np.testing.assert_allclose(kept, factor * np.asarray([4.0, 2.0, 0, 0]))


def test_blx_stays_within_its_bounds_and_fills_them():
  many = [jnp.zeros(4000, jnp.float32), jnp.ones(4000, jnp.float32)]
  child = run('blx', many, alpha=jnp.float32(0.5))
  assert -0.5 <= child.min() < -0.45 and 1.45 < child.max() < 1.5
  clamped = run('blx', many, alpha=jnp.float32(0.5), form='clamp')
  np.testing.assert_array_equal(clamped, run('linear', many))


def test_sbx_spreads_as_its_index_says():
  many = [jnp.zeros(8000, jnp.float32), jnp.full(8000, 2.0, jnp.float32)]
  for eta in (0.0, 4.0):
    beta = np.abs(run('sbx', many, eta=jnp.float32(eta)) - 1.0)
    # Half contracts; the density there is (eta + 1) / 2 beta^eta.
    assert np.mean(beta < 1) == pytest.approx(0.5, abs=0.03)
    mean = np.mean(beta[beta < 1])
    assert mean == pytest.approx((eta + 1) / (eta + 2), abs=0.02)
    median = np.median(1 / beta[beta > 1])
    assert median == pytest.approx(0.5 ** (1 / (eta + 1)), abs=0.03)
  child = run('sbx', many)
  assert np.mean(child < 1) == pytest.approx(0.5, abs=0.03)


def test_uniform_choice_keeps_the_bits_of_every_parent():
  parents = [jnp.full(6000, x, jnp.float32) for x in (0.1, 0.2, 0.3)]
  child = run('uniform_element', parents)
  found, counts = np.unique(child, return_counts=True)
  np.testing.assert_array_equal(found, np.asarray([0.1, 0.2, 0.3], np.float32))
  assert np.all(abs(counts - 2000) < 200)


def test_bf16_is_merged_in_f32_and_cast_once():
  parents = [jnp.full(3, x, jnp.bfloat16) for x in (256.0, 1.0, 1.0)]
  child = run('linear', parents, normalize='none')
  np.testing.assert_array_equal(child.astype(np.float32), 258.0)


@pytest.mark.parametrize('cosine, spherical', ((0.9993, True), (0.9997, False)))
def test_slerp_is_linear_of_nearly_parallel_parents_alone(cosine, spherical):
  sine = np.sqrt(1.0 - cosine**2)
  one, two = jnp.asarray([1.0, 0.0]), jnp.asarray([cosine, sine], jnp.float32)
  length = np.linalg.norm(run('slerp', [one, two]))
  # Half way, the arc has length one and the chord the cosine of half the angle.
  expected = 1.0 if spherical else np.cos(np.arccos(cosine) / 2)
  assert length == pytest.approx(expected, abs=1e-5)
