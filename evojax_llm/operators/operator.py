"""What is known of an operator, under one signature for each kind."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from evojax_llm.operators.merges.method import Parameter

KINDS = ('merge', 'mutation', 'succession', 'selection')


@dataclasses.dataclass(frozen=True)
class Cost:
  """What an operator cannot do without, for each element of its child.

  Attributes:
    group: what bounds it: 'elementwise' (memory), 'trimming' (thresholds of
      magnitudes), 'random' (the generator), 'algebra' (small decompositions)
      or 'choice' (a population's fitness: nothing of size).
    reads: elements read. A parent that must be seen twice, first for a norm,
      counts twice; one genome shared by all members counts as nothing.
    writes: elements written.
    words: random words of 32 bits.
  """

  group: str
  reads: float = 0.0
  writes: float = 0.0
  words: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
  """An operator and what it needs.

  Attributes:
    name: unique.
    kind: one of KINDS. 'merge', 'mutation' and 'succession' make genomes as
      apply(key, *genomes) and are lifted with vmap; 'selection' sees everybody
      as apply(key, seen, count, ids) and returns places.
    arity: genomes read; for selection 0.
    apply: the function under the kind's signature; parameters and options by
      name, all with defaults.
    source: paper or system.
    doc: one line.
    cost: see `Cost`.
    parameters: numbers that a sweep may vary, by name.
    options: static choices by name, the default first.
    cases: options (and parameters) that are tested and measured.
    draws: whether the key matters.
    shared: how many of the genomes, the last ones, are one for all members.
    results: how many genomes are made.
    sees: for selection, 'fitness' (P,), 'objectives' (P, K) or 'scores'
      (P, items).
    most: for selection, how many places there are at most; None for P.
    chooses: whether parameter `weights` of (1, 0) gives parent one.
    idempotent: whether equal parents give that parent, with defaults.
    tolerance: how far jit may be from eager in f32, relative.
    peers: name of the same in others' code, by 'mergekit' or 'peft'.
  """

  name: str
  kind: str
  arity: int
  apply: Callable[..., Any]
  source: str
  doc: str
  cost: Cost
  parameters: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)
  options: Mapping[str, tuple[Any, ...]] = dataclasses.field(
    default_factory=dict
  )
  cases: tuple[Mapping[str, Any], ...] = ({},)
  draws: bool = True
  shared: int = 0
  results: int = 1
  sees: str = 'fitness'
  most: int | None = None
  chooses: bool = False
  idempotent: bool = False
  tolerance: float = 1e-6
  peers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """One operator with its options chosen: a row of tests and benchmarks."""

  operator: Operator
  chosen: Mapping[str, Any]

  @property
  def name(self) -> str:
    """The operator's name and what is not the default."""
    chosen = [f'{name}={value}' for name, value in self.chosen.items()]
    return '-'.join([self.operator.name, *chosen])

  @property
  def apply(self) -> Callable[..., Any]:
    """The function, bound."""
    return functools.partial(self.operator.apply, **self.chosen)


def cases(operators: tuple[Operator, ...]) -> tuple[Case, ...]:
  """All cases of these operators."""
  return tuple(Case(op, chosen) for op in operators for chosen in op.cases)
