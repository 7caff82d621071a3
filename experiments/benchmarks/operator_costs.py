"""What operators cannot do without, and what others call them."""

import dataclasses

from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Operator


@dataclasses.dataclass(frozen=True)
class Cost:
  """What an operator cannot do without, for each element of its child.

  Attributes:
    group: what bounds it: 'elementwise' (memory), 'trimming' (thresholds of
      magnitudes), 'random' (the generator) or 'algebra' (small
      decompositions).
    passes: how often every genome is read; twice where the first pass is for
      a norm. The child is written once.
    words: random words of 32 bits.
    second_only: whether only the factors B of an adapter are touched.
    other: what takes time beside memory and generator, in words.
  """

  group: str = 'elementwise'
  passes: int = 1
  words: float = 0.0
  second_only: bool = False
  other: str = 'arithmetic'


_COSTS = {
  'exact_linear': Cost('algebra', other='decompositions of small matrices'),
  'gaussian': Cost('random', 2, 1.0, other='normal numbers of the words'),
  'perturb': Cost('elementwise', 2, other='products of factors'),
  'scale': Cost(second_only=True),
  'swarm': Cost(other='a loop for each of two results'),
}
_TWICE = (
  'slerp nuslerp multislerp karcher split_slerp model_stock ramplus sce'
).split()
_TRIMMING = ('density', 'select_topk')
_COUNTING = 'counting for thresholds'
_OTHER = {
  'della': 'sorting every row',
  'della_linear': 'sorting every row',
  'arcee_fusion': f'two softmaxes and {_COUNTING}',
}
_MERGEKIT = (
  'linear slerp nuslerp multislerp karcher task_arithmetic ties dare_linear '
  'dare_ties della_linear della breadcrumbs breadcrumbs_ties sce ram ramplus '
  'model_stock nearswap arcee_fusion passthrough'
).split()
_PEFT = {
  name: name for name in ('linear', 'ties', 'dare_linear', 'dare_ties')
} | {'magnitude_linear': 'magnitude_prune', 'exact_linear': 'svd'}


def cost(operator: Operator) -> Cost:
  """Returns what an operator cannot do without."""
  name = operator.name
  if name in _COSTS or not isinstance(operator, Merge):
    return _COSTS.get(name, Cost())
  # Keep chances are 16 bits for each parent; other draws a word an element.
  words, group, other = 0.0, 'elementwise', 'arithmetic'
  if operator.draws and operator.scope == 'tensor':
    words = 1.0
    group = 'random'
    if 'density' in operator.parameters:
      parents = operator.least if operator.least == operator.most else 2
      words = parents / 2
  elif set(_TRIMMING) & set(operator.parameters) or name == 'arcee_fusion':
    group, other = 'trimming', _COUNTING
  passes = 2 if name in _TWICE else 1
  return Cost(group, passes, words, other=_OTHER.get(name, other))


def peers(operator: Operator) -> dict[str, str]:
  """Returns the names of the same in 'mergekit' and 'peft'."""
  found = {'mergekit': operator.name} if operator.name in _MERGEKIT else {}
  if operator.name in _PEFT:
    found['peft'] = _PEFT[operator.name]
  return found
