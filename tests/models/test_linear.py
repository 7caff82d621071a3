"""Linear maps: the types of their products."""

import jax
import jax.numpy as jnp
import pytest

from evojax_llm.models.linear import matmul


@pytest.mark.parametrize(
  'backend, dtype, scaled, kept',
  [
    ('cpu', 'bfloat16', False, 'float32'),
    ('gpu', 'bfloat16', False, 'bfloat16'),
    ('gpu', 'bfloat16', True, 'float32'),
    ('gpu', 'float32', False, 'float32'),
  ],
)
def test_accelerators_round_products_as_they_write_them(
  backend, dtype, scaled, kept, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  x = jnp.zeros((3, 4), dtype)
  step = jnp.ones(5) if scaled else None
  w = jnp.zeros((4, 5), dtype)
  traced = jax.make_jaxpr(lambda x: matmul(x, w, step))(x)  # Not a cached one.
  products = [e for e in traced.eqns if e.primitive.name == 'dot_general']
  assert [str(e.outvars[0].aval.dtype) for e in products] == [kept]
  assert traced.out_avals[0].dtype == dtype
