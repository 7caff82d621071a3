"""Tasks of lm-evaluation-harness: 'lm_eval:task' or 'lm_eval:task:metric'.

A task may also be a YAML file of one's own ('lm_eval:my_task.yaml'). The
harness makes the prompts, options and stop strings and judges the answers; only
the model is ours. The metric is the first of the task's list unless one is
named. Tasks that ask for the likelihood of one text, or whose metric is not a
number for each document, are refused.

Splits: dev is the training split where there is one, else the validation split;
test is the test split, else the validation split where it is not dev. Worked
examples are the harness's own choice, from the split that the task names; the
harness leaves out the document in question.

The package is an extra of this project, `lm_eval`, and some of its tasks
download their data.
"""

from collections.abc import Sequence
import copy
import dataclasses
from typing import Any
from typing import ClassVar

import numpy as np

from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.scorers.base import Answer
from evojax_llm.fitness.scorers.base import Scorer
from evojax_llm.fitness.scorers.base import Verdict
from evojax_llm.fitness.scorers.base import Verdicts

_BINARY = ('acc', 'acc_norm', 'acc_bytes', 'exact_match')
_PLACES = ('training', 'validation', 'test')


@dataclasses.dataclass(frozen=True, eq=False)
class LmEvalScorer(Scorer):
  """The harness's verdict on an answer.

  Attributes:
    task: of the harness.
    docs: its documents by item id, each with its first request.
    metric: one of the task's metrics.
    maximise: whether more of it is better.
    binary: whether it is 0 or 1 for each document.
    reads: 'options' or 'text'.
  """

  task: Any = None
  docs: Any = None
  metric: str = 'acc'
  maximise: bool = True
  binary: bool = True
  reads: str = 'options'

  choices: ClassVar[bool | None] = None
  gold: ClassVar[bool] = False
  stop: ClassVar[bool] = False

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Asks the harness."""
    doc, request = self.docs[item.id]
    if self.reads == 'options':
      results = [(value, False) for value in answer.loglik]
      best = int(np.argmax(answer.loglik))
      prediction = item.choices[best][1]
    else:
      request = copy.copy(request)
      request.resps, request.filtered_resps = [answer.text], {}
      for ensemble in self.task._filters:
        ensemble.apply([request])
      prediction = next(iter(request.filtered_resps.values()), answer.text)
      results = [prediction]
    value = self.task.process_results(doc, results).get(self.metric)
    if not isinstance(value, int | float | np.number):
      raise TaskError(
        f"lm_eval:{self.task.config.task}: '{self.metric}' of a document is "
        f'{value!r}; expected a number. Name another metric.'
      )
    return Verdict(str(prediction), float(value))

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    """The harness's aggregate of the documents."""
    del items
    aggregate = self.task.aggregation()[self.metric]
    return float(aggregate(verdicts.values.tolist()))


def load(name: str, rules: Any) -> Task:
  """The task 'name' or 'name:metric' of the harness.

  Raises:
    TaskError: the package is not installed, there is no such task or metric,
      or the task is of a kind that cannot be scored here.
  """
  from evojax_llm.fitness import tasks

  try:
    from lm_eval.tasks import TaskManager
  except ImportError as error:
    raise TaskError(
      f'lm_eval:{name}: lm-evaluation-harness is not installed; expected the '
      "extra 'lm_eval' (pip install 'evojax_llm[lm_eval]')."
    ) from error
  where, _, metric = name.partition(':')
  try:
    found = TaskManager().load([where])['tasks']
    ((title, task),) = found.items()
  except Exception as error:
    raise TaskError(
      f'lm_eval:{name}: not one task that the harness can load: '
      f'{type(error).__name__}: {str(error)[:200]}.'
    ) from error
  source = f'lm_eval:{name}'
  reads = {'multiple_choice': 'options', 'generate_until': 'text'}.get(
    task.OUTPUT_TYPE
  )
  if reads is None or getattr(task, 'multiple_input', False):
    raise TaskError(
      f'{source}: asks for {task.OUTPUT_TYPE}; expected multiple_choice with '
      'one prompt for all options, or generate_until.'
    )
  known = list(task.higher_is_better())
  metric = metric or known[0]
  if metric not in known:
    raise TaskError(
      f"{source}: has no metric '{metric}'; it has {', '.join(known)}."
    )
  docs: dict[str, Any] = {}
  shots = task.config.num_fewshot or 0
  if rules.shots is not None:
    shots = rules.shots
  top = {'name': title, 'format': _format(task, reads)}
  for split, place in _splits(task, source).items():
    rows = []
    for index, doc in enumerate(_docs(task, place)):
      context = task.fewshot_context(doc, num_fewshot=shots)
      requests = task.construct_requests(doc=doc, ctx=context)
      requests = requests if isinstance(requests, list) else [requests]
      key = f'{place} {index}'
      docs[key] = doc, requests[0]
      rows.append({'id': key, **_row(task, doc, requests, reads, source)})
    top[split] = rows
  scorer = LmEvalScorer(
    task=task,
    docs=docs,
    metric=metric,
    maximise=bool(task.higher_is_better()[metric]),
    binary=metric in _BINARY,
    reads=reads,
  )
  # The harness's shots are in the prompts already.
  rules = dataclasses.replace(rules, shots=None, shots_seed=None)
  return tasks.build(top, source, title, rules, scorer)


def _splits(task: Any, source: str) -> dict[str, str]:
  """Which of the harness's splits are dev and test."""
  there = [place for place in _PLACES if getattr(task, f'has_{place}_docs')()]
  dev = next((p for p in there if p != 'test'), None)
  test = next((p for p in reversed(there) if p != dev), None)
  if not there:
    raise TaskError(f'{source}: the task has no documents.')
  # What is searched on is not reported as unseen: one split alone is test.
  if test is None:
    return {'test': dev}
  return {'dev': dev, 'test': test}


def _docs(task: Any, place: str) -> list[Any]:
  return list(getattr(task, f'{place}_docs')())


def _row(
  task: Any, doc: Any, requests: list[Any], reads: str, source: str
) -> dict[str, Any]:
  context = requests[0].args[0]
  if reads == 'text':
    return {'question': context, 'answer': str(task.doc_to_target(doc)) or '-'}
  delimiter = task.config.target_delimiter
  texts = [request.args[1].removeprefix(delimiter) for request in requests]
  if delimiter != ' ':
    if delimiter.strip() or not (delimiter or context[-1:].isspace()):
      raise TaskError(
        f'{source}: options follow {delimiter!r}; expected white space.'
      )
    context += delimiter
  target = task.doc_to_target(doc)
  target = target[0] if isinstance(target, list) else target
  if isinstance(target, str):
    target = task.doc_to_choice(doc).index(target)
  return {
    'question': context,
    'choices': {str(i): text for i, text in enumerate(texts)},
    'answer': str(target),
  }


def _format(task: Any, reads: str) -> dict[str, Any]:
  if reads == 'options':
    return {'prompt': '{question}', 'choice': 'text'}
  settings = task.config.generation_kwargs or {}
  stop = settings.get('until') or []
  stop = [stop] if isinstance(stop, str) else [text for text in stop if text]
  return {
    'prompt': '{question}',
    'stop': stop,
    'max_new_tokens': settings.get('max_gen_toks', 256),
  }
