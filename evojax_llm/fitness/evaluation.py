"""From what the programs return to values of items, tasks and members."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.engine.answers import Answers
from evojax_llm.engine.packed_split import ItemSpan
from evojax_llm.engine.packed_split import PackedSplit
from evojax_llm.fitness import item_log
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.fitness.objectives import Objective
from evojax_llm.tasks.scorers.answers import cut_at_stop
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import Task


@dataclasses.dataclass
class Evaluation:
  """Fitness of M members, and what it was made of.

  Attributes:
    fitness: (M,) f32, the objective over the tasks, maximised; NaN for a
      member that failed.
    task_scores: (M, K) f32 scores, NaN for a failed member.
    tasks: K results item by item.
    reasons: M strings that say why a member failed, or None.
    distinct: how many models were scored, where that is less than M.
    lengths: (M,) f32 tokens of an answer, the mean over all that a member has
      generated; None where no task has such answers.
  """

  fitness: np.ndarray
  task_scores: np.ndarray
  tasks: list[TaskItems]
  reasons: list[str | None]
  distinct: int | None = dataclasses.field(default=None, kw_only=True)
  lengths: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

  @property
  def items(self) -> np.ndarray:
    """(M, I) scores of the items of all tasks, maximised."""
    return np.concatenate(
      [t.values if t.maximise else -t.values for t in self.tasks], axis=1
    )

  def spread(self, index: np.ndarray) -> 'Evaluation':
    """Returns that of members (M,), each as one of these."""
    tasks = [
      dataclasses.replace(
        item_log.take(task, index),
        loglikelihoods=task.loglikelihoods
        and [task.loglikelihoods[i] for i in index],
      )
      for task in self.tasks
    ]
    return Evaluation(
      self.fitness[index],
      self.task_scores[index],
      tasks,
      [self.reasons[i] for i in index],
      distinct=len(self.fitness),
      lengths=None if self.lengths is None else self.lengths[index],
    )


def joined(first: Evaluation, second: Evaluation) -> Evaluation:
  """Returns that of the members of both, scored on the same items."""
  tasks = []
  for a, b in zip(first.tasks, second.tasks, strict=True):
    values = np.concatenate([a.values, b.values])
    predictions = [*a.predictions, *b.predictions]
    known = a.loglikelihoods and b.loglikelihoods
    found = [*a.loglikelihoods, *b.loglikelihoods] if known else None
    tasks.append(
      dataclasses.replace(
        a, values=values, predictions=predictions, loglikelihoods=found
      )
    )
  return Evaluation(
    np.concatenate([first.fitness, second.fitness]),
    np.concatenate([first.task_scores, second.task_scores]),
    tasks,
    [*first.reasons, *second.reasons],
  )


class _Likelihoods(Sequence):
  """M lists of {option: value} an item, each made when it is asked for."""

  def __init__(
    self, labels: list[list[str]], spans: list[ItemSpan], values: np.ndarray
  ):
    self._labels, self._spans, self._values = labels, spans, values

  def __len__(self) -> int:
    return len(self._values)

  def __getitem__(self, m: int) -> list[dict[str, float]]:
    row = self._values[m].tolist()
    return [
      dict(zip(names, row[span.options], strict=True))
      for names, span in zip(self._labels, self._spans, strict=True)
    ]


class AnswerScorer:
  """Turns answers into scores; remembers verdicts, since members often agree.

  The objective may be replaced, in a copy too.
  """

  def __init__(
    self, tasks: Sequence[Task], objective: Objective, tokenizer: Any
  ):
    self.objective = objective
    self._tasks = list(tasks)
    self._scorers = [scorer_of(task) for task in tasks]
    self._tokenizer = tokenizer
    # By task, item and generated tokens.
    self._verdicts: dict[tuple, Verdict] = {}

  def read(self, split: PackedSplit, answers: Answers, members: slice) -> None:
    """Judges the texts of some members ahead of `score`, which then need not.

    Raises:
      JudgeError: as `score`.
    """
    for k, scorer in enumerate(self._scorers):
      if scorer.reads == 'text':
        self._judge_new(k, split.spans[k], answers, members)

  def score(self, split: PackedSplit, answers: Answers) -> Evaluation:
    """Scores of all members.

    Raises:
      JudgeError: a judge gives no scores; no member is scored then.
    """
    alive = answers.finite.copy()
    reasons = [None if ok else 'logits are not finite' for ok in alive]
    scored = [
      self._score_task(k, split, answers) for k in range(len(split.items))
    ]
    tasks, columns = map(list, zip(*scored, strict=True))
    for result, column in scored:
      for m in np.flatnonzero(np.isnan(column)):
        reasons[m] = reasons[m] or f'a score on {result.task} is not a number'
    with np.errstate(over='ignore'):  # A perplexity may be beyond a float.
      task_scores = np.stack(columns, axis=1).astype(np.float32)
    task_scores[~alive] = np.nan
    # Before the experts are known there is no fitness, only what they score.
    fitness = np.full(len(alive), np.nan, np.float32)
    if not self.objective.needs_experts:
      fitness = self.objective(task_scores)
      for m in np.flatnonzero(np.isnan(fitness)):
        reasons[m] = reasons[m] or 'a score is infinite'
    lengths = None
    if split.num_prompts:
      tokens = [sum(map(len, made)) for made in answers.generated]
      lengths = np.asarray(tokens, np.float32) / np.float32(split.num_prompts)
    return Evaluation(fitness, task_scores, tasks, reasons, lengths=lengths)

  def _score_task(
    self, k: int, split: PackedSplit, answers: Answers
  ) -> tuple[TaskItems, np.ndarray]:
    """What all members did on a task, and the task's score of each."""
    scorer, spans, likelihoods = self._scorers[k], split.spans[k], None
    items = split.tables[k].items
    if scorer.reads == 'text':
      verdicts = self._judge_texts(k, spans, answers)
    else:
      read = answers.loglikelihoods
      labels = [scorer.labels(p.item, len(p.tokens)) for p in spans]
      likelihoods = _Likelihoods(labels, spans, read)
      span = slice(spans[0].options.start, spans[-1].options.stop)
      verdicts = scorer.score_options(split.tables[k], read[:, span])
    result = TaskItems(
      task=self._tasks[k].name,
      metric=scorer.metric,
      maximise=scorer.maximise,
      binary=scorer.binary,
      ids=[item.id for item in items],
      values=verdicts.values.astype(np.float32),
      predictions=verdicts.predictions.tolist(),
      loglikelihoods=likelihoods,
    )
    column = np.full(len(verdicts.values), np.nan)
    for m in np.flatnonzero(answers.finite):
      column[m] = scorer.aggregate(items, verdicts.member(m))
    return result, column

  def _judge_texts(
    self, k: int, spans: list[ItemSpan], answers: Answers
  ) -> Verdicts:
    keys = self._judge_new(k, spans, answers, slice(None))
    nothing = Verdict(None, 0.0)
    return Verdicts.of(
      (self._verdicts.get(key, nothing) for row in keys for key in row),
      (len(keys), len(spans)),
    )

  def _judge_new(
    self, k: int, spans: list[ItemSpan], answers: Answers, members: slice
  ) -> list[list[tuple]]:
    """Judges texts without a verdict; returns the keys of all, by member."""
    stop, decode = self._tasks[k].format.stop, self._tokenizer.decode
    keys = [
      # The task holds the item as long as this lives: its address is its own.
      [(k, id(p.item), *member[p.prompts]) for p in spans]
      for member in answers.generated[members]
    ]
    # A failed member has said nothing; no judge need be asked about it.
    new = {
      key: span.item
      for m in np.flatnonzero(answers.finite[members])
      for key, span in zip(keys[m], spans, strict=True)
      if key not in self._verdicts
    }
    pairs = [
      (item, Answer(tuple(cut_at_stop(decode(ids), stop) for ids in key[2:])))
      for key, item in new.items()
    ]
    verdicts = self._scorers[k].score_all(pairs)
    self._verdicts.update(zip(new, verdicts, strict=True))
    return keys
