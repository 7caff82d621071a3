"""mergekit's 20 methods in terms of the merges of `operators`.

Names, defaults and the part of the base are those of mergekit 0.1.5.
"""

from collections.abc import Mapping
import dataclasses

from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.operators.operator import Merge

# Accepted for all task vectors, whether their method reads it or not.
UNUSED = 'int8_mask'


@dataclasses.dataclass(frozen=True)
class Method:
  """How a method of mergekit is one of ours.

  Attributes:
    name: mergekit's.
    merge: the operator.
    base: 'model': one of the models, if listed; 'first': parent one;
      'optional' or 'required': what deltas are taken of.
    numbers: our parameter by mergekit's name.
    needed: mergekit's names without a default.
    switches: mergekit's booleans with their defaults.
    unused: parameters that are accepted and have no effect.
  """

  name: str
  merge: Merge
  base: str = 'model'
  numbers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  needed: tuple[str, ...] = ()
  switches: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  unused: tuple[str, ...] = (UNUSED,)

  @property
  def known(self) -> tuple[str, ...]:
    """All parameters that a recipe may give it."""
    return (*self.numbers, *self.switches, *self.unused)

  def per_model(self, name: str) -> bool:
    """Whether each model has its own value of a number."""
    known = self.merge.parameters.get(self.numbers.get(name, name))
    return known is not None and known.per_model

  def of_model(self, name: str) -> bool:
    """Whether a number may stand among the parameters of a model."""
    return self.per_model(name) or name == 'scale'

  def options(self, switches: Mapping[str, bool]) -> dict[str, str]:
    """Our options for the values of all switches."""
    found = {}
    for name, (option, yes, no) in _OPTIONS.items():
      if name in switches:
        found[option] = yes if switches[name] else no
    if 'nuslerp_flatten' in switches:
      span = 'column' if switches['nuslerp_row_wise'] else 'row'
      found['span'] = 'tensor' if switches['nuslerp_flatten'] else span
    return found

  @property
  def divides(self) -> bool:
    """Whether `normalize` divides by the sum of all weights."""
    return self.name in _SUMMED


_OPTIONS = {
  'normalize': ('normalize', 'weights', 'none'),
  'normalize_weights': ('normalize', 'weights', 'none'),
  'rescale': ('rescale', 'l1', 'none'),
  'filter_wise': ('span', 'row', 'tensor'),
}
_SUMMED = (
  'linear',
  'multislerp',
  'task_arithmetic',
  'dare_linear',
  'della_linear',
  'breadcrumbs',
)


def _deltas(name, *numbers, normalize, rescale=None):
  """A method of task vectors."""
  own = {n: n for n in ('density', *numbers)} if rescale is not None else {}
  switches = {'normalize': normalize}
  if rescale is not None:
    switches['rescale'] = rescale
  unused = (UNUSED,) if rescale is not None else (UNUSED, 'density', 'rescale')
  return Method(
    name,
    MERGES[name],
    'required',
    {'weight': 'weights', **own, 'lambda': 'lambda_'},
    ('weight',),
    switches,
    unused,
  )


_WEIGHT = {'weight': 'weights'}
METHODS: Mapping[str, Method] = {
  method.name: method
  for method in (
    Method(
      'linear',
      MERGES['linear'],
      numbers=_WEIGHT,
      needed=('weight',),
      switches={'normalize': True},
    ),
    Method('slerp', MERGES['slerp'], 'first', {'t': 't'}, ('t',)),
    Method(
      'nuslerp',
      MERGES['nuslerp'],
      'optional',
      _WEIGHT,
      ('weight',),
      {'nuslerp_flatten': True, 'nuslerp_row_wise': False},
    ),
    Method(
      'multislerp',
      MERGES['multislerp'],
      'optional',
      {**_WEIGHT, 'eps': 'eps'},
      ('weight',),
      {'normalize_weights': True},
    ),
    Method(
      'karcher',
      MERGES['karcher'],
      numbers={'max_iter': 'iterations', 'tol': 'tol'},
    ),
    _deltas('task_arithmetic', normalize=False),
    _deltas('ties', normalize=True, rescale=False),
    _deltas('dare_linear', normalize=False, rescale=True),
    _deltas('dare_ties', normalize=False, rescale=True),
    _deltas('della_linear', 'epsilon', normalize=False, rescale=True),
    _deltas('della', 'epsilon', normalize=True, rescale=True),
    _deltas('breadcrumbs', 'gamma', normalize=False, rescale=False),
    _deltas('breadcrumbs_ties', 'gamma', normalize=False, rescale=False),
    Method('sce', MERGES['sce'], 'required', {'select_topk': 'select_topk'}),
    Method('ram', MERGES['ram'], 'required', {'epsilon': 'epsilon'}),
    Method(
      'ramplus_tl',
      MERGES['ramplus'],
      'required',
      {'r': 'r', 'alpha': 'alpha', 'epsilon': 'epsilon'},
    ),
    Method(
      'model_stock',
      MERGES['model_stock'],
      'required',
      switches={'filter_wise': False},
    ),
    Method('nearswap', MERGES['nearswap'], 'required', {'t': 't'}, ('t',)),
    Method('arcee_fusion', MERGES['arcee_fusion'], 'required'),
    Method('passthrough', MERGES['passthrough'], numbers={'scale': 'scale'}),
  )
}
