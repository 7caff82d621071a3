"""All who are read at the end of a run, each once, as one population."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from evojax_llm.genomes.space import Expressed
from evojax_llm.models import expression
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import setup as problem_lib


class Roster:
  """Baselines, experts and members by name.

  Attributes:
    names: M names: of baselines, 'expert X', 'member 12'.
  """

  def __init__(
    self,
    problem: problem_lib.Problem,
    baselines: Sequence[Mapping[str, Any]],
    experts: Sequence[int],
    ids: Sequence[int],
    genomes: Any,
  ):
    """Collects them.

    Args:
      problem: whose experts and members they are.
      baselines: rows with a `name` and a `mix`.
      experts: indices of experts to be read as well.
      ids: of members, all different.
      genomes: of the members, leaves (len(ids), ...).
    """
    names = problem.experts.names
    mixes = [baselines_lib.Mix(**row['mix']) for row in baselines]
    self.names = [row['name'] for row in baselines]
    # An expert may be among the baselines; who is read twice costs twice.
    self._places = {
      f'expert {row["detail"]}': place
      for place, row in enumerate(baselines)
      if row['name'] == 'best expert'
    }
    for index in experts:
      name = f'expert {names[index]}'
      if name not in self._places:
        self._places[name] = len(mixes)
        self.names.append(name)
        weights = tuple(float(n == index) for n in range(len(names)))
        mixes.append(baselines_lib.Mix(weights))
    for member in ids:
      self._places[f'member {member}'] = len(self.names)
      self.names.append(f'member {member}')
    self._experts = names
    mixed = baselines_lib.mix_experts(problem.experts, mixes)
    self._space = problem.space
    if problem.space is not problem.experts:
      # Members of two spaces are one population once they are adapters.
      mixed, genomes = expression.of_one_rank(
        _low_rank(problem.experts, mixed), _low_rank(problem.space, genomes)
      )
      self._space = Expressed(problem.experts.model())
    # On the host, from where a group at a time goes to the devices.
    self._population = jax.tree.map(
      lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
      mixed,
      genomes,
    )

  def expert(self, index: int) -> int:
    """The place of an expert."""
    return self._places[f'expert {self._experts[index]}']

  def member(self, id_: int) -> int:
    """The place of a member."""
    return self._places[f'member {id_}']

  def read(
    self,
    evaluator: Any,
    split: str,
    progress: Callable[[float], None] | None = None,
  ) -> Any:
    """Scores all of them on a split, in the order of `names`."""
    return evaluator.evaluate(
      self._space, self._population, split=split, progress=progress
    )


def _low_rank(space, population):
  params = space.model().params
  return jax.vmap(
    lambda genome: expression.as_low_rank(space.express(genome), params)
  )(population)
