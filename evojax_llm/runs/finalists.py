"""All members that are read at the end of a run, each once."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine.groups import Expressed
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import setup as setup_lib


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
      # Members of two spaces are one population once they are adapters.
      mixed = jax.vmap(setup.experts.express)(mixed)
      genomes = jax.vmap(setup.space.adapter)(genomes)
      mixed, genomes = _to_one_rank(mixed, genomes)
      self._space = Expressed()
    # On the host, from where a group at a time goes to the devices.
    self._population = jax.tree.map(
      lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
      mixed,
      genomes,
    )

  def _add(self, name: str) -> None:
    self._slots[name] = len(self.names)
    self.names.append(name)

  def expert(self, index: int) -> int:
    """Returns the index of an expert among all that are read."""
    return self._slots[f'expert {self._experts[index]}']

  def member(self, id_: int) -> int:
    """Returns the index of a member among all that are read."""
    return self._slots[f'member {id_}']

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


def _to_one_rank(*trees):
  """Adapter populations with zero ranks added up to the largest rank."""
  flat = [jax.tree_util.tree_flatten_with_path(tree) for tree in trees]
  result = [[] for _ in trees]
  for entries in zip(*(leaves for leaves, _ in flat), strict=True):
    axis = -1 if entries[0][0][-1].key == 'a' else -2
    rank = max(leaf.shape[axis] for _, leaf in entries)
    for out, (_, leaf) in zip(result, entries, strict=True):
      pad = [(0, 0)] * leaf.ndim
      pad[axis] = (0, rank - leaf.shape[axis])
      out.append(jnp.pad(leaf, pad))
  return [
    jax.tree.unflatten(structure, leaves)
    for (_, structure), leaves in zip(flat, result, strict=True)
  ]
