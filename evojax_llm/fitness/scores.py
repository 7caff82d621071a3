"""From what the programs return to right, wrong and fitness."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.fitness import scorers
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.splits import Split


@dataclasses.dataclass
class TaskScores:
  """What M members did on the items of one task.

  Attributes:
    task: name of the task.
    ids: ids of the items.
    correct: (M, items) bool.
    predictions: M lists of a string an item, or None where there is none.
    loglikelihoods: M lists of {option: value} an item; None when generated.
  """

  task: str
  ids: list[str]
  correct: np.ndarray
  predictions: list[list[str | None]]
  loglikelihoods: list[list[dict[str, float]]] | None


@dataclasses.dataclass
class Scores:
  """Fitness of M members, and what it was made of.

  Attributes:
    fitness: (M,) f32, weighted mean of the tasks' accuracies, maximised; NaN
      for a member that failed.
    task_scores: (M, K) f32 accuracies, NaN for a failed member.
    tasks: K results item by item.
    reasons: M strings that say why a member failed, or None.
  """

  fitness: np.ndarray
  task_scores: np.ndarray
  tasks: list[TaskScores]
  reasons: list[str | None]


class Answers:
  """What M members answered to the prompts of a split, as it comes in.

  Attributes:
    loglikelihoods: (M, continuations) f64 sums of log-probabilities.
    generated: M lists of the token ids that continue each prompt.
    finite: (M,) bool, whether all logits that were read were finite.
  """

  def __init__(self, split: Split, members: int):
    self.loglikelihoods = np.zeros((members, len(split.options)), np.float64)
    self.generated = [[()] * len(split.prompts) for _ in range(members)]
    self.finite = np.ones(members, bool)

  def forget(self, start: int) -> None:
    """Drops the answers of members `start` and following."""
    self.loglikelihoods[start:] = 0.0
    self.finite[start:] = True

  def add_options(
    self, owner: np.ndarray, start: int, logprobs: np.ndarray
  ) -> None:
    """Takes in log-probabilities (M, Q) of members `start` and following."""
    span = slice(start, start + len(logprobs))
    read = owner >= 0
    values = logprobs[:, read].astype(np.float64)
    np.add.at(self.loglikelihoods[span].T, owner[read], values.T)
    self.finite[span] &= np.isfinite(values).all(axis=1)

  def add_texts(
    self, owner: np.ndarray, start: int, tokens: np.ndarray, finite: np.ndarray
  ) -> None:
    """Takes in tokens (M, N, new) of members `start` and following."""
    self.finite[start : start + len(finite)] &= finite
    lengths = (tokens >= 0).sum(axis=2)
    for m, rows in enumerate(tokens.tolist()):
      made = self.generated[start + m]
      for row, prompt, length in zip(rows, owner, lengths[m], strict=True):
        made[prompt] = tuple(row[:length])


class Matcher:
  """Turns answers into scores; remembers verdicts, since members often agree.

  Args:
    tasks: K tasks.
    weights: (K,) f32 that sum to one.
    tokenizer: decodes generated tokens.
  """

  def __init__(
    self, tasks: Sequence[Task], weights: np.ndarray, tokenizer: Any
  ):
    self._tasks, self._weights = list(tasks), weights
    self._tokenizer = tokenizer
    self._verdicts: dict[tuple, tuple[str | None, bool]] = {}

  def score(self, split: Split, answers: Answers) -> Scores:
    """Scores of all members."""
    finite = answers.finite
    tasks = [
      self._choices(task, items, split.first_option[k], answers)
      if task.kind == 'multiple_choice'
      else self._generated(k, items, split.first_prompt[k], answers)
      for k, (task, items) in enumerate(
        zip(self._tasks, split.items, strict=True)
      )
    ]
    task_scores = np.stack(
      [t.correct.mean(axis=1) for t in tasks], axis=1
    ).astype(np.float32)
    task_scores[~finite] = np.nan
    return Scores(
      fitness=(task_scores @ self._weights).astype(np.float32),
      task_scores=task_scores,
      tasks=tasks,
      reasons=[None if ok else 'logits are not finite' for ok in finite],
    )

  def _choices(
    self, task: Task, items: list, start: int, answers: Answers
  ) -> TaskScores:
    members = len(answers.finite)
    correct = np.zeros((members, len(items)), bool)
    predictions: list[list] = [[] for _ in range(members)]
    values: list[list] = [[] for _ in range(members)]
    for i, encoded in enumerate(items):
      stop = start + len(encoded.options)
      keys = [key for key, _ in encoded.item.choices]
      for m in range(members):
        loglik = answers.loglikelihoods[m, start:stop]
        prediction, correct[m, i] = scorers.score_options(
          task, encoded.item, loglik
        )
        predictions[m].append(prediction)
        values[m].append(dict(zip(keys, loglik.tolist(), strict=True)))
      start = stop
    ids = [encoded.item.id for encoded in items]
    return TaskScores(task.name, ids, correct, predictions, values)

  def _generated(
    self, k: int, items: list, start: int, answers: Answers
  ) -> TaskScores:
    members = len(answers.finite)
    correct = np.zeros((members, len(items)), bool)
    predictions: list[list] = [[] for _ in range(members)]
    for i, encoded in enumerate(items):
      for m in range(members):
        ids = answers.generated[m][start + i]
        prediction, correct[m, i] = self._verdict(k, encoded.item, ids)
        predictions[m].append(prediction)
    ids = [encoded.item.id for encoded in items]
    return TaskScores(self._tasks[k].name, ids, correct, predictions, None)

  def _verdict(self, k: int, item: Any, ids: tuple[int, ...]):
    key = (k, item, ids)
    if key not in self._verdicts:
      self._verdicts[key] = scorers.score_generation(
        self._tasks[k], item, self._tokenizer.decode(ids)
      )
    return self._verdicts[key]
