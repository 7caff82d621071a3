"""Tasks of lm-evaluation-harness: 'lm_eval:task' or 'lm_eval:task:metric'.

A task may also be a YAML file of one's own ('lm_eval:my_task.yaml'). The
harness makes the prompts, options and stop strings and judges the answers; only
the model is ours. The metric is the first of the task's list unless one is
named. Refused are metrics that are no number for each document, and those that
ask whether greedy decoding gives a text ('acc' of a loglikelihood task,
'exact_match' of options).

A rolling text begins after the only BOS. Where it is longer than the context,
its windows are a token shorter than the harness's.

dev is the training split, or else the validation split; test is the test split,
or else the validation split where it is not dev. Worked examples are the
harness's own choice, which leaves out the document in question.
"""

from collections.abc import Sequence
import copy
import dataclasses
import functools
import math
import os
import re
from typing import Any

import numpy as np

from evojax_llm import files
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import typed

_BINARY = ('acc', 'acc_norm', 'acc_bytes', 'acc_mutual_info', 'exact_match')
# (gold, predicted) for each document.
_PAIRS = ('f1', 'mcc')
# What the harness reads of the model for each kind of task.
_READS = {
  'multiple_choice': 'options',
  'loglikelihood': 'gold',
  'loglikelihood_rolling': 'gold',
  'generate_until': 'text',
}
# Whether greedy decoding would give a text is not read here.
_GREEDY = (('multiple_choice', 'exact_match'), ('loglikelihood', 'acc'))
# Python by name, other files, and templates that leave their own objects.
_NAMES_CODE = re.compile(
  r'!(?:function|include|python)|\b(?:class|include)\b["\']?\s*:|__\w+'
)
_SOURCES = ('training', 'validation', 'test')


@dataclasses.dataclass(frozen=True, eq=False)
class LmEvalScorer(Scorer):
  """The harness's verdict on an answer.

  Attributes:
    task: of the harness.
    docs: its documents by item id, each with its requests.
  """

  task: Any = None
  docs: Any = None
  metric: str = 'acc'
  maximise: bool = True
  corpus: bool = False
  reads: str = 'options'
  rolls: bool = False

  choices = None
  question = gold = stop = False  # A context may be empty.
  max_new_tokens = 256

  @property
  def binary(self) -> bool:
    return self.metric in _BINARY

  @property
  def percent(self) -> bool:
    return self.binary or self.metric == 'f1'

  def requests(self, item: Item) -> Sequence[tuple[str, Sequence[str]]] | None:
    """Returns the harness's pairs; those of one context are read together."""
    if self.reads == 'text' or self.rolls:
      return None
    pairs: list[tuple[str, list[str]]] = []
    for request in self.docs[item.id][1]:
      context, continuation = request.args[:2]
      # All white space at the end of a context belongs to what follows.
      stem = context.rstrip()
      continuation = context[len(stem) :] + continuation
      if not pairs or pairs[-1][0] != stem:
        pairs.append((stem, []))
      pairs[-1][1].append(continuation)
    return pairs

  def score(self, item: Item, answer: Answer) -> Verdict:
    doc, requests = self.docs[item.id]
    prediction = None
    if self.rolls:
      results = [sum(answer.loglik)]
    elif self.reads == 'text':
      request = copy.copy(requests[0])
      request.resps, request.filtered_resps = [answer.text], {}
      for ensemble in self.task._filters:
        ensemble.apply([request])
      prediction = next(iter(request.filtered_resps.values()), answer.text)
      results = [prediction]
    else:
      results = [(value, False) for value in answer.loglik]
      if item.choices is not None:
        own = answer.loglik[: len(item.choices)]
        prediction = item.choices[int(np.argmax(own))][1]
    value = self.task.process_results(doc, results).get(self.metric)
    weight = 1.0
    if self.rolls and isinstance(value, tuple):
      total, weight = map(float, value)
      value = total / weight
    elif self.metric in _PAIRS and isinstance(value, tuple):
      value = float(value[0] == value[1])
    if not isinstance(value, int | float | np.number):
      raise TaskError(
        f"lm_eval:{self.task.config.task}: '{self.metric}' of a document is "
        f'{value!r}; expected a number. Name another metric.'
      )
    prediction = None if prediction is None else str(prediction)
    return Verdict(prediction, float(value), weight)

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    aggregate = self.task.aggregation()[self.metric]
    values = verdicts.values.tolist()
    if self.rolls:
      totals = (verdicts.values * verdicts.weights).tolist()
      values = list(zip(totals, verdicts.weights.tolist(), strict=True))
    elif self.metric in _PAIRS and items[0].choices is not None:
      values = [
        (int(item.answer), [text for _, text in item.choices].index(prediction))
        for item, prediction in zip(items, verdicts.predictions, strict=True)
      ]
    try:
      return float(aggregate(values))
    except OverflowError:  # A perplexity beyond a double.
      return math.inf


def load(name: str, rules: Any) -> Task:
  """Makes the task 'name' or 'name:metric' of the harness.

  Raises:
    TaskError: the package is not installed, there is no such task or metric,
      or the task is of a kind that cannot be scored here.
  """
  from evojax_llm.tasks import task_files

  try:
    from lm_eval.api.metrics import mean
  except ImportError as error:
    raise TaskError(
      f'lm_eval:{name}: lm-evaluation-harness is not installed; expected the '
      "extra 'lm_eval' (pip install 'evojax_llm[lm_eval]')."
    ) from error
  where, _, metric = name.partition(':')
  where, source = os.path.expanduser(where), f'lm_eval:{name}'
  if where.endswith(('.yaml', '.yml')) and not rules.allow_code:
    _refuse_code(where)
  try:
    ((title, task),) = _task_manager().load([where])['tasks'].items()
  except Exception as error:
    raise TaskError(
      f'{source}: not one task that the harness can load: '
      f'{type(error).__name__}: {str(error)[:200]}.'
    ) from error
  kind = task.OUTPUT_TYPE
  if kind not in _READS:
    raise TaskError(
      f'{source}: asks for {kind}; expected one of {", ".join(_READS)}.'
    )
  known = list(task.higher_is_better())
  metric = metric or known[0]
  if metric not in known:
    raise TaskError(
      f"{source}: has no metric '{metric}'; it has {', '.join(known)}."
    )
  if (kind, metric) in _GREEDY:
    others = [name for name in known if (kind, name) not in _GREEDY]
    raise TaskError(
      f"{source}: '{metric}' of a {kind} task is whether greedy decoding gives "
      'a text, which is not read here. Name another metric, as in '
      f"'lm_eval:{where}:{(others or ['...'])[0]}'"
      f'{"" if others else " (it has none)"}.'
    )
  docs: dict[str, Any] = {}
  shots = rules.shots
  if shots is None:
    shots = task.config.num_fewshot or 0
  top = {'name': title, 'format': _format(task), 'dev': []}
  for split, own in _splits(task, source).items():
    top[split] = []
    for index, doc in enumerate(getattr(task, f'{own}_docs')()):
      context = task.fewshot_context(doc, num_fewshot=shots)
      requests = task.construct_requests(doc=doc, ctx=context)
      requests = requests if isinstance(requests, list) else [requests]
      key = f'{own} {index}'
      docs[key] = doc, requests
      top[split].append({'id': key, **_row(task, doc, requests)})
  scorer = LmEvalScorer(
    task=task,
    docs=docs,
    metric=metric,
    maximise=bool(task.higher_is_better()[metric]),
    corpus=task.aggregation()[metric] is not mean,
    reads=_READS[kind],
    rolls=kind == 'loglikelihood_rolling',
  )
  # The harness's shots are in the prompts already.
  rules = dataclasses.replace(rules, shots=None, shots_seed=None)
  return task_files.build(top, source, title, rules, scorer)


def _refuse_code(path: str) -> None:
  found = _NAMES_CODE.search(files.read_text(path, TaskError))
  if found:
    raise TaskError(
      f'lm_eval:{path}: has {found[0]!r}, by which the harness may run Python; '
      'a task file may ask for that only where it is allowed '
      f'({typed("allow_code")}).'
    )


@functools.cache
def _task_manager() -> Any:
  """Returns the harness's index of its tasks, which takes seconds to make."""
  from lm_eval.tasks import TaskManager

  return TaskManager()


def _splits(task: Any, source: str) -> dict[str, str]:
  """Returns which of the harness's splits are dev and test."""
  own = [name for name in _SOURCES if getattr(task, f'has_{name}_docs')()]
  dev = next((name for name in own if name != 'test'), None)
  test = next((name for name in reversed(own) if name != dev), None)
  if not own:
    raise TaskError(f'{source}: the task has no documents.')
  # What is searched on is not reported as unseen: one split alone is test.
  return {'test': own[0]} if len(own) == 1 else {'dev': dev, 'test': test}


def _row(task: Any, doc: Any, requests: list[Any]) -> dict[str, Any]:
  """Returns a document as a row; what is read of it are its requests."""
  target = task.doc_to_target(doc)
  if task.OUTPUT_TYPE == 'loglikelihood_rolling':
    return {'answer': str(target)}
  context = requests[0].args[0]
  question = {'question': context} if context.strip() else {}
  if task.OUTPUT_TYPE != 'multiple_choice':
    return {**question, 'answer': str(target) or '-'}
  texts = task.doc_to_choice(doc)
  if getattr(task, 'multiple_input', False):
    # The options are contexts, and the target what follows each of them.
    question, target = {'question': str(target)}, task.doc_to_text(doc)
  target = target[0] if isinstance(target, list) else target
  target = texts.index(target) if isinstance(target, str) else target
  return {
    **question,
    'choices': {str(i): text for i, text in enumerate(texts)},
    'answer': str(target),
  }


def _format(task: Any) -> dict[str, Any]:
  if task.OUTPUT_TYPE != 'generate_until':
    return {}
  settings = task.config.generation_kwargs or {}
  stop = settings.get('until') or []
  stop = [stop] if isinstance(stop, str) else [text for text in stop if text]
  given = {'prompt': '{question}', 'stop': stop}
  if 'max_gen_toks' in settings:
    given['max_new_tokens'] = settings['max_gen_toks']
  return given
