import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.population import leaves

GENOME = {
  'layers': {'q': {'a': jnp.full((2, 4, 3), 2.0), 'b': jnp.ones((2, 3, 5))}},
  'b': jnp.ones((2, 2)),
  'x': jnp.asarray(3.0),
}


def paths():
  flat = jax.tree_util.tree_flatten_with_path(GENOME)[0]
  return {jax.tree_util.keystr(path): (path, leaf) for path, leaf in flat}


def test_paths_tell_layers_and_second_factors():
  layered = {n for n, (p, _) in paths().items() if leaves.is_layered(p)}
  assert layered == {"['layers']['q']['a']", "['layers']['q']['b']"}
  second = {n for n, (p, _) in paths().items() if leaves.is_second_factor(p)}
  assert second == {"['layers']['q']['b']", "['b']"}
  assert leaves.has_factors(GENOME)
  assert not leaves.has_factors({'coefficients': jnp.ones(3)})
  assert not leaves.has_factors(jnp.ones(3))


def test_root_mean_square_is_of_each_matrix():
  path, leaf = paths()["['layers']['q']['a']"]
  leaf = leaf.at[1].set(5.0).astype(jnp.bfloat16)
  rms = leaves.root_mean_square(path, leaf)
  assert rms.shape == (2, 1, 1) and rms.dtype == jnp.float32
  np.testing.assert_allclose(rms.ravel(), [2.0, 5.0])
  path, leaf = paths()["['x']"]
  assert float(leaves.root_mean_square(path, leaf)) == pytest.approx(3.0)
