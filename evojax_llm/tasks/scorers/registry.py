"""The table of scorers: one line each. README.md beside lists them too."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from evojax_llm.tasks.scorers import abstain
from evojax_llm.tasks.scorers import choice_text
from evojax_llm.tasks.scorers import code
from evojax_llm.tasks.scorers import drop
from evojax_llm.tasks.scorers import exact
from evojax_llm.tasks.scorers import f1
from evojax_llm.tasks.scorers import judge
from evojax_llm.tasks.scorers import latex
from evojax_llm.tasks.scorers import multiple_choice
from evojax_llm.tasks.scorers import numeric
from evojax_llm.tasks.scorers import perplexity
from evojax_llm.tasks.scorers import regex
from evojax_llm.tasks.scorers import reward
from evojax_llm.tasks.scorers import rouge
from evojax_llm.tasks.scorers import translation
from evojax_llm.tasks.scorers.answers import cut_at_stop
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.language import Gated
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError

SCORERS: dict[str, type[Scorer]] = {
  'multiple_choice': multiple_choice.MultipleChoice,
  'choice_text': choice_text.ChoiceText,
  'exact_match': exact.ExactMatch,
  'numeric_match': numeric.NumericMatch,
  'regex_match': regex.RegexMatch,
  'math_match': latex.MathMatch,
  'drop': drop.Drop,
  'weighted_f1': f1.WeightedF1,
  'bleu': translation.Bleu,
  'chrf': translation.Chrf,
  'rouge_l': rouge.RougeL,
  'perplexity': perplexity.Perplexity,
  'abstain_qa': abstain.AbstainQA,
  'code': code.CodeTests,
  'reward': reward.RewardModel,
  'judge': judge.Judge,
}
KINDS = tuple(SCORERS)
# Options of the language gate, which any scorer of text takes.
GATE_OPTIONS = ('language', 'detector', 'threshold')


def option_names(kind: str) -> tuple[str, ...]:
  """Names of the options of a kind, those of the gate included."""
  fields = dataclasses.fields(SCORERS[kind])
  return (*(field.name for field in fields), *GATE_OPTIONS)


def make_scorer(kind: str, options: Mapping[str, Any]) -> Any:
  """The scorer of a kind.

  Args:
    kind: a name of the table.
    options: by `option_names`.

  Raises:
    TaskError: an option cannot be right; the caller adds the place.
  """
  own = {k: v for k, v in options.items() if k not in GATE_OPTIONS}
  gate = {k: v for k, v in options.items() if k in GATE_OPTIONS}
  scorer = SCORERS[kind](**own)
  if not gate:
    return scorer
  if 'language' not in gate:
    raise TaskError(f'{", ".join(gate)}: say the language as well.')
  return Gated(scorer, **gate)


@functools.lru_cache(maxsize=1024)
def _cached(kind: str, options: tuple[tuple[str, Any], ...]) -> Any:
  return make_scorer(kind, dict(options))


def scorer_of(task: Task) -> Any:
  """A task's scorer: its own, or that of its kind with its options.

  Raises:
    TaskError: the kind or an option is unknown.
  """
  if task.scorer is not None:
    return task.scorer
  if task.kind not in SCORERS:
    raise TaskError(
      f"Task '{task.name}' is of kind {task.kind!r}; expected one of "
      f'{", ".join(KINDS)}.'
    )
  return _cached(task.kind, task.options)


def score_text(task: Task, item: Item, text: str) -> Verdict:
  """The verdict on a generated text, cut at the task's stop strings."""
  answer = Answer((cut_at_stop(text, task.format.stop),))
  return scorer_of(task).score(item, answer)
