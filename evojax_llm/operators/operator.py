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
    passes: how often every genome is read; twice where the first pass is for
      a norm. The child is written once.
    words: random words of 32 bits.
    second_only: whether only the factors B of an adapter are touched.
    other: what takes time beside memory and generator, in words.
  """

  group: str
  passes: int = 1
  words: float = 0.0
  second_only: bool = False
  other: str = 'arithmetic'


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
  """An operator and what it needs.

  Attributes:
    name: unique.
    kind: one of KINDS. 'merge', 'mutation' and 'succession' make genomes as
      apply(key, *genomes) and are lifted with vmap; 'selection' sees everybody
      as apply(key, seen, count, ids) and returns places.
    arity: genomes read, of a merge of any number of parents two; for selection
      0.
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
    least: for merges, how many parents at least.
    most: for selection, how many places there are at most, for merges, how
      many parents; None for any number.
    base: for merges, whether there is a base beside the parents: 'none',
      'optional' or 'required'.
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
  least: int = 1
  most: int | None = None
  base: str = 'none'
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
