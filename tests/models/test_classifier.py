"""Classification heads, against transformers and against stored values."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from evojax_llm.models import classifier
from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from tests import tiny

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'classifier.json'
# Rows of other lengths, padded right.
ROWS = ([2, 40, 41, 42], [2, 300, 9, 80, 81, 82, 83, 84, 85, 86, 87, 88], [2])


def write_classifier(folder, labels=1, **options):
  """A random Gemma-2 folder with a head in place of an output matrix."""
  tiny.write_gemma(folder, 'gemma2', **options)
  file = folder / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  width = tensors['model.norm.weight'].shape[0]
  rng = np.random.default_rng(5)
  head = rng.normal(0, 0.5, (labels, width)).astype(np.float32)
  tensors['score.weight'] = head
  safetensors_numpy.save_file(tensors, file, metadata={'format': 'pt'})
  config = json.loads((folder / 'config.json').read_text())
  config['architectures'] = ['Gemma2ForSequenceClassification']
  config['id2label'] = {str(i): f'LABEL_{i}' for i in range(labels)}
  config['label2id'] = {f'LABEL_{i}': i for i in range(labels)}
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def padded():
  length = max(map(len, ROWS))
  tokens = np.zeros((len(ROWS), length), np.int32)
  positions = np.full(tokens.shape, -1, np.int32)
  for i, row in enumerate(ROWS):
    tokens[i, : len(row)] = row
    positions[i, : len(row)] = np.arange(len(row))
  return tokens, positions


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_classifier(tmp_path_factory.mktemp('reward'))


@pytest.fixture(scope='module')
def found(folder):
  return classifier.load_classifier(folder).logits(*padded())


def test_logits_are_those_stored(found):
  assert found.shape == (3, 1) and found.dtype == np.float32
  np.testing.assert_allclose(
    found[:, 0], json.loads(GOLDEN.read_text()), atol=2e-5
  )


@pytest.mark.filterwarnings('ignore')
def test_logits_are_those_of_transformers(folder, found):
  torch = pytest.importorskip('torch', reason='the oracle runs in PyTorch')
  import transformers

  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder, attn_implementation='eager', local_files_only=True
  ).eval()
  tokens, positions = padded()
  with torch.no_grad():
    logits = model(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=torch.tensor(positions >= 0).long(),
    ).logits
  np.testing.assert_allclose(found, logits.numpy(), atol=2e-5)


def test_padding_does_not_matter(folder, found):
  model = classifier.load_classifier(folder)
  tokens = np.zeros((1, 32), np.int32)
  positions = np.full((1, 32), -1, np.int32)
  tokens[0, :4], positions[0, :4] = ROWS[0], np.arange(4)
  np.testing.assert_allclose(
    model.logits(tokens, positions)[0], found[0], atol=1e-5
  )


def test_several_labels(tmp_path):
  model = classifier.load_classifier(write_classifier(tmp_path, labels=3))
  assert model.labels == 3 and model.logits(*padded()).shape == (3, 3)


def test_a_head_is_wanted_and_only_here(folder, tiny_gemma_folder):
  with pytest.raises(ModelError, match='no tensor score.weight'):
    classifier.load_classifier(tiny_gemma_folder('gemma2'))
  with pytest.raises(ModelError, match='score.weight'):
    hub.load_checkpoint(folder)
