"""Operators under one signature for each kind, and what is chosen of them.

A case is a row of the benchmark and of the property tests. An operator without
an entry here has one case, with its defaults.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.operators import selection
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Operator
from evojax_llm.population import leaves
from evojax_llm.population import stack

SEES = ('fitness', 'objectives', 'scores')
# Values in place of defaults with which nothing would happen.
_TRIED = {'density': 0.5, 'gamma': 0.05, 'select_topk': 0.5, 'split': 0.4}
_CHOSEN: Mapping[str, tuple[Mapping[str, Any], ...]] = {
  'gaussian': (
    {'gene_rate': 0.5},
    {'gene_rate': 0.5, 'mask': 'matrix'},
    {'gene_rate': 0.5, 'mask': 'layer'},
    {'relative': False},
    {'rounding': 'nearest'},
  ),
  'swarm': ({}, {'draws': 'tensor'}, {'normalise': False}),
  'survivors': tuple(
    {'elites': 2, 'method': method} for method in selection.METHODS
  ),
  'universal': ({'replace': True}, {'replace': False}),
  'mates': ({}, {'attract': False}),
} | dict.fromkeys(('roulette', 'rank', 'tournament'), ({}, {'replace': True}))
# Genomes, the last ones, that all members share, and genomes that are made.
_SHARED = {'swarm': 2}
_RESULTS = {'swarm': 2}
# These give a fitness, by which members are then drawn.
_SCORES = ('shared_fitness',)
# Members that are chosen at most.
_MOST = {'mates': 2}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """One operator with its parameters and options chosen."""

  operator: Operator
  chosen: Mapping[str, Any]

  @property
  def name(self) -> str:
    """The operator's name and what is not the default."""
    chosen = [f'{name}={value}' for name, value in self.chosen.items()]
    return '-'.join([self.operator.name, *chosen])

  @property
  def shared(self) -> int:
    """How many of the genomes, the last ones, are one for all members."""
    if isinstance(self.operator, Merge):
      return int(self.operator.needs_base)
    return _SHARED.get(self.operator.name, 0)

  @property
  def own(self) -> int:
    """How many genomes each member has; two of a merge of any number."""
    op = self.operator
    if isinstance(op, Merge):
      return op.least if op.least == op.most else 2
    genomes = [
      p for p in op.signature.values() if p.default is p.empty and p.kind < 2
    ]
    return len(genomes) - op.draws - self.shared

  @property
  def results(self) -> int:
    """How many genomes are made."""
    return _RESULTS.get(self.operator.name, 1)

  @property
  def sees(self) -> str:
    """What a selection sees, one of SEES."""
    return next(name for name in SEES if name in self.operator.signature)

  @property
  def draws(self) -> bool:
    """Whether the key matters."""
    return self.operator.draws or self.operator.name in _SCORES

  @property
  def most(self) -> int | None:
    """How many members a selection chooses at most; None for any number."""
    return _MOST.get(self.operator.name)

  def apply(self, key: jax.Array, *genomes: stack.Genome) -> Any:
    """Makes genomes from those of one member."""
    op = self.operator
    if isinstance(op, Merge):
      return _merge(op, key, genomes, self.chosen)
    layers = {'layers': leaves.LAYERS} if 'layers' in op.signature else {}
    return op.function(*[key][: op.draws], *genomes, **self.chosen, **layers)

  def choose(
    self, key: jax.Array, seen: jax.Array, count: int, ids: jax.Array
  ) -> jax.Array:
    """Chooses members, (count,) i32, from what the operator sees of all."""
    given = {'key': key, self.sees: seen, 'count': count, 'ids': ids}
    known = self.operator.signature
    if 'eligible' in known and known['eligible'].default is not None:
      given['eligible'] = jnp.ones(ids.shape, bool)
    given = {name: value for name, value in given.items() if name in known}
    found = self.operator.function(**given, **self.chosen)
    if self.operator.name in _SCORES:
      return selection.roulette(key, found, count, ids)
    return found[:count]


def _merge(merge, key, genomes, chosen):
  based = int(merge.needs_base)
  parents = stack.stack(genomes[: len(genomes) - based])
  parameters = {
    name: jnp.asarray(value, jnp.float32)
    for name, value in chosen.items()
    if name in merge.parameters
  }
  if merge.name not in MERGES:
    each = jnp.full((len(genomes),), merge.parameters['weights'].default)
    return merge(parents, weights=each)
  return lift.genome(
    merge,
    parents,
    genomes[-1] if based else None,
    key=key if merge.draws else None,
    parameters=parameters,
    layers=leaves.LAYERS,
    **{n: v for n, v in chosen.items() if n in merge.options},
  )


def cases(operators: Iterable[Operator]) -> tuple[Case, ...]:
  """Returns all cases of these operators."""
  return tuple(
    Case(op, chosen)
    for op in operators
    for chosen in _CHOSEN.get(
      op.name, ({n: v for n, v in _TRIED.items() if n in op.parameters},)
    )
  )
