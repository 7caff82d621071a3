"""The small vision population: what is trained on is what is asked."""

import jax
import ml_dtypes
import numpy as np
import pytest

from evojax_llm.models import hub
from evojax_llm.models import transformer
from evojax_llm.models import vision
from evojax_llm.models.images import Image
from evojax_llm.models.images import pixels
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.prompts import encode_items
from evojax_llm.tasks.task_files import load_task
from experiments.pocket import folders
from experiments.pocket import train
from experiments.vision import pictures
from tests.experiments import running


@pytest.fixture(scope='module')
def build():
  with running.fresh_program('experiments.vision.build') as program:
    yield program


@pytest.fixture(scope='module')
def base(tmp_path_factory, build):
  """A base with random numbers, and them."""
  folder = tmp_path_factory.mktemp('vision') / 'base'
  config, of_tower = build.start(folder)
  rng = np.random.default_rng(0)

  def draw(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
    return jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(ml_dtypes.bfloat16), shapes
    )

  ints = jax.ShapeDtypeStruct((1, 2), 'i4')
  params = draw(transformer.Transformer(config), ints, ints)
  side = pictures.SIZE
  tower = draw(
    vision.Vision(of_tower), jax.ShapeDtypeStruct((1, side, side, 3), 'f4')
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(tower)) < 9000
  folders.finish_base(
    folder, params, config, 'language_model.model.', build.stored(tower)
  )
  return folder, of_tower, tower


def test_the_vision_side_is_read_as_written(base, build):
  folder, of_tower, tower = base
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)),
    vision.load_vision(folder, of_tower),
    tower,
  )


def test_rows_to_learn_from_are_the_prompts_of_tasks(base, build, tmp_path):
  folder, *_ = base
  build.write_tasks(tmp_path / 'tasks', 3, 2, seed=0)
  rng = np.random.default_rng([0, 1])
  drawn = pictures.draw(rng)
  tokenizer = Tokenizer.from_folder(folder)
  for question in ('colour', 'shape', 'both'):
    task = load_task(tmp_path / 'tasks' / f'{question}.json')
    assert len(task.dev) == 3 and len(task.test) == 2
    item = task.dev[0]
    (entry,) = encode_items(task, [item], tokenizer)
    assert item.answer == drawn.answer(question)
    # The pictures of a batch have the ids of its rows.
    batch = build.rows_of(np.random.default_rng([0, 1, 2]), {question: 1.0}, 1)
    first = int(np.argmax(batch['answer'][0])) + 1
    assert batch['tokens'][0, :first].tolist() == list(entry.prompt)
  how = vision.load_vision_config(folder)[1]
  (image,) = task.dev[0].images
  given = pixels(Image.from_file(image.path), how)
  expected = drawn.pixels.astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(given, expected, atol=1e-6)


def test_a_base_learns(base, build):
  """What stands for an image is no token, and nothing that is learnt."""
  folder, of_tower, tower = base
  config, params = hub.load_checkpoint(folder)
  batch = build.rows_of(np.random.default_rng(0), {'both': 1.0}, 2)

  @jax.jit
  def loss(params, tower, batch):
    soft = vision.Vision(of_tower).apply({'params': tower}, batch['pixels'])
    params = {'params': {**params, 'soft_tokens': soft}}
    return train.answer_loss(transformer.Transformer(config), params, batch)

  tower = jax.tree.map(lambda leaf: leaf.astype(np.float32), tower)
  assert np.isfinite(loss(params, tower, batch))
