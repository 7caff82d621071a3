import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators import mutation
from tests.operators import genomes
from tests.operators import layered

KEY = jax.random.key(7)


def big(dtype=jnp.float32):
  """One member large enough for statistics: A of scale 1, B of 1e-3."""
  a, b = jax.random.split(jax.random.key(1))
  return {
    'layers': {
      'mlp': {
        'a': jax.random.normal(a, (4, 50, 40), jnp.float32).astype(dtype),
        'b': (1e-3 * jax.random.normal(b, (4, 40, 50), jnp.float32)).astype(
          dtype
        ),
      }
    }
  }


def changes(genome, **options):
  mutate = jax.jit(functools.partial(layered.gaussian, **options))
  mutant = mutate(KEY, genome)
  pair = genome['layers']['mlp'], mutant['layers']['mlp']
  return {
    name: np.asarray(pair[1][name], np.float32)
    - np.asarray(pair[0][name], np.float32)
    for name in ('a', 'b')
  }


def test_absolute_noise_has_the_same_deviation_everywhere():
  change = changes(big(), sigma=0.01, gene_rate=1.0, relative=False)
  assert np.std(change['a']) == pytest.approx(0.01, rel=0.05)
  assert np.std(change['b']) == pytest.approx(0.01, rel=0.05)


def test_relative_noise_follows_each_matrix():
  genome = big()
  a = genome['layers']['mlp']['a']
  genome['layers']['mlp']['a'] = a.at[2].multiply(100.0)
  change = changes(genome, sigma=0.1, gene_rate=1.0)
  assert np.std(change['a'][0]) == pytest.approx(0.1, rel=0.05)
  assert np.std(change['a'][2]) == pytest.approx(10.0, rel=0.05)
  assert np.std(change['b']) == pytest.approx(1e-4, rel=0.05)


def test_a_zero_matrix_stays_zero_under_relative_noise():
  genome = jax.tree.map(jnp.zeros_like, genomes.member())
  mutant = layered.gaussian(KEY, genome, 0.1, 1.0)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(mutant))


@pytest.mark.parametrize('gene_rate', (0.0, 0.01, 0.5, 1.0))
def test_elements_change_at_the_gene_rate(gene_rate):
  change = changes(big(), sigma=0.1, gene_rate=gene_rate)
  for leaf in change.values():
    assert np.mean(leaf != 0) == pytest.approx(gene_rate, abs=0.02)


def test_matrices_change_whole_and_on_their_own():
  genome = {
    'layers': {'mlp': {x: jnp.ones((200, 3, 3)) for x in ('a', 'b')}},
    'plain': jnp.ones((3, 3)),
  }
  mutant = jax.jit(functools.partial(layered.gaussian, mask='matrix'))(
    KEY, genome, 0.1, 0.5
  )
  changed = {}
  for name, leaf in mutant['layers']['mlp'].items():
    moved = np.asarray(leaf != 1.0)
    per_matrix = moved.mean(axis=(1, 2))
    assert set(per_matrix) <= {0.0, 1.0}
    assert 0.35 < per_matrix.mean() < 0.65
    changed[name] = per_matrix
  assert np.any(changed['a'] != changed['b'])


def test_layers_change_with_all_their_matrices():
  genome = {
    'layers': {
      'mlp': {x: jnp.ones((200, 3, 3)) for x in ('a', 'b')},
      'norm': jnp.ones((200, 5)),
    },
    'plain': jnp.ones((3, 3)),
  }
  mutant = jax.jit(functools.partial(layered.gaussian, mask='layer'))(
    KEY, genome, 0.1, 0.5
  )
  a, b = (np.asarray(mutant['layers']['mlp'][x] != 1.0) for x in ('a', 'b'))
  norm = np.asarray(mutant['layers']['norm'] != 1.0)
  np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(norm.all(axis=1), a.all(axis=(1, 2)))
  assert 0.35 < a.mean() < 0.65


def test_small_changes_of_bf16_are_drawn_in_f32():
  genome = {'x': jnp.full((4000,), 100.0, jnp.bfloat16)}
  mutant = layered.gaussian(
    KEY, genome, 0.3, 1.0, relative=False, rounding='nearest'
  )
  # Neighbours of 100 in bf16 lie 0.5 apart: f32 noise of 0.3 reaches them in
  # the share of draws beyond a quarter.
  moved = np.mean(np.asarray(mutant['x'], np.float32) != 100.0)
  assert moved == pytest.approx(0.405, abs=0.03)


def test_stochastic_rounding_keeps_changes_below_half_a_step():
  # Neighbours of 100 in bf16 lie 0.5 apart: noise of 0.01 reaches none.
  genome = {'x': jnp.full((200_000,), 100.0, jnp.bfloat16)}
  for rounding in ('nearest', 'stochastic'):
    mutant = layered.gaussian(
      KEY, genome, 0.01, 1.0, relative=False, rounding=rounding
    )
    moved = np.mean(np.asarray(mutant['x'], np.float32) != 100.0)
    if rounding == 'nearest':
      assert moved == 0.0
    else:  # E|noise| / 0.5.
      assert moved == pytest.approx(0.01 * np.sqrt(2 / np.pi) / 0.5, rel=0.1)


def test_stochastic_rounding_leaves_the_genes_that_do_not_change():
  genome = {'x': jnp.linspace(-3, 3, 5000).astype(jnp.bfloat16)}
  mutant = layered.gaussian(KEY, genome, 1.0, 0.1, rounding='stochastic')
  same = np.asarray(mutant['x'] == genome['x'])
  assert same.mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
  # The sums of rows of squares, for the root mean square, are stored.
  'relative, share',
  [(False, 0.01), (True, 0.13)],
)
def test_noise_is_drawn_where_it_is_added(relative, share):
  genome = {'x': jnp.zeros((256, 1024), jnp.float32)}
  gaussian = functools.partial(layered.gaussian, relative=relative)
  run = jax.jit(gaussian, donate_argnums=1)
  used = run.lower(KEY, genome, 0.1, 0.5).compile().memory_analysis()
  assert used.temp_size_in_bytes < genome['x'].nbytes * share
  assert used.alias_size_in_bytes == genome['x'].nbytes


def test_a_single_number_keeps_its_shape():
  for mask in mutation.MASKS:
    mutant = layered.gaussian(KEY, {'x': jnp.ones(())}, 0.1, 1.0, mask=mask)
    assert mutant['x'].shape == () and mutant['x'] != 1.0


def test_nothing_mutates_to_nothing():
  genome = {'x': jnp.zeros((0, 3)), 'layers': {'b': jnp.zeros((2, 0, 3))}}
  mutant = layered.gaussian(KEY, genome, 0.1, 0.5)
  assert jax.tree.map(jnp.shape, mutant) == jax.tree.map(jnp.shape, genome)


def test_no_two_leaves_share_their_noise():
  genome = {'x': jnp.zeros(100), 'y': jnp.zeros(100)}
  mutant = layered.gaussian(KEY, genome, 1.0, 1.0, relative=False)
  assert abs(np.corrcoef(mutant['x'], mutant['y'])[0, 1]) < 0.5


def test_scale_changes_the_mass_alone():
  genome = genomes.member()
  genome.pop('coefficients')
  mutant = mutation.scale(KEY, genome, 0.8, 1.8)
  old, new = genome['layers']['mlp'], mutant['layers']['mlp']
  np.testing.assert_array_equal(new['a'], old['a'])
  ratio = np.asarray(new['b'] / old['b'])
  np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)
  assert 0.8 <= ratio.flat[0] < 1.8 and ratio.flat[0] != 1.0


def test_scale_of_a_genome_without_factors_is_whole():
  genome = {'coefficients': jnp.arange(5, dtype=jnp.float32)}
  mutant = mutation.scale_by(genome, 2.0)
  np.testing.assert_array_equal(mutant['coefficients'], [0, 2, 4, 6, 8])


def test_unknown_mask_is_refused():
  with pytest.raises(ValueError, match='gene.*element'):
    layered.gaussian(KEY, genomes.member(), 0.1, 1.0, mask='gene')


def test_layers_are_where_the_argument_says():
  # Relative noise is of each layer, or of the leaf as a whole.
  genome = {'layers': {'x': jnp.arange(6.0).reshape(2, 3)}}
  each = layered.gaussian(KEY, genome)
  whole = layered.gaussian(KEY, genome, layers=None)
  other = layered.gaussian(KEY, {'blocks': genome['layers']}, layers='blocks')
  assert not np.array_equal(each['layers']['x'], whole['layers']['x'])
  np.testing.assert_array_equal(other['blocks']['x'], each['layers']['x'])
