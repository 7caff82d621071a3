"""Models that several tests of recipes merge."""

import pathlib

import pytest

from tests.recipes import folders


@pytest.fixture(scope='session')
def models(tmp_path_factory):
  """By family, the names of a base and three models, and their tensors."""
  root, found = tmp_path_factory.mktemp('models'), {}
  for family in ('qwen2', 'gemma2'):
    base = folders.write(root / family / 'base', 0, family, shards=2)
    paths = [str(base)]
    for seed in (1, 2, 3):
      path = root / family / f'x{seed}'
      paths.append(str(folders.write(path, seed, family, like=base)))
    found[family] = (
      paths,
      {path: folders.load(pathlib.Path(path)) for path in paths},
    )
  return found
