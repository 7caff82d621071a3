"""Greedy texts against transformers' generate: stored, and live on torch."""

import pathlib

import jax
import numpy as np
import pytest

from evojax_llm.engine import forms
from evojax_llm.engine.queues import Prompt
from evojax_llm.models import hub
from evojax_llm.models import peft
from tests.engine.continuing import run
from tests.models import cases
from tests.models import forward

_FILE = pathlib.Path(__file__).parents[1] / 'golden' / 'models.npz'
# Norms, caps, windows, ropes and biases; most with windows of a few tokens.
CASES = [
  case
  for case in cases.CASES
  if case.name in ('gemma_mqa', 'gemma2_caps', 'gemma3_ropes', 'qwen2_yarn')
]
STOP_IDS = (1, 7, 30)
LENGTHS = (9, 1, 14, 4, 6)
NEW = 12


def load(folder, adapter):
  """The model, and a population of it without and with the adapter."""
  config, params = hub.load_checkpoint(folder)
  member = forward.member(peft.load_adapters([adapter], config), 0)
  population = jax.tree.map(
    lambda leaf: np.stack([np.zeros_like(leaf), leaf]), member
  )
  return config, params, population


@pytest.mark.parametrize('case', CASES, ids=str)
def test_stored_texts(case, tmp_path):
  folder = cases.write_model(tmp_path / 'm', case)
  model = load(folder, cases.write_adapter(tmp_path / 'a', case))
  with np.load(_FILE) as stored:
    expected = stored[f'{case}/greedy']
  prompts = [Prompt(tuple(row), 64) for row in cases.tokens(case).tolist()]
  found = run(model, prompts, slots=1, refill=1, stop_ids=())
  np.testing.assert_array_equal(found[0], expected)
  assert found[1] != found[0]


def test_stored_texts_of_layers_that_differ(tmp_path):
  """Two head sizes, shared keys; over stacks and over separate layers."""
  case = next(c for c in cases.CASES if c.name == 'gemma4_e2b')
  folder = cases.write_model(tmp_path / 'm', case)
  model = load(folder, cases.write_adapter(tmp_path / 'a', case))
  with np.load(_FILE) as stored:
    expected = stored[f'{case}/greedy'][:, :24]
  # Prompts that begin alike share their keys.
  prompts = [Prompt(tuple(row), 24) for row in cases.tokens(case).tolist()]
  begin = prompts[0].ids
  prompts += [Prompt((*begin, 5), 8), Prompt((*begin, 9, 4), 8)]
  found = run(model, prompts, stop_ids=())
  np.testing.assert_array_equal(found[0][:2], expected)
  walk = {'walk': 'unrolled'}
  assert run(model, prompts, 'batched', stop_ids=(), walk=walk) == found


@pytest.mark.filterwarnings('ignore:.is_gradient_checkpointing')
@pytest.mark.parametrize('case', CASES, ids=str)
def test_agrees_with_generate(case, tmp_path):
  torch = pytest.importorskip('torch', reason='the oracle runs in PyTorch')
  pytest.importorskip('peft', reason='the oracle applies the adapters')
  from tests.models import oracle

  folder = cases.write_model(tmp_path / 'm', case)
  adapter = cases.write_adapter(tmp_path / 'a', case)
  rng = np.random.default_rng(case.seed)
  rows = [rng.integers(2, 61, n).tolist() for n in LENGTHS]
  tokens = np.zeros((len(rows), max(LENGTHS)), np.int64)
  valid = np.zeros_like(tokens)
  for row, ids in enumerate(rows):
    tokens[row, -len(ids) :], valid[row, -len(ids) :] = ids, 1
  expected = []
  for with_adapter in (False, True):
    model = oracle.load(folder)
    if with_adapter:
      model = oracle.with_adapter(model, adapter)
    with torch.no_grad():
      out = model.generate(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(valid),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(STOP_IDS),
        pad_token_id=0,
      )
    texts = []
    for ids in out[:, tokens.shape[1] :].tolist():
      ends = [i for i, token in enumerate(ids) if token in STOP_IDS]
      texts.append(tuple(ids[: min([NEW, *ends])]))
    expected.append(texts)
  assert expected[0] != expected[1]
  prompts = [Prompt(tuple(ids), NEW) for ids in rows]
  model = load(folder, adapter)
  for form in forms.FORMS:
    assert run(model, prompts, form, stop_ids=STOP_IDS) == expected
