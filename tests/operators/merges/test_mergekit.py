"""Our merges and mergekit's on the same random tensors.

mergekit.npz holds what mergekit 0.1.5 gave. Where EVOJAX_LLM_MERGEKIT names
the python of an environment with mergekit (third_party/mergekit/README.md), it
is run and must still give the same.
"""

import os

import numpy as np
import pytest

from evojax_llm.operators.merges import registry
from tests.golden import make_mergekit
from tests.operators.merges import peer_cases

CASES = peer_cases.cases()
TENSORS = peer_cases.tensors()


@pytest.fixture(scope='module')
def golden():
  with np.load(make_mergekit.FILE) as file:
    return dict(file)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['name'])
def test_agrees_with_mergekit(golden, case):
  made = peer_cases.ours(case, TENSORS)
  np.testing.assert_allclose(made, golden[case['name']], rtol=1e-4, atol=2e-5)


def follows_rows(case):
  name = peer_cases.OURS.get(case['method'], case['method'])
  matrix = case['models'][0].startswith('matrix')
  return registry.MERGES[name].by_row and matrix and not case['masks']


@pytest.mark.parametrize(
  'case', list(filter(follows_rows, CASES)), ids=lambda case: case['name']
)
def test_agrees_with_mergekit_on_kernels_kept_in_out(golden, case):
  made = peer_cases.ours(case, TENSORS, turned=True)
  np.testing.assert_allclose(made, golden[case['name']], rtol=1e-4, atol=2e-5)


def test_mergekit_gives_what_is_kept_here(golden, tmp_path):
  python = os.environ.get('EVOJAX_LLM_MERGEKIT')
  if not python:
    pytest.skip(
      'set EVOJAX_LLM_MERGEKIT to the python of an environment made by '
      'third_party/mergekit/install.py'
    )
  found = make_mergekit.run(python, tmp_path)
  assert found.keys() == golden.keys()
  for name, result in found.items():
    np.testing.assert_allclose(result, golden[name], atol=1e-6, err_msg=name)
