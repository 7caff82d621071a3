"""The engine's log-likelihoods against those of lm-evaluation-harness.

The harness' Hugging Face backend has read the same texts on the same
checkpoints; its answers are stored, and asked for anew where the variable
EVOJAX_LLM_LM_EVAL names a Python that has it.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import load_base
from evojax_llm.models.expression import LowRank
from evojax_llm.models.tokenizer import Tokenizer
from tests.golden import make_harness
from tests.tasks import harness

STORED = json.loads(make_harness.FILE.read_text())


def ours(model, folder, form):
  """(log-likelihoods, predictions) of the model without an adapter."""
  base = load_base(folder)
  config = base.config
  nothing = {
    'a': jnp.zeros((1, config.num_layers, config.embed_dim, 1)),
    'b': jnp.zeros((1, config.num_layers, 1, config.ffn_dim)),
  }
  evaluator = Evaluator(
    Tokenizer.from_folder(folder),
    [harness.task(model)],
    form=form,
    devices=jax.devices()[:1],
  )
  scores = evaluator.evaluate(
    Expressed(base), LowRank({'layers': {'mlp': {'up_proj': nothing}}})
  )
  return scores.tasks[0].loglikelihoods[0]


def check(found, expected):
  values = [value for item in found for value in item.values()]
  np.testing.assert_allclose(values, expected, rtol=0, atol=1e-3)
  start = 0
  for item in found:
    theirs = expected[start : start + len(item)]
    assert np.argmax(list(item.values())) == np.argmax(theirs)
    start += len(item)
  assert start == len(expected)


@pytest.mark.parametrize(
  'model, form',
  [
    ('gemma2', 'folded'),
    ('gemma3_text', 'batched'),
    ('pocket', 'folded'),
  ],
)
def test_stored_answers(model, form, tmp_path):
  folder = harness.folder(model, tmp_path)
  check(ours(model, folder, form), STORED[model]['loglikelihoods'])


@pytest.mark.skipif(not harness.PYTHON, reason='EVOJAX_LLM_LM_EVAL is not set')
@pytest.mark.parametrize('model', harness.MODELS)
def test_answers_now(model, tmp_path):
  folder = harness.folder(model, tmp_path)
  answer = harness.ask(
    harness.PYTHON, folder, harness.requests(model), tmp_path
  )
  np.testing.assert_allclose(
    answer['loglikelihoods'], STORED[model]['loglikelihoods'], atol=1e-4
  )
  check(ours(model, folder, 'folded'), answer['loglikelihoods'])
