"""Decoding in an accelerator's way: the same texts as in a CPU's."""

import functools

import numpy as np
import pytest

from evojax_llm.engine.queues import Prompt
from evojax_llm.models import hub
from evojax_llm.models import peft
from tests.engine.continuing import run

MEMBERS = 3
WALK = {'walk': 'unrolled'}


@pytest.fixture(scope='module')
def models(tiny_gemma_folder, tiny_adapter_folders):
  """`models(kind) -> (config, params, population)` of MEMBERS members."""

  @functools.cache
  def load(kind):
    config, params = hub.load_checkpoint(tiny_gemma_folder(kind))
    params['embedder']['embedding'] *= np.float32(0.1)
    folders = tiny_adapter_folders(MEMBERS, kind)
    return config, params, peft.load_adapters(folders, config).factors

  return load


@pytest.fixture(scope='module')
def prompts():
  """Uneven prompts and limits; half of them begin with the same 17 tokens."""
  rng = np.random.default_rng(0)
  start = rng.integers(2, 300, 17).tolist()
  return [
    Prompt(
      (*start[: 17 * (i % 2)], *rng.integers(2, 300, 1 + i % 5).tolist()),
      limit=int(rng.integers(2, 12)),
      item=f'item {i}',
      group=i % 2,
    )
    for i in range(12)
  ]


@pytest.mark.parametrize('form', ['batched'])
@pytest.mark.parametrize(
  'kind, attention', [('gemma2', 'interpreted'), ('gemma3_text', 'plain')]
)
def test_walks(models, prompts, kind, form, attention):
  walk = WALK | {'attention': attention}
  expected = run(models(kind), prompts, form)
  assert run(models(kind), prompts, form, walk=walk) == expected
