"""Free generation against the engine that scores tasks."""

import dataclasses

import jax
import numpy as np
import pytest

from evojax_llm.engine.generation import generate_texts
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import load_base
from evojax_llm.models import peft
from evojax_llm.models.expression import LowRank
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError

PROMPTS = ['the tin', 'a', 'her other tea is in the inn', 'rather', 'Hi!']
NEW = 4


@pytest.fixture(scope='module')
def model(tiny_gemma_folder, tiny_adapter_folders):
  folder = tiny_gemma_folder('gemma2')
  base = load_base(folder)
  adapters = peft.load_adapters(tiny_adapter_folders(3), base.config)
  population = LowRank(jax.device_put(adapters.factors))
  return Expressed(base), population, Tokenizer.from_folder(folder)


@pytest.fixture(scope='module')
def whole(model):
  """Texts of all members, made in one group on all devices."""
  return generate_texts(*model, PROMPTS, NEW)


def test_texts_are_those_that_the_engine_scores(model, whole):
  space, population, tokenizer = model
  items = tuple(Item(str(i), text, 'x') for i, text in enumerate(PROMPTS))
  task = Task('t', 'exact_match', items, format=Format(max_new_tokens=NEW))
  evaluator = Evaluator(tokenizer, [task])
  scores = evaluator.evaluate(space, population)
  # A first line without anything around it is its own answer.
  plain = 0
  for found, predictions in zip(
    whole, scores.tasks[0].predictions, strict=True
  ):
    for text, prediction in zip(found, predictions, strict=True):
      if text.isalnum() and text.isascii():
        plain += 1
        assert text == prediction
  assert plain > 3 and len({tuple(found) for found in whole}) == 3


@pytest.mark.parametrize(
  ('devices', 'options'),
  [
    (1, {'members_per_group': 2, 'prompts_per_batch': 2}),
    (2, {'form': 'batched'}),
  ],
)
def test_cutting_the_work_changes_nothing(model, whole, devices, options):
  shares = []
  texts = generate_texts(
    *model,
    PROMPTS,
    NEW,
    devices=jax.devices()[:devices],
    progress=shares.append,
    **options,
  )
  assert texts == whole
  assert shares == sorted(shares) and shares[-1] == 1


def test_a_broken_member_has_no_texts(model, whole):
  space, population, tokenizer = model
  broken = jax.tree.map(lambda leaf: leaf.at[1].set(np.nan), population)
  texts = generate_texts(space, broken, tokenizer, PROMPTS, NEW)
  assert texts == [whole[0], None, whole[2]]


def test_what_does_not_fit_is_refused(model):
  with pytest.raises(TaskError, match='Prompt 1 has 301 tokens'):
    generate_texts(*model, ['a', 'x' * 300], 3)
  with pytest.raises(TaskError, match='0 prompts'):
    generate_texts(*model, [], 3)
  space, population, tokenizer = model
  bare = dataclasses.replace(tokenizer, bos_id=None, stop_ids=())
  with pytest.raises(TaskError, match='Prompt 1 has no tokens'):
    generate_texts(space, population, bare, ['a', ''], 3)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'members': [0, 3]}, 'member 3 of a population of 3; expected 0 to 2'),
    ({'members': [-1]}, 'member -1'),
    ({'members': [0.5]}, r'members \[0.5\]; expected a list of indices'),
    ({'prompts': 'a text'}, "expected a list, such as .'a text'."),
    ({'stop': 'ab'}, "Got stop 'ab'; expected a list"),
    ({'buget': 3}, "unknown option 'buget'.*Did you mean 'budget'"),
  ],
)
def test_what_cannot_be_is_refused(model, options, message):
  options = {'prompts': ['a'], 'max_new_tokens': 3, **options}
  with pytest.raises(ValueError, match=message):
    generate_texts(*model, **options)


def test_an_empty_prompt_and_unicode(model):
  """An empty prompt is BOS alone; stop strings may be any characters."""
  texts = generate_texts(*model, ['', 'été à 東京'], NEW)
  assert [found[1] for found in texts] == [
    found[0] for found in generate_texts(*model, ['été à 東京'], NEW)
  ]
  stop = texts[0][1][1:3]  # may be half a character, as it is decoded.
  cut = generate_texts(*model, ['', 'été à 東京'], NEW, stop=[stop, '東'])
  assert cut == [[t.split(stop)[0] for t in found] for found in texts]
