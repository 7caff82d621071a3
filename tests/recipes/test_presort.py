"""What is found with numpy is what the merges find themselves."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.recipes import presort
from evojax_llm.recipes import write


@pytest.mark.parametrize(
  'name, shape, axis',
  [
    ('ties', (), -1),
    ('ties', (6, 50), -1),
    ('breadcrumbs', (6, 50), -1),
    ('della', (), -1),
    ('della', (6, 50), -2),
    ('della', (7, 50), -1),
  ],
)
def test_a_merge_is_the_same_bit_for_bit(name, shape, axis, monkeypatch):
  monkeypatch.setattr(presort, '_CHUNK', 7)
  monkeypatch.setattr(presort, '_BLOCK', 120)
  merge, rng = MERGES[name], np.random.default_rng(0)
  drawn = rng.normal(size=(3, *shape)).astype(ml_dtypes.bfloat16)
  # Equals everywhere, at zero as well.
  base, one, two = (
    drawn[0],
    np.where(drawn[1] > 0, drawn[1], drawn[0]),
    drawn[2],
  )
  options = {'axis': axis} if merge.by_row else {}
  for density in ((0.3, 0.7), (0.0, 1.0), (0.999, 1e-9), None):
    values = {'weights': (0.6, 0.4), 'density': density, 'lambda_': 0.9}
    values |= {'gamma': (0.1, 0.9)} if name == 'breadcrumbs' else {}
    values |= {'epsilon': (0.1, 0.2)} if name == 'della' else {}
    if density is None:  # By their defaults.
      values = {'weights': (0.6, 0.4)}
    values = {k: np.asarray(v, np.float32) for k, v in values.items()}
    key = np.arange(2, dtype=np.uint32) if merge.draws else None
    found = presort.find(merge, [one, two], base, values, axis, key)
    assert found.keys() == {'masks' if name == 'della' else 'cuts'}
    made = [
      write._merge(
        [one, two],
        base,
        given,
        key,
        merge=name,
        options=tuple(options.items()),
        out=jnp.dtype(np.float32),
      )[0]
      for given in (values, values | found)
    ]
    np.testing.assert_array_equal(*made, err_msg=str(density))


def test_others_find_nothing():
  one = np.ones(3, np.float32)
  for name in ('linear', 'task_arithmetic', 'dare_ties', 'sce'):
    assert presort.find(MERGES[name], [one, one], one, {}) == {}
