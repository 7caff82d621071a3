"""Models that a run has scored before, read back from its records."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from evojax_llm.fitness import item_log
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.runs import evolution
from evojax_llm.runs import record

# Results of so many models are kept in memory, or of all in one generation.
_KEPT = 64


class KnownModels:
  """Has members that are the same model scored once in a run.

  What is known is what members.jsonl and the item log hold of the generations
  so far, so that a run which goes on knows what it would have known.
  """

  def __init__(self, folder: record.RunFolder):
    """Reads what the run has scored, if it has begun."""
    self._items = folder.items
    # By the model, the line of the first member that was it.
    self._lines: dict[str, Mapping[str, Any]] = {}
    # Those that were asked for last: a search that settles proposes them again.
    self._kept: dict[str, Evaluation] = {}
    there = set(self._items.generations())
    self.add(row for row in folder.members.read() if row['generation'] in there)

  def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
    """Takes in lines of members.jsonl whose items are in the log."""
    for line in lines:
      name, spent = line.get('model'), line.get('reason') == evolution.SPENT
      if name and not spent and name not in self._lines:
        self._lines[name] = record.plain(line)

  def recipe(self, name: str) -> dict[str, Any] | None:
    """Returns what the records say that a model is, if they know it."""
    return self._lines.get(name, {}).get('recipe')

  def evaluate(
    self,
    names: Sequence[str] | None,
    members: Sequence[int],
    evaluate: Callable[[Sequence[int]], Evaluation],
    objective: Callable[[np.ndarray], np.ndarray],
  ) -> Evaluation:
    """Scores members, those that are known models by what is known of them.

    Args:
      names: (P,) of the models that members are; None for no names.
      members: M indices into that axis.
      evaluate: scores some of them.
      objective: makes fitness (M,) of task scores (M, K).

    Returns:
      Of all M members; no log-likelihoods where a model was known.
    """
    known, members = {}, [int(m) for m in members]
    for name in {names[m]: None for m in members} if names else ():
      line = self._lines.get(name)
      if recalled := line and (self._kept.get(name) or self._recalled(line)):
        fitness = objective(recalled.task_scores)
        known[name] = dataclasses.replace(recalled, fitness=fitness)
    if not known:
      return evaluate(members)
    others = {n: e for n, e in self._kept.items() if n not in known}
    latest = [*others.items(), *known.items()][-max(_KEPT, len(known)) :]
    self._kept = dict(latest)
    new = [m for m in members if names[m] not in known]
    scored = [evaluate(new)] if new else []
    order = [*new, *known]  # As the rows of `parts` are.
    index = [order.index(names[m] if names[m] in known else m) for m in members]
    found = _concatenated([*scored, *known.values()]).spread(np.asarray(index))
    distinct = scored[0].distinct if new else 0
    return dataclasses.replace(
      found, distinct=len(new) if distinct is None else distinct
    )

  def _recalled(self, line):
    """The scores of the member of a line; None where they are damaged.

    Fitness is left to the objective.
    """
    try:
      (logged,) = self._items.read(line['generation'])
      slot = logged.members.tolist().index(line['id'])
      # Not its fitness, which may be that of its genome as well.
      tasks = [np.nan if x is None else x for x in line['tasks'].values()]
      tasks = np.asarray([tasks], np.float32)
    except (ValueError, TypeError, LookupError, AttributeError):
      return None
    items = [item_log.take(task, [slot]) for task in logged.tasks]
    for task in items:  # Copies, which do not keep the whole generation.
      task.predictions = [list(said) for said in task.predictions]
    nothing = np.full(1, np.nan, np.float32)
    return Evaluation(nothing, tasks, items, [line.get('reason')])


def _concatenated(parts: Sequence[Evaluation]) -> Evaluation:
  """Members of several evaluations on the same items."""
  tasks = [
    dataclasses.replace(
      same[0],
      values=np.concatenate([task.values for task in same]),
      predictions=[row for task in same for row in task.predictions],
      asked=None,
      loglikelihoods=None,
    )
    for same in zip(*(part.tasks for part in parts), strict=True)
  ]
  return Evaluation(
    np.concatenate([part.fitness for part in parts]),
    np.concatenate([part.task_scores for part in parts]),
    tasks,
    [reason for part in parts for reason in part.reasons],
  )
