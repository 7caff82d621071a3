"""Agreement with lm-evaluation-harness, and its tasks in our engine.

What the harness makes of a tiny model is stored (`stored`); where it is
installed it is also computed (`live`).
"""

import dataclasses
import importlib.util
import json
import math
import types

import jax
import numpy as np
import pytest

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import load_base
from evojax_llm.models.expression import LowRank
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import lm_eval_task
from evojax_llm.tasks import task_files
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
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


def metrics(**aggregations):
  """The harness's list of metrics with these aggregations."""
  return [
    {
      'metric': name,
      'aggregation': aggregation,
      'higher_is_better': 'perplexity' not in name,
    }
    for name, aggregation in aggregations.items()
  ]


def on_test(task):
  """A task whose dev split is the harness's test split."""
  return dataclasses.replace(task, dev=task.test)


def evaluate(base, tasks, **options):
  model = load_base(base)
  config = model.config
  (block, name), (rows, columns) = next(iter(config.linear_shapes().items()))
  layers = config.num_layers
  nothing = {
    'a': np.zeros((1, layers, rows, 1), np.float32),
    'b': np.zeros((1, layers, 1, columns), np.float32),
  }
  evaluator = Evaluator(
    Tokenizer.from_folder(base),
    tasks,
    devices=jax.devices()[:1],
    **options,
  )
  population = LowRank({'layers': {block: {name: nothing}}})
  return evaluator.evaluate(Expressed(model), population)


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
    scores = evaluate(base, [on_test(task)])
    assert scores.tasks[0].metric == metric
    assert scores.task_scores[0, 0] == pytest.approx(stored[metric])
  assert load_task(f'lm_eval:{path}').scorer.metric == 'acc'
  with pytest.raises(TaskError, match="no metric 'f1'; it has acc, acc_norm"):
    load_task(f'lm_eval:{path}:f1')


LIKELIHOOD = {
  'task': 'tiny_likelihood',
  'output_type': 'loglikelihood',
  'doc_to_choice': None,
  'doc_to_target': '{{" " + options[gold]}}',
  'metric_list': metrics(perplexity='perplexity', acc='mean'),
}
ROLLING = {
  'task': 'tiny_rolling',
  'output_type': 'loglikelihood_rolling',
  'doc_to_choice': None,
  'doc_to_text': '',
  'doc_to_target': '{{question * 2}}',
  'metric_list': metrics(
    word_perplexity='weighted_perplexity',
    byte_perplexity='weighted_perplexity',
    bits_per_byte='bits_per_byte',
  ),
}
CONTEXTS = {
  'task': 'tiny_contexts',
  'doc_to_text': 'gold',
  'doc_to_target': '{{"is " + question[-9:]}}',
  'metric_list': metrics(acc='mean', acc_norm='mean'),
}
# The context ends with a line, whose end belongs to what follows.
LABELS = {
  'task': 'tiny_labels',
  'doc_to_text': 'Question: {{question}}\n',
  'doc_to_choice': ['tea', 'the inn at noon'],
  'doc_to_target': '{{gold % 2}}',
  'target_delimiter': '',
  'metric_list': metrics(
    acc_norm='mean', f1='f1', mcc='matthews_corrcoef', acc_mutual_info='mean'
  ),
}


@pytest.mark.skipif(not HAS_HARNESS, reason='lm_eval is not installed')
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
  ('settings', 'asked', 'length'),
  [
    (LIKELIHOOD, ['perplexity'], 256),
    (ROLLING, ['word_perplexity', 'byte_perplexity', 'bits_per_byte'], 256),
    # In windows of which the last one is short.
    (ROLLING, ['byte_perplexity'], 11),
    (CONTEXTS, ['acc', 'acc_norm'], 256),
    (LABELS, ['acc_norm', 'f1', 'mcc', 'acc_mutual_info'], 256),
  ],
  ids=['likelihood', 'rolling', 'windows', 'contexts', 'labels'],
)
def test_kinds_of_the_harness(
  base, tmp_path, monkeypatch, settings, asked, length
):
  pytest.importorskip('torch', reason='the harness runs in PyTorch')
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  path = make_lm_eval.write_task(tmp_path, 12, **settings)
  # Windows are a token shorter there. What is read whole has one BOS here.
  options = {}
  if settings is ROLLING:
    options = {'max_length': length - 1, 'add_bos_token': False}
  expected = make_lm_eval.evaluate(base, path, **options)
  for metric in asked:
    task = load_task(f'lm_eval:{path}:{metric}')
    scores = evaluate(base, [on_test(task)], max_length=length)
    theirs = expected['results'][settings['task']][f'{metric},none']
    assert scores.task_scores[0, 0] == pytest.approx(theirs, rel=2e-5), metric
    assert task.scorer.maximise == ('perplexity' not in metric)
    assert task.scorer.corpus == (not metric.startswith('acc'))


@pytest.mark.skipif(not HAS_HARNESS, reason='lm_eval is not installed')
@pytest.mark.filterwarnings('ignore')
def test_what_greedy_decoding_would_say_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  path = make_lm_eval.write_task(tmp_path, 3, **LIKELIHOOD)
  with pytest.raises(TaskError, match=r"Name another metric.*yaml:perplexity'"):
    load_task(f'lm_eval:{path}:acc')
  only = LIKELIHOOD | {'metric_list': metrics(acc='mean')}
  path = make_lm_eval.write_task(tmp_path, 3, **only)
  with pytest.raises(TaskError, match='it has none'):
    load_task(f'lm_eval:{path}')


@pytest.mark.skipif(not HAS_HARNESS, reason='lm_eval is not installed')
@pytest.mark.filterwarnings('ignore')
def test_generated_answers_go_through_the_harness(base, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  path = make_lm_eval.write_task(
    tmp_path,
    task='tiny_text',
    output_type='generate_until',
    doc_to_choice=None,
    doc_to_target='{{options[gold]}}',
    generation_kwargs={'until': ['END'], 'max_gen_toks': 3},
    metric_list=metrics(exact_match='mean'),
  )
  task = load_task(f'lm_eval:{path}')
  assert (task.format.stop, task.format.max_new_tokens) == (('END',), 3)
  scorer, item = task.scorer, task.dev[2]
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


class Harness:
  """What is read of a task, in place of the harness's own class."""

  OUTPUT_TYPE = 'multiple_choice'

  def __init__(self, *splits):
    self._splits = splits

  def __getattr__(self, name):
    if name.startswith('has_'):
      return lambda: name[4:-5] in self._splits
    raise AttributeError(name)

  def doc_to_target(self, doc):
    return 1

  def doc_to_choice(self, doc):
    return ['a', 'b']


@pytest.mark.parametrize(
  ('splits', 'chosen'),
  [
    (['test'], {'test': 'test'}),
    (['validation'], {'test': 'validation'}),
    (['training', 'test'], {'dev': 'training', 'test': 'test'}),
    (['validation', 'test'], {'dev': 'validation', 'test': 'test'}),
  ],
)
def test_splits_of_the_harness(splits, chosen):
  assert lm_eval_task._splits(Harness(*splits), 'x') == chosen


def test_an_empty_context_is_no_question():
  request = types.SimpleNamespace(args=(' ', ' a'))
  row = lm_eval_task._row(Harness(), {}, [request])
  assert row == {'choices': {'0': 'a', '1': 'b'}, 'answer': '1'}
  task = task_files.build(
    {'dev': [], 'test': [row]}, 'x', 'x', Rules(), lm_eval_task.LmEvalScorer()
  )
  assert task.test[0].question == '' and not task.dev


def test_a_perplexity_beyond_a_double_is_infinite():
  harness = types.SimpleNamespace(
    aggregation=lambda: {'perplexity': lambda values: math.exp(sum(values))}
  )
  scorer = lm_eval_task.LmEvalScorer(task=harness, metric='perplexity')
  item = Item('0', '', 'a')
  verdicts = Verdicts.of([Verdict(None, 800.0)])
  assert scorer.aggregate([item], verdicts) == math.inf


@pytest.mark.parametrize(
  'text',
  [
    'doc_to_text: !function evil.f',
    '{"class": "evil"}',
    'x: "{{a.__class__}}"',
  ],
)
def test_a_file_of_the_harness_that_names_code_is_refused(tmp_path, text):
  path = tmp_path / 'task.yaml'
  path.write_text(text)
  with pytest.raises(TaskError, match='may run Python.*allow_code'):
    lm_eval_task._refuse_code(str(path))


@pytest.mark.skipif(HAS_HARNESS, reason='lm_eval is installed')
def test_without_the_package_the_extra_is_named():
  with pytest.raises(TaskError, match=r"extra 'lm_eval' \(pip install"):
    load_task('lm_eval:arc_easy')
