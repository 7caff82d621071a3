"""Images against transformers: soft tokens, likelihoods and answers."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from evojax_llm.engine import image_table
from evojax_llm.engine.engine import Engine
from evojax_llm.engine.generation import generate_texts
from evojax_llm.engine.gradient import GradientSteps
from evojax_llm.engine.gradient_member import Settings
from evojax_llm.engine.image_table import ImageTables
from evojax_llm.engine.runtime import Runtime
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import make_space
from evojax_llm.models import hub
from evojax_llm.models import images
from evojax_llm.models import vision
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.population import stack
from evojax_llm.tasks import task_files
from evojax_llm.tasks import training_data
from tests import multimodal
from tests.experiments.running import run_program

torch = pytest.importorskip('torch')

OPTIONS = ['red', 'blue thing']
ROWS = [
  {'id': 'one', 'image': 'a.png', 'question': 'what is it'},
  {
    'id': 'two',
    'images': ['a.png', 'b.jpg'],
    'question': 'see <start_of_image> or <start_of_image> then',
  },
  {'id': 'other', 'image': 'b.jpg', 'question': 'what is it'},
  {'id': 'text', 'question': 'what is it'},
  {'id': 'again', 'images': ['a.png', 'a.png'], 'question': 'alike'},
]
# They share a beginning with an image, which is read once.
ALIKE = [
  {'id': end, 'image': 'a.png', 'question': f'a question of all, and {end}'}
  for end in ('one', 'two more')
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a model, images, and tasks on them."""
  root = tmp_path_factory.mktemp('images')
  multimodal.write_model(root / 'model')
  multimodal.write_image(root / 'a.png', 1)
  multimodal.write_image(root / 'b.jpg', 2, (17, 40))
  choice = [{**row, 'choices': OPTIONS, 'answer': 'A'} for row in ROWS]
  text, alike = (
    [{**row, 'answer': 'red'} for row in rows] for rows in (ROWS, ALIKE)
  )
  for name, rows, options in (
    ('choice', choice, {'choice': 'text'}),
    ('text', text, {'max_new_tokens': 8}),
    ('alike', alike, {'max_new_tokens': 8}),
  ):
    task = {'name': name, 'dev': rows, 'format': options}
    (root / f'{name}.json').write_text(json.dumps(task))
  return root


@pytest.fixture(scope='module')
def oracle(folder):
  """The model and its processor in transformers."""
  import transformers

  model = transformers.Gemma3ForConditionalGeneration.from_pretrained(
    folder / 'model', attn_implementation='eager'
  ).eval()
  return model, transformers.AutoProcessor.from_pretrained(folder / 'model')


def _inputs(processor, folder, row, more=''):
  from PIL import Image

  names = row.get('images') or [row[k] for k in row if k == 'image']
  pictures = [Image.open(folder / name) for name in names]
  text = row['question'] + more
  if pictures and '<start_of_image>' not in text:
    text = '<start_of_image>' * len(pictures) + text
  return processor(
    text=text, images=[pictures] if pictures else None, return_tensors='pt'
  )


def test_soft_tokens(folder, oracle):
  model, processor = oracle
  config, how = vision.load_vision_config(folder / 'model')
  params = vision.load_vision(folder / 'model', config)
  found = [images.Image.from_file(folder / n) for n in ('a.png', 'b.jpg')]
  pixels = np.stack([images.pixels(image, how) for image in found])
  given = _inputs(processor, folder, ROWS[1])
  np.testing.assert_allclose(
    pixels, given['pixel_values'].numpy().transpose(0, 2, 3, 1), atol=1e-6
  )
  soft = vision.Vision(config).apply({'params': params}, pixels)
  with torch.no_grad():
    expected = model.model.get_image_features(given['pixel_values'])
  expected = expected.pooler_output.numpy()
  assert np.abs(expected[0] - expected[1]).max() > 0.1
  np.testing.assert_allclose(soft, expected, atol=2e-5)


def _evaluate(folder, model, space, population):
  names = 'choice', 'text', 'alike'
  tasks = task_files.load_tasks([folder / f'{name}.json' for name in names])
  evaluator = Evaluator(Tokenizer.from_folder(model), tasks)
  return evaluator.evaluate(space, population).tasks


def _check(scores, model, processor, folder):
  choice, *texts = scores
  for i, row in enumerate(ROWS):
    asked = {**row, 'question': f'Question: {row["question"]}\nAnswer:'}
    if '<start_of_image>' not in row['question']:
      marks = '<start_of_image>' * (
        len(row.get('images', ())) or int('image' in row)
      )
      asked['question'] = f'Question: {marks}{row["question"]}\nAnswer:'
    for key, option in zip('AB', OPTIONS, strict=True):
      start = _inputs(processor, folder, asked)['input_ids'].shape[1]
      given = _inputs(processor, folder, asked, f' {option}')
      with torch.no_grad():
        logits = model(**given).logits[0].log_softmax(-1)
      ids = given['input_ids'][0]
      expected = sum(logits[t - 1, ids[t]] for t in range(start, len(ids)))
      np.testing.assert_allclose(
        choice.loglikelihoods[0][i][key], expected, atol=2e-4
      )
  for rows, text in zip((ROWS, ALIKE), texts, strict=True):
    for row, found in zip(rows, text.predictions[0], strict=True):
      assert found == _answer(model, processor, folder, row)


def test_exports_answer_as_here(folder, oracle, tmp_path):
  """The language side evolves; the vision side is written through."""
  import transformers

  model = folder / 'model'
  config, params = hub.load_checkpoint(model)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x * rng.uniform(0.7, 1.3, x.shape).astype(x.dtype),
    jax.device_get(params),
  )
  out = hub.save_checkpoint(tmp_path / 'out', params, config, model)
  given, written = (
    load_file(where / 'model.safetensors') for where in (model, out)
  )
  assert given.keys() == written.keys()
  for name, tensor in given.items():
    same = np.array_equal(tensor, written[name])
    assert same == (not name.startswith('language_model')), name
  changed, info = transformers.Gemma3ForConditionalGeneration.from_pretrained(
    out, attn_implementation='eager', output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys']
  space = make_space('weights', out)
  scores = _evaluate(folder, out, space, stack.stack([space.base()]))
  _check(scores, changed.eval(), oracle[1], folder)


def test_prompts_with_images(folder, oracle, tmp_path):
  """A row as task files have them, and messages as transformers has them."""
  model, processor = oracle
  parts = [
    {'type': 'image', 'path': 'b.jpg'},
    {'type': 'text', 'text': 'what is it '},
  ]
  chat = [{'role': 'user', 'content': parts}]
  rows = [ROWS[1], chat, 'only text']
  (folder / 'prompts.json').write_text(json.dumps(rows))
  code = run_program(
    'generate',
    f'--model={folder / "model"}',
    f'--prompts={folder / "prompts.json"}',
    '--max_new_tokens=8',
    f'--out={tmp_path / "texts.json"}',
  )
  assert code is None
  (member,) = json.loads((tmp_path / 'texts.json').read_text())['members']
  written = Tokenizer.from_folder(folder / 'model').render_chat(
    [{'role': 'user', 'content': '<start_of_image>what is it'}]
  )
  chat = {'image': 'b.jpg', 'question': written.removeprefix('<bos>')}
  asked = [ROWS[1], chat, {'question': rows[2]}]
  for row, text in zip(asked, member['outputs'], strict=True):
    assert text == _answer(model, processor, folder, row)


def test_a_folder_and_its_images_are_read_once(folder, monkeypatch):
  """Whatever engines a loaded model has."""
  read = []

  def counted(owner, name, what):
    function = getattr(owner, name)

    def call(*given):
      read.append(what(*given))
      return function(*given)

    monkeypatch.setattr(owner, name, call)

  counted(vision, 'load_vision', lambda *_: 'model')
  counted(image_table, 'pixels', lambda image, _: image.path[-5:])
  tokenizer = Tokenizer.from_folder(folder / 'model')
  space = make_space('weights', folder / 'model')
  population = stack.stack([space.base()])
  # What is said of them is compared above, and takes long to compile.
  monkeypatch.setattr(Engine, 'answer', lambda *_: None)
  for name in ('a.png', 'b.jpg', 'a.png'):
    row = {'prompt': 'see', 'image': str(folder / name)}
    generate_texts(space, population, tokenizer, [row], 1)
  assert read == ['model', 'a.png', 'b.jpg']


def test_what_is_learnt_of_images(folder, oracle):
  model, processor = oracle
  tokenizer, runtime = Tokenizer.from_folder(folder / 'model'), Runtime()
  (task,) = task_files.load_tasks([folder / 'text.json'])
  rows = training_data.encode_task(task, task.dev[1:2], tokenizer)
  (rows,), soft = ImageTables(runtime, tokenizer).take([rows])
  space = make_space('weights', folder / 'model')
  how = Settings(steps=2, batch=1, lr=0.01)
  steps = GradientSteps(runtime, space, rows, how, soft=soft)
  steps.steps(stack.stack([space.base()]), [0], jax.random.key(0))
  start = _inputs(processor, folder, ROWS[1])['input_ids'].shape[1]
  given = _inputs(processor, folder, ROWS[1], ' red')
  with torch.no_grad():
    logits = model(**given).logits[0].log_softmax(-1)
  ids = [*given['input_ids'][0].tolist(), tokenizer.stop_ids[0]]
  expected = [-logits[t - 1, ids[t]] for t in range(start, len(ids))]
  first, second = steps.losses[0]
  np.testing.assert_allclose(first, np.mean(expected), atol=2e-4)
  assert second < first


def _answer(model, processor, folder, row):
  given = _inputs(processor, folder, row)
  out = model.generate(**given, do_sample=False, max_new_tokens=8)
  out = out[0, given['input_ids'].shape[1] :]
  return processor.tokenizer.decode(out, skip_special_tokens=True)
