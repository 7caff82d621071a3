"""Recipes written, made and checked."""

import numpy as np
import yaml

from evojax_llm.recipes import merge
from tests.recipes import folders


def write_recipe(path, recipe):
  path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
  return path


def made(tmp_path, recipe, name='out', **options):
  plan = merge.plan(write_recipe(tmp_path / f'{name}.yaml', recipe))
  return folders.load(merge.merge(plan, tmp_path / name, **options))


def check(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(
      found[name], value, rtol=2e-4, atol=2e-5, err_msg=name
    )
