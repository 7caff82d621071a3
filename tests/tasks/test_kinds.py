"""Every kind of task through the engine, and real files with a real model.

The model is the pocket model: what it answers is of no interest, that every
prompt, answer and score finds its place is.
"""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from evojax_llm import pocket
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import make_space
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import task_files as tasks_lib
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task

FILES = (
  'arc_challenge',
  'bbh',
  'gsm8k',
  'hearsay',
  'hellaswag',
  'knowledge_crosswords',
  'medqa',
  'mmlu',
  'nlgraph',
  'truthfulqa',
)
CHOICES = (('A', 'tea'), ('B', 'the inn'), ('C', 'a tin'))


def rate(prompts, responses):
  """A judge: short responses are better."""
  return [1 / (1 + len(response)) for response in responses]


@functools.cache
def model():
  """Base, tokenizer and two experts of the pocket population."""
  base = pocket.base_folder()
  experts = list(pocket.expert_folders())[:2]
  return Tokenizer.from_folder(base), make_space('adapters', base, experts)


def evaluate(tasks, **options):
  tokenizer, space = model()
  evaluator = Evaluator(
    tokenizer,
    tasks,
    max_length=400,
    devices=jax.devices()[:1],
    **options,
  )
  return evaluator, evaluator.evaluate(space, space.experts())


def choice_items(count=4):
  return tuple(
    Item(str(i), f'rot: abc{i}', 'ABC'[i % 3], CHOICES) for i in range(count)
  )


def text_items(count=4, answer='cba'):
  return tuple(Item(str(i), f'rev: abc{i} =', answer) for i in range(count))


@functools.cache
def kinds():
  """One small task of each kind, and the engine's scores of all together."""
  format_ = Task('x', 'x', ()).format
  short = dataclasses.replace(format_, max_new_tokens=4)

  def task(kind, items, **options):
    name = '_'.join([kind, *map(str, options.values())])
    pairs = tuple(sorted(options.items()))
    return Task(name, kind, items, format=short, options=pairs)

  tasks = [
    task('multiple_choice', choice_items(), norm='bytes'),
    task('choice_text', choice_items()),
    task('exact_match', text_items()),
    task('numeric_match', text_items(answer='3')),
    task('regex_match', text_items()),
    task('math_match', text_items()),
    task('drop', text_items(), score_by='f1'),
    task('weighted_f1', choice_items()),
    task('weighted_f1', choice_items(), by='text'),
    task('bleu', text_items()),
    task('chrf', text_items()),
    task('rouge_l', text_items()),
    task('perplexity', text_items()),
    task('abstain_qa', choice_items()),
    task('abstain_qa', choice_items(), by='text'),
    task('judge', text_items(answer=''), function=f'{__name__}:rate'),
    task('exact_match', text_items(), language='ja'),
  ]
  return tasks, *evaluate(tasks, objective='z_score')


def test_every_kind_has_scores_of_its_items():
  tasks, evaluator, scores = kinds()
  assert scores.reasons == [None, None]
  assert np.isfinite(scores.task_scores).all()
  for k, (task, result) in enumerate(zip(tasks, scores.tasks, strict=True)):
    scorer = scorer_of(task)
    assert result.ids == [item.id for item in task.dev], task.name
    assert result.values.shape == (2, len(task.dev))
    assert result.metric == scorer.metric
    if not scorer.corpus:
      np.testing.assert_allclose(
        result.values.mean(axis=1), scores.task_scores[:, k], rtol=1e-6
      )
    if scorer.binary:
      assert set(np.unique(result.values)) <= {0, 1}
    assert (result.loglikelihoods is None) == (scorer.reads == 'text')
  # Not yet normalised by the experts: there is no fitness, and that shows.
  assert np.isnan(scores.fitness).all()
  evaluator.normalise_by(scores.task_scores)
  again = evaluator.objective(scores.task_scores)
  np.testing.assert_allclose(again.sum(), 0, atol=1e-5)


def test_perplexity_is_that_of_the_likelihoods():
  tasks, _, scores = kinds()
  k = [task.kind for task in tasks].index('perplexity')
  tokenizer = model()[0]
  for m in range(2):
    nats = [-row['gold'] for row in scores.tasks[k].loglikelihoods[m]]
    # What follows the prompt, the space included.
    tokens = [len(tokenizer.encode(' cba', bos=False))] * len(nats)
    expected = math.exp(sum(nats) / sum(tokens))
    assert scores.task_scores[m, k] == pytest.approx(expected, rel=1e-5)


def test_two_passes_keep_their_places():
  tasks, _, scores = kinds()
  k = next(i for i, t in enumerate(tasks) if t.name == 'abstain_qa')
  for m in range(2):
    for item, values, prediction, value in zip(
      tasks[k].dev,
      scores.tasks[k].loglikelihoods[m],
      scores.tasks[k].predictions[m],
      scores.tasks[k].values[m],
      strict=True,
    ):
      best = max('ABC', key=values.get)
      says_true = values[f'{best} True'] >= values[f'{best} False']
      assert prediction == (best if says_true else None)
      right = 1 if best == item.answer else -1
      assert value == (right if says_true else 0)
  # The options of the first pass are read as multiple choice reads them.
  plain = Task('p', 'multiple_choice', choice_items())
  _, alone = evaluate([plain])
  for m in range(2):
    for values, expected in zip(
      scores.tasks[k].loglikelihoods[m],
      alone.tasks[0].loglikelihoods[m],
      strict=True,
    ):
      for key in 'ABC':
        assert values[key] == pytest.approx(expected[key], abs=1e-4)


def test_the_judge_is_asked_once_about_each_response():
  asked = []

  def count(prompts, responses):
    asked.extend(responses)
    return rate(prompts, responses)

  scorer = dataclasses.replace(scorer_of(kinds()[0][15]), function=count)
  task = dataclasses.replace(kinds()[0][15], scorer=scorer)
  tokenizer, space = model()
  evaluator = Evaluator(tokenizer, [task], devices=jax.devices()[:1])
  first = evaluator.evaluate(space, space.experts())
  said = {
    (item, text)
    for row in first.tasks[0].predictions
    for item, text in zip(first.tasks[0].ids, row, strict=True)
  }
  assert len(asked) == len(said)
  evaluator.evaluate(space, space.experts(), [1])
  assert len(asked) == len(said)


def test_limits_of_each_task():
  tasks = [kinds()[0][k] for k in (0, 7, 12)]
  evaluator, scores = evaluate(tasks, limits={'dev': (2, None, 3)})
  assert [len(items) for items in evaluator.items('dev')] == [2, 4, 3]
  assert [len(result.ids) for result in scores.tasks] == [2, 4, 3]
  with pytest.raises(ValueError, match='one for each'):
    evaluate(tasks, limits={'dev': (2, 3)})
  with pytest.raises(ValueError, match='at least 1'):
    evaluate(tasks, limits={'dev': 0})


def test_cut_prompts_are_counted():
  tokenizer, space = model()
  task = Task('t', 'multiple_choice', choice_items())
  evaluator = Evaluator(
    tokenizer, [task], max_length=12, devices=jax.devices()[:1]
  )
  evaluator.evaluate(space, space.experts())
  assert evaluator.ledger.truncated == 4
  assert evaluator.ledger.as_dict()['truncated'] == 4


@pytest.fixture(scope='module')
def real_scores(data_folder):
  """Two dev items and a test item of every file, scored in one go."""
  rules = tasks_lib.Rules(allow_overlap=True)
  tasks = []
  for name in FILES:
    task = tasks_lib.load_task(data_folder / f'{name}.json', rules)
    short = dataclasses.replace(
      task.format, max_new_tokens=min(4, task.format.max_new_tokens)
    )
    items = task.subset('dev', 2) + task.subset('test', 1)
    tasks.append(dataclasses.replace(task, dev=items, test=(), format=short))
  return tasks, evaluate(tasks)[1]


def test_every_real_file_is_scored(real_scores):
  tasks, scores = real_scores
  assert scores.reasons == [None, None]
  assert np.isfinite(scores.task_scores).all()
  for task, result in zip(tasks, scores.tasks, strict=True):
    assert len(result.ids) == 3
    read = result.loglikelihoods and list(result.loglikelihoods)
    json.dumps([result.predictions, read], allow_nan=False)
    for item, prediction, right in zip(
      task.dev, result.predictions[0], result.correct[0], strict=True
    ):
      if item.choices is not None:
        assert prediction in dict(item.choices)
        assert right == (prediction == item.answer)
