"""Agreement with lm-evaluation-harness, and its tasks in our engine.

What the harness makes of a tiny model is stored (`stored`); where it is
installed it is also computed (`live`).
"""

import importlib.util
import json

import jax
import numpy as np
import pytest

from evojax_llm.fitness.evaluation import Evaluator
from evojax_llm.fitness.groups import Expressed
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.tasks import load_task
from evojax_llm.gemma import hub
from evojax_llm.gemma.tokenizer import Tokenizer
from tests.golden import make_lm_eval

HAS_HARNESS = importlib.util.find_spec('lm_eval') is not None
NORMS = {'acc': 'none', 'acc_norm': 'characters', 'acc_bytes': 'bytes'}


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma2')


@pytest.fixture(params=['stored', 'live'])
def expected(request, tmp_path, monkeypatch):
  if request.param == 'stored':
    return json.loads(make_lm_eval.FILE.read_text())
  if not HAS_HARNESS:
    pytest.skip('lm-evaluation-harness is not installed')
  pytest.importorskip('torch', reason='the harness runs in PyTorch')
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  return make_lm_eval.compute(tmp_path)


def evaluate(base, tasks):
  config, params = hub.load_checkpoint(base)
  (block, name), (rows, columns) = next(iter(config.linear_shapes().items()))
  layers = config.num_layers
  nothing = {
    'a': np.zeros((1, layers, rows, 1), np.float32),
    'b': np.zeros((1, layers, 1, columns), np.float32),
  }
  evaluator = Evaluator(
    config,
    params,
    Tokenizer.from_folder(base),
    tasks,
    devices=jax.devices()[:1],
  )
  population = {'layers': {block: {name: nothing}}}
  return evaluator.evaluate(Expressed(), population)


def write(path, norm):
  """The rows of the harness's test split as a file of ours."""
  dev = [
    {
      'question': row['question'],
      'choices': {str(i): text for i, text in enumerate(row['options'])},
      'answer': str(row['gold']),
    }
    for row in make_lm_eval.rows('test', 24)
  ]
  prompt = 'Question: {question}\nAnswer:'
  format_ = {'prompt': prompt, 'choice': 'text', 'norm': norm}
  path.write_text(json.dumps({'name': norm, 'dev': dev, 'format': format_}))
  return load_task(path)


@pytest.mark.filterwarnings('ignore')  # what the harness's packages warn of
def test_accuracies_are_those_of_the_harness(base, tmp_path, expected):
  tasks = [write(tmp_path / f'{n}.json', n) for n in NORMS.values()]
  scores = evaluate(base, tasks)
  for k, metric in enumerate(NORMS):
    assert scores.task_scores[0, k] == pytest.approx(expected[metric])
  # The three tell options apart differently, or this would show nothing.
  assert len({round(expected[metric], 4) for metric in NORMS}) == 3
  found = [list(v.values()) for v in scores.tasks[0].loglikelihoods[0]]
  for ours, theirs in zip(found, expected['loglikelihoods'], strict=True):
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.skipif(not HAS_HARNESS, reason='lm_eval is not installed')
@pytest.mark.filterwarnings('ignore')
def test_a_task_of_the_harness_is_scored_as_it_does(
  base, tmp_path, monkeypatch
):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  stored = json.loads(make_lm_eval.FILE.read_text())
  path = make_lm_eval.write_task(tmp_path)
  for metric in NORMS:
    task = load_task(f'lm_eval:{path}:{metric}')
    assert task.name == 'tiny_choice' and len(task.dev) == 24
    # Scored on what is the harness's test split.
    import dataclasses

    scores = evaluate(base, [dataclasses.replace(task, dev=task.test)])
    assert scores.tasks[0].metric == metric
    assert scores.task_scores[0, 0] == pytest.approx(stored[metric])
  assert load_task(f'lm_eval:{path}').scorer.metric == 'acc'
  with pytest.raises(TaskError, match="no metric 'f1'; it has acc, acc_norm"):
    load_task(f'lm_eval:{path}:f1')


@pytest.mark.skipif(not HAS_HARNESS, reason='lm_eval is not installed')
@pytest.mark.filterwarnings('ignore')
def test_generated_answers_go_through_the_harness(base, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  path = make_lm_eval.write_task(tmp_path)
  raw = json.loads(path.read_text())
  del raw['doc_to_choice']
  raw |= {
    'task': 'tiny_text',
    'output_type': 'generate_until',
    'doc_to_target': '{{options[gold]}}',
    'generation_kwargs': {'until': ['END'], 'max_gen_toks': 3},
    'metric_list': [
      {
        'metric': 'exact_match',
        'aggregation': 'mean',
        'higher_is_better': True,
      }
    ],
  }
  path.write_text(json.dumps(raw))
  task = load_task(f'lm_eval:{path}')
  assert (task.format.stop, task.format.max_new_tokens) == (('END',), 3)
  scorer, item = task.scorer, task.dev[2]
  from evojax_llm.fitness.scorers.base import Answer

  assert scorer.score(item, Answer((item.answer,))).value == 1
  assert scorer.score(item, Answer(('no',))).value == 0
  scores = evaluate(base, [task])
  assert scores.tasks[0].metric == 'exact_match'
  assert np.isfinite(scores.fitness).all()


@pytest.mark.skipif(not HAS_HARNESS, reason='lm_eval is not installed')
@pytest.mark.filterwarnings('ignore')
def test_tasks_that_are_not_there_are_refused():
  with pytest.raises(TaskError, match='not one task that the harness can load'):
    load_task('lm_eval:no_such_task_at_all')


@pytest.mark.skipif(HAS_HARNESS, reason='lm_eval is installed')
def test_without_the_package_the_extra_is_named():
  with pytest.raises(TaskError, match=r"extra 'lm_eval' \(pip install"):
    load_task('lm_eval:arc_easy')
