"""Rows with images: what is read, where it stands, and what is refused."""

import json

import pytest

from evojax_llm.models.errors import ModelError
from evojax_llm.models.image_tokens import MARK
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import training_data
from evojax_llm.tasks.prompts import encode_items
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import load_task
from tests import multimodal


@pytest.fixture
def load(tmp_path):
  """load(*rows, **format) -> task, with images a.png and b.png beside it."""
  for seed, name in enumerate('ab'):
    multimodal.write_image(tmp_path / f'{name}.png', seed)
  (tmp_path / 'same.png').write_bytes((tmp_path / 'a.png').read_bytes())
  (tmp_path / 'broken.png').write_bytes((tmp_path / 'a.png').read_bytes()[:-40])
  (tmp_path / 'text.png').write_text('no image')
  (tmp_path / 'folder.png').mkdir()

  def load(*rows, **format_):
    rows = [
      {'question': f'q{i}', 'answer': 'x', **r} for i, r in enumerate(rows)
    ]
    path = tmp_path / 'task.json'
    path.write_text(json.dumps({'dev': rows, 'format': format_}))
    return load_task(path)

  return load


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return multimodal.write_model(tmp_path_factory.mktemp('model'))


def test_places(load):
  task = load(
    {'image': 'a.png'},
    {'images': ['a.png', 'b.png']},
    {'images': ['b.png', 'same.png'], 'question': f'x{MARK}y{MARK}'},
    {'image': None},
  )
  questions = [item.question for item in task.dev]
  assert questions == [f'{MARK}q0', f'{MARK}{MARK}q1', f'x{MARK}y{MARK}', 'q3']
  digests = [[image.digest for image in item.images] for item in task.dev]
  assert digests == [*digests[:2], digests[1][::-1], []]


def test_identity_and_fingerprint(load):
  same = {'question': 'q'}
  a, b, copy, none = load(
    *({'image': f'{n}.png', **same} for n in ('a', 'b', 'same')),
    {'question': f'{MARK}q'},
  ).dev
  assert a.identity == copy.identity
  assert len({a.identity, b.identity, none.identity}) == 3
  prints = {
    load({'image': f'{name}.png', **same}).fingerprint()
    for name in ('a', 'b', 'same')
  }
  assert len(prints) == 2


@pytest.mark.parametrize(
  ('row', 'said'),
  [
    ({'image': 'none.png'}, "field 'image'.*none.png: no such file"),
    ({'images': ['a.png', 'text.png']}, "'images'.*text.png: cannot be read"),
    ({'image': 'broken.png'}, 'broken.png: cannot be read as an image'),
    ({'image': 'folder.png'}, 'folder.png: is a folder'),
    ({'image': ['a.png']}, "as 'image', or a list"),
    ({'images': 'a.png', 'image': 'a.png'}, "as 'image', or a list"),
    ({'images': []}, "as 'image', or a list"),
    ({'image': 3}, "as 'image', or a list"),
    ({'image': 'a.png\0'}, 'no name of a file'),
    (
      {'image': 'a.png', 'question': MARK * 2},
      '1 images, and the question has <start_of_image> 2 times',
    ),
  ],
)
def test_rows_that_are_refused(load, row, said):
  with pytest.raises(TaskError, match=rf"task.json, 'dev' row 1.*{said}"):
    load({}, row)


def _ids(task, tokenizer, **how):
  found = encode_items(task, task.dev, tokenizer, **how)
  return [entry.prompt for entry in found]


def test_tokens_are_those_of_the_image(load, model):
  """Texts begin alike as long as their images are the same."""
  tokenizer = Tokenizer.from_folder(model)
  task = load(
    *({'image': f'{n}.png', 'question': 'what'} for n in ('a', 'b', 'same')),
    {'images': ['b.png', 'a.png'], 'question': f'{MARK}what{MARK}'},
  )
  a, b, same, both = _ids(task, tokenizer)
  size, soft = tokenizer.vocab_size, multimodal.SOFT
  assert a == same and len(a) == len(b)
  assert [i - size for i in a if i >= size] == list(range(soft))
  assert [i - size for i in b if i >= size] == list(range(soft, 2 * soft))
  own = [i for i in both if i >= size]
  assert own == [i for i in (*b, *a) if i >= size]
  begin, end = a.index(size), a.index(size) + soft
  assert tokenizer.decode(a[:begin]) == tokenizer.decode(a[end:])[:2] == '\n\n'
  # In a chat the template writes the mark.
  chat = _ids(task, tokenizer, chat=True)[0]
  assert [i for i in chat if i >= size] == [i for i in a if i >= size]


def test_prompts_that_are_refused(load, model, tiny_gemma_folder):
  task = load({}, {'image': 'a.png'})
  with pytest.raises(TaskError, match="item '1'.*reads text alone.*a.png"):
    _ids(task, Tokenizer.from_folder(tiny_gemma_folder('gemma2')))
  tokenizer = Tokenizer.from_folder(model)
  with pytest.raises(TaskError, match="item '1'.*images are not cut"):
    _ids(task, tokenizer, max_length=10)
  hidden = load({'image': 'a.png', 'question': tokenizer.images.soft})
  with pytest.raises(TaskError, match="item '0'.*1 times <image_soft_token>"):
    _ids(hidden, tokenizer)


def test_rows_to_learn_from(load, model, tmp_path):
  load({})
  path = tmp_path / 'rows.jsonl'
  row = {'prompt': 'q', 'completion': 'x', 'image': 'a.png'}
  path.write_text(json.dumps(row))
  tokenizer = Tokenizer.from_folder(model)
  for chat in (False, True):
    (found,) = training_data.encode(
      training_data.read(path), tokenizer, chat=chat
    )
    size = tokenizer.vocab_size
    assert len([i for i in found.prompt if i >= size]) == multimodal.SOFT
  path.write_text(json.dumps({**row, 'image': 'none.png'}))
  with pytest.raises(TaskError, match="line 1, field 'image': .*none.png"):
    training_data.read(path)


def test_shots_show_their_images(load, model):
  task = load(*[{'image': f'{n}.png'} for n in 'ab'], shots=1)
  tokenizer = Tokenizer.from_folder(model)
  (ids,) = _ids(task, tokenizer)
  size, soft = tokenizer.vocab_size, multimodal.SOFT
  assert [i - size for i in ids if i >= size] == list(range(2 * soft))


def test_vision_sides_that_are_refused(tmp_path):
  from evojax_llm.models import vision

  model = multimodal.write_model(tmp_path / 'model')
  path = model / 'preprocessor_config.json'
  how = json.loads(path.read_text())
  path.write_text(json.dumps(how | {'do_pan_and_scan': True}))
  with pytest.raises(ModelError, match='do_pan_and_scan True'):
    vision.load_vision_config(model)
  path.write_text(json.dumps(how | {'size': {'height': 8, 'width': 8}}))
  with pytest.raises(ModelError, match='expected .*24'):
    vision.load_vision_config(model)
  path.write_text(json.dumps(how))
  config = json.loads((model / 'config.json').read_text())
  config['mm_tokens_per_image'] = 9
  (model / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ModelError, match='mm_tokens_per_image is 9'):
    vision.load_vision_config(model)
