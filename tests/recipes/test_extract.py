"""Adapters of tuned models, and models with adapters in recipes."""

import numpy as np
import pytest

from evojax_llm.models.errors import ModelError
from evojax_llm.recipes import extract
from evojax_llm.recipes.model_folder import ModelFolder
from tests.recipes import folders


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  root = tmp_path_factory.mktemp('pair')
  base = folders.write(root / 'base', 0)
  return base, folders.write(root / 'tuned', 1, like=base)


@pytest.mark.parametrize('rank', [3, 100])
def test_the_adapter_is_the_change_within_its_residual(rank, pair, tmp_path):
  base, tuned = pair
  found = extract.extract(str(tuned), str(base), tmp_path / 'a', rank)
  assert found.rank == min(rank, 8) and len(found.residuals) == 12
  merged = ModelFolder(f'{base}+{tmp_path / "a"}')
  start, wanted = folders.load(base), folders.load(tuned)
  for name, residual in found.residuals.items():
    change = wanted[name] - start[name]
    missing = np.linalg.norm(merged.read(name) - wanted[name])
    sizes = np.linalg.svd(change, compute_uv=False)
    best = np.linalg.norm(sizes[rank:]) / np.linalg.norm(sizes)
    assert missing / np.linalg.norm(change) == pytest.approx(residual, abs=1e-5)
    assert residual == pytest.approx(best, abs=1e-5)
  assert found.total < 1e-5 if rank > 8 else 0.1 < found.total < 0.9
  assert 'model.norm.weight' in found.left_out
  modules = found.by_module()
  assert len(modules) == 4 and len(modules['mlp.up_proj']) == 3
  assert (
    modules['mlp.up_proj'][1]
    == found.residuals['model.layers.1.mlp.up_proj.weight']
  )


def test_models_of_different_kinds_are_refused(pair, tmp_path):
  base, _ = pair
  other = folders.write(tmp_path / 'other', 0, layers=2)
  with pytest.raises(ModelError, match='lacks tensors'):
    extract.extract(str(other), str(base), tmp_path / 'a', 2)
  assert not (tmp_path / 'a').exists()


def test_a_folder_that_is_not_empty_is_refused_before_any_work(pair, tmp_path):
  base, tuned = map(str, pair)
  (tmp_path / 'file').touch()
  with pytest.raises(ModelError, match='exists and is not empty'):
    extract.extract(tuned, base, tmp_path, 2, lambda share: pytest.fail())
