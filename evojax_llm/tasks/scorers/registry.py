"""The table of scorers, and how a task's scorer is made."""

from collections.abc import Mapping
import functools
from typing import Any

from evojax_llm.options import declared
from evojax_llm.tasks import task as task_lib
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.language import Gated
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError

_HERE = 'evojax_llm.tasks.scorers'
# A kind and its class, whose module is imported when a task is of the kind.
SCORERS: dict[str, str] = {
  'multiple_choice': f'{_HERE}.options:MultipleChoice',
  'choice_text': f'{_HERE}.choice_text:ChoiceText',
  'exact_match': f'{_HERE}.exact:ExactMatch',
  'numeric_match': f'{_HERE}.numeric:NumericMatch',
  'regex_match': f'{_HERE}.exact:RegexMatch',
  'math_match': f'{_HERE}.numeric:MathMatch',
  'drop': f'{_HERE}.measures:Drop',
  'weighted_f1': f'{_HERE}.choice_text:WeightedF1',
  'bleu': f'{_HERE}.measures:Bleu',
  'chrf': f'{_HERE}.measures:Chrf',
  'rouge_l': f'{_HERE}.measures:RougeL',
  'perplexity': f'{_HERE}.options:Perplexity',
  'abstain_qa': f'{_HERE}.choice_text:AbstainQA',
  'code': f'{_HERE}.code:CodeTests',
  'reward': f'{_HERE}.reward:RewardModel',
  'judge': f'{_HERE}.judge:Judge',
}
# Options of the language gate, which any scorer of text takes.
GATE_OPTIONS = ('language', 'detector', 'threshold', 'gate')
# What a task file may only set where the user allows it: code, a secret, and a
# file that is written.
CODE_OPTIONS = ('kind', 'function', 'detector', 'key', 'cache')


def scorer_class(kind: str) -> type[Scorer]:
  """Returns the class of a kind: of the table, or 'package.module:Class'.

  Raises:
    TaskError: there is none, or it is no scorer.
  """
  found = task_lib.find(kind, SCORERS, 'kind')
  if not (isinstance(found, type) and issubclass(found, Scorer)):
    raise TaskError(
      f'Got kind {kind!r}, which is {found!r}; expected a class derived from '
      f'{_HERE}.base.Scorer.'
    )
  return found


def make_scorer(kind: str, options: Mapping[str, Any]) -> Any:
  """Makes the scorer of a kind with its options and those of the gate.

  Raises:
    TaskError: an option cannot be right; the caller adds file and row.
  """
  own = {k: v for k, v in options.items() if k not in GATE_OPTIONS}
  gate = {k: v for k, v in options.items() if k in GATE_OPTIONS}
  scorer = scorer_class(kind)(**own)
  if not gate:
    return scorer
  if 'language' not in gate:
    raise TaskError(f'{", ".join(gate)}: say the language as well.')
  return Gated(scorer, **gate)


@functools.lru_cache(maxsize=1024)
def _cached(kind: str, options: tuple[tuple[str, Any], ...]) -> Any:
  return make_scorer(kind, dict(options))


def scorer_of(task: Task) -> Any:
  """Returns a task's scorer: its own, or that of its kind with its options.

  Raises:
    TaskError: the kind or an option is unknown.
  """
  if task.scorer is not None:
    return task.scorer
  try:
    return _cached(task.kind, task.options)
  except TaskError as error:
    raise TaskError(f"Task '{task.name}': {error}") from error


def table() -> str:
  """Returns all scorers and their options as a Markdown table."""
  lines = ['| kind | reads | score | options |', '|---|---|---|---|']
  for kind in SCORERS:
    cls = scorer_class(kind)
    reads = cls.reads if isinstance(cls.reads, str) else 'options or text'
    score = cls.__doc__.splitlines()[0].removesuffix('.')
    options = '; '.join(
      ': '.join([f'`{name}`', ', '.join(known.choices) or known.text])
      for name, known in declared(cls).items()
    )
    lines.append(f'| `{kind}` | {reads} | {score} | {options} |')
  return '\n'.join(lines) + '\n'
