"""Objectives beside the scores on tasks, all of them to be minimised.

| name | what it is |
|---|---|
| `length` | tokens of an answer, the mean over all that are generated on dev |
| `distance` | from the base: the norm of what a member changes of the weights |
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from evojax_llm import lookup
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.models import expression
from evojax_llm.tasks.scorers.registry import scorer_of

NAMES = ('length', 'distance')


def parse(text: str) -> tuple[str, ...]:
  """Returns the names in a text, which commas separate.

  Raises:
    ValueError: there is no such objective, or it is named twice.
  """
  names = tuple(part.strip() for part in text.split(',') if part.strip())
  for name in names:
    if name not in NAMES:
      raise ValueError(f'Got objective {name!r}{lookup.expected(name, NAMES)}')
  if len(set(names)) < len(names):
    raise ValueError(f'Got objectives {text!r}; expected each name once.')
  return names


def check(names: Sequence[str], tasks: Sequence[Any], space: Any) -> None:
  """Refuses objectives that members of a space have not on these tasks.

  Raises:
    ValueError: naming the objective.
  """
  if clash := sorted({task.name for task in tasks} & {*names}):
    raise ValueError(
      f'Got the objective {clash[0]!r} and a task of this name: give the task '
      'another one.'
    )
  if 'length' in names and all(scorer_of(t).reads != 'text' for t in tasks):
    raise ValueError(
      "Got the objective 'length' for tasks whose options are read, so that "
      'no answer is generated; expected one task with generated answers.'
    )
  if 'distance' in names:
    member = jax.eval_shape(lambda: space.express(space.base()))
    kinds = expression.LowRank, expression.Gates, expression.Weights
    if not isinstance(member, kinds):
      raise ValueError(
        "Got the objective 'distance' for members that are expressed as "
        f'{type(member).__name__}; expected a space whose members change '
        'weights.'
      )


def columns(
  names: Sequence[str],
  evaluator: Any,
  space: Any,
  population: Any,
  members: Sequence[int],
  found: Evaluation,
) -> np.ndarray:
  """Returns the objectives (M, E) f32 of M members; NaN where one failed.

  The members are at these indices of a population (P, ...), and were found to
  score so.
  """
  values = {}
  if 'length' in names:
    values['length'] = found.lengths
  if 'distance' in names:
    values['distance'] = evaluator.distances(space, population, members)
  made = np.stack([values[name] for name in names], axis=1)
  failed = np.isnan(found.task_scores).any(axis=1)
  return np.where(failed[:, None], np.float32('nan'), made)
