"""The member that a search ends with, and its scores on dev."""

import dataclasses
from typing import Any

import jax
import numpy as np

from evojax_llm.population import stack
from evojax_llm.runs import run_state


def settle(
  state: run_state.RunState,
  strategy: Any,
  evaluator: Any,
  space: Any,
  other_items: bool = False,
) -> run_state.Member:
  """Returns the member that a search ends with.

  It is scored on dev where its scores are not those of this genome on the items
  of the evaluator, because they were `other_items` or the member has moved.
  Nothing is chosen by it, so it is no evaluation.
  """
  best = run_state.best_of(state, evaluator.objective.maximise)
  if not strategy.keep_best:
    found = run_state.best_members(state, 1, keep_best=False)
    best = dataclasses.replace(
      best,
      genome=jax.tree.map(lambda leaf: leaf[0], found.population),
      id=int(found.ids[0]),
      generation=int(state.generation),
    )
  elif not other_items:
    return best
  genome = jax.tree.map(lambda leaf: leaf[None], best.genome)
  slots = evaluator.plan.members_per_group
  scores = evaluator.evaluate(space, stack.pad(genome, slots), np.arange(1))
  return dataclasses.replace(
    best, fitness=scores.fitness[0], task_scores=scores.task_scores[0]
  )
