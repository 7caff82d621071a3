"""All members that are read at the end of a run, each once."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Space
from evojax_llm.models import expression
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import report
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs import votes


class Finalists:
  """Baselines, experts and members as one population.

  Args:
    setup: whose experts and members they are.
    baselines: rows with a `name` and a `mix`.
    experts: indices of experts to be read as well.
    ids: of members, all different.
    genomes: of the members, leaves (len(ids), ...).

  Attributes:
    names: M names: of baselines, 'expert X', 'member 12'.
  """

  def __init__(
    self,
    setup: setup_lib.Setup,
    baselines: Sequence[Mapping[str, Any]],
    experts: Sequence[int],
    ids: Sequence[int],
    genomes: Any,
  ):
    self._experts = setup.experts.names
    mixes = [baselines_lib.Mix(**row['mix']) for row in baselines]
    self.names = [row['name'] for row in baselines]
    # An expert may be among the baselines; reading it twice would cost twice.
    self._slots = {
      f'expert {row["detail"]}': slot
      for slot, row in enumerate(baselines)
      if row['name'] == 'best expert'
    }
    for index in experts:
      if f'expert {self._experts[index]}' not in self._slots:
        mixes.append(baselines_lib.single(index, len(self._experts)))
        self._add(f'expert {self._experts[index]}')
    for member in ids:
      self._add(f'member {member}')
    mixed = baselines_lib.mix_experts(setup.experts, mixes)
    self._space = setup.space
    if setup.space is not setup.experts:
      # Members of two spaces are one population once they are expressed alike.
      pairs = (setup.experts, mixed), (setup.space, genomes)
      if setup.space.exports == 'model':
        mixed, genomes = (_models(*pair) for pair in pairs)
      else:
        mixed, genomes = expression.of_one_rank(
          *(_low_rank(*pair) for pair in pairs)
        )
      self._space = Expressed(setup.experts.model())
    # On the host, from where a group at a time goes to the devices.
    self._population = jax.tree.map(
      lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
      mixed,
      genomes,
    )

  def _add(self, name: str) -> None:
    self._slots[name] = len(self.names)
    self.names.append(name)

  def index(self, row: Mapping[str, Any]) -> int:
    """Returns the index of what a row of the table is of."""
    name = row['detail'] if row['name'] == report.EVOLVED else row['name']
    return self.names.index(name)

  def indices(self, group: votes.Ensemble) -> list[int]:
    """Returns the indices of the members of a group."""
    if group.population is None:
      return [self._slots[f'expert {self._experts[i]}'] for i in group.members]
    return [self._slots[f'member {id_}'] for id_ in group.members]

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


def _low_rank(space: Space, population: Any) -> expression.LowRank:
  params = space.model().params
  return jax.vmap(
    lambda genome: expression.as_low_rank(space.express(genome), params)
  )(population)


def _models(space: Space, population: Any) -> expression.Weights:
  """Members as models, on the host one by one."""
  models = [
    jax.device_get(space.express(stack.take(population, jnp.int32(i))))
    for i in range(stack.size(population))
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *models)
