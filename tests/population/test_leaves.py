import jax
import jax.numpy as jnp

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
  layered = {
    n for n, (p, _) in paths().items() if leaves.is_layered(p, leaves.LAYERS)
  }
  assert layered == {"['layers']['q']['a']", "['layers']['q']['b']"}
  second = {n for n, (p, _) in paths().items() if leaves.is_second_factor(p)}
  assert second == {"['layers']['q']['b']", "['b']"}
  assert leaves.has_factors(GENOME)
  assert not leaves.has_factors({'coefficients': jnp.ones(3)})
  assert not leaves.has_factors(jnp.ones(3))
