"""The member that a search ends with, and all that are read with it, once."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Space
from evojax_llm.models import expression
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs import votes


def settle(
  state: run_state.RunState,
  strategy: Any,
  evaluator: Any,
  space: Space,
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
      genome=stack.take(found.population, 0),
      id=found.ids[0],
      generation=int(state.generation),
    )
  elif not other_items:
    return best
  genome = jax.tree.map(lambda leaf: leaf[None], best.genome)
  scores = setup_lib.score_few(evaluator, space, genome)
  return dataclasses.replace(
    best, fitness=scores.fitness[0], task_scores=scores.task_scores[0]
  )


class Finalists:
  """Baselines, experts (by index) and members, as one population.

  Attributes:
    names: M names: of baselines, 'expert X', 'member 12'.
    space: of the genomes.
    population: genomes (M, ...), on the host.
  """

  def __init__(
    self,
    setup: setup_lib.Setup,
    baselines: Sequence[Mapping[str, Any]],
    experts: Sequence[int],
    ids: Sequence[int],
    genomes: Any,
  ):
    self._experts = [f'expert {name}' for name in setup.experts.names]
    self.names = [row['name'] for row in baselines]
    # An expert may be among the baselines; reading it twice would cost twice.
    self._slots = {
      f'expert {row["detail"]}': slot
      for slot, row in enumerate(baselines)
      if row['name'] == 'best expert'
    }
    more = [i for i in experts if self._experts[i] not in self._slots]
    added = [self._experts[i] for i in more] + [f'member {id_}' for id_ in ids]
    self._slots |= {name: len(self.names) + i for i, name in enumerate(added)}
    self.names += added
    mixes = [baselines_lib.Mix(**row['mix']) for row in baselines]
    mixes += [baselines_lib.single(i, len(self._experts)) for i in more]
    mixed = baselines_lib.mix_experts(setup.experts, mixes)
    self.space = setup.space
    if setup.space is not setup.experts:
      # Members of two spaces are one population once they are adapters.
      mixed, genomes = expression.of_one_rank(
        _low_rank(setup.experts, mixed), _low_rank(setup.space, genomes)
      )
      self.space = Expressed(setup.experts.model())
    # On the host, from where a group at a time goes to the devices.
    self.population = jax.tree.map(
      lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
      mixed,
      genomes,
    )

  def index(self, row: Mapping[str, Any]) -> int:
    """Returns the index of what a row of the table is of."""
    name = row['detail'] if row['name'] == report.EVOLVED else row['name']
    return self.names.index(name)

  def indices(self, group: votes.Ensemble) -> list[int]:
    """Returns the indices of the members of a group."""
    if group.population is None:
      return [self._slots[self._experts[i]] for i in group.members]
    return [self._slots[f'member {id_}'] for id_ in group.members]


def _low_rank(space: Space, population: Any) -> expression.LowRank:
  params = space.model().params
  return jax.vmap(
    lambda genome: expression.as_low_rank(space.express(genome), params)
  )(population)
