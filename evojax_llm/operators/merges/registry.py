"""All merges in one table: what each takes, and what is true of it.

`lift` applies them to genomes and populations. Property tests, the benchmark
and the reference page walk this table.
"""

from collections.abc import Mapping

from evojax_llm.operators.merges import consensus
from evojax_llm.operators.merges import linear
from evojax_llm.operators.merges import pairs
from evojax_llm.operators.merges import recombination
from evojax_llm.operators.merges import sparsify
from evojax_llm.operators.merges import spherical
from evojax_llm.operators.merges import split
from evojax_llm.operators.merges import task_vectors
from evojax_llm.operators.merges.method import Merge
from evojax_llm.operators.merges.method import Parameter

_WEIGHTS = Parameter(1.0, 0.0, 1.0, 'weight of each parent', True)
_DENSITY = Parameter(
  1.0, 0.0, 1.0, 'share of each delta that is kept', True, least=0.0, most=1.0
)
_EPSILON = Parameter(
  0.15, 0.0, 0.5, 'half the range of keep chances', True, least=0.0, most=0.5
)
_GAMMA = Parameter(
  0.01, 0.0, 0.5, 'share of outliers taken off', True, least=0.0, most=1.0
)
_LAMBDA = Parameter(1.0, 0.0, 2.0, 'factor on the merged delta')
_T = Parameter(0.5, 0.0, 1.0, 'place between parent one, 0, and two, 1')
_SPLIT = Parameter(
  0.5, 0.0, 1.0, 'share of the elements before the split', least=0.0, most=1.0
)
_CHANGE = Parameter(
  1e-5, 0.0, 1e-2, 'a change not above this is none', least=0.0
)

_BY_WEIGHTS = {'normalize': ('weights', 'none')}
_ROWS = {'span': ('tensor', 'row')}
_RESCALED = {'rescale': sparsify.RESCALES}
_KEPT = {'rescale': ('none', 'l1', 'density')}
_PLAIN = {'normalize': ('none', 'weights', 'count')}
_SHARED = {'normalize': ('weights', 'count', 'none')}
_ELECTED = {'election': task_vectors.ELECTIONS}


def _blend(name, function, arity, source, parameters, options=None, **facts):
  """A merge of the parents themselves."""
  facts = {'base': 'none', 'idempotent': True, **facts}
  return Merge(
    name, function, *arity, source, parameters, options or {}, **facts
  )


def _deltas(name, function, source, parameters, options, **facts):
  """A weighted merge of what any number of parents change of a base."""
  parameters = {'weights': _WEIGHTS, **parameters, 'lambda_': _LAMBDA}
  facts = {'base': 'required', **facts}
  return Merge(name, function, 1, None, source, parameters, options, **facts)


def _judged(name, function, arity, source, parameters, options=None, **facts):
  """A merge with a base in which the deltas themselves decide."""
  facts = {'base': 'required', **facts}
  return Merge(
    name, function, *arity, source, parameters, options or {}, **facts
  )


_ANY, _ONE, _TWO, _SOME = (1, None), (1, 1), (2, 2), (2, None)
_DENSE = {'density': _DENSITY}
_RANKED = {'density': _DENSITY, 'epsilon': _EPSILON}
_CRUMBS = {'density': _DENSITY, 'gamma': _GAMMA}

_ALL = (
  _blend(
    'linear',
    linear.linear,
    _ANY,
    'model soups, arXiv 2203.05482',
    {'weights': _WEIGHTS},
    _BY_WEIGHTS,
    linear_in_parents=True,
    chooses=True,
  ),
  _blend(
    'slerp', spherical.slerp, _TWO, 'EvoMerge, arXiv 2402.00070', {'t': _T}
  ),
  _blend(
    'nuslerp',
    spherical.nuslerp,
    _TWO,
    'mergekit',
    {'weights': _WEIGHTS},
    {'span': ('tensor', 'row', 'column')},
    base='optional',
    by_row=True,
    chooses=True,
  ),
  _blend(
    'multislerp',
    spherical.multislerp,
    _ANY,
    'mergekit',
    {
      'weights': _WEIGHTS,
      'eps': Parameter(1e-8, 0.0, 1e-4, 'added to lengths', least=0.0),
    },
    _BY_WEIGHTS,
    base='optional',
    chooses=True,
  ),
  _blend(
    'karcher',
    spherical.karcher,
    _ANY,
    'arXiv 2603.04972',
    {
      'weights': _WEIGHTS,
      'tol': Parameter(
        1e-5, 0.0, 1e-2, 'lengths and angles below are zero', least=0.0
      ),
    },
    {'iterations': (10, 5, 20)},
    chooses=True,
  ),
  _blend(
    'split_slerp',
    split.split_slerp,
    _TWO,
    'M2N2, GECCO 2025',
    {'t': _T, 'split': _SPLIT},
    {'span': ('tensor', 'genome')},
    whole=split.split_slerp_whole,
  ),
  _deltas(
    'task_arithmetic',
    task_vectors.task_arithmetic,
    'arXiv 2212.04089',
    {},
    _PLAIN,
    linear_in_parents=True,
    chooses=True,
  ),
  _deltas(
    'ties',
    task_vectors.ties,
    'TIES, arXiv 2306.01708',
    _DENSE,
    _KEPT | _SHARED | _ELECTED,
    chooses=True,
    idempotent=True,
  ),
  _deltas(
    'magnitude_linear',
    task_vectors.magnitude_linear,
    'PEFT, magnitude_prune',
    _DENSE,
    _KEPT | _PLAIN,
    chooses=True,
  ),
  _deltas(
    'dare_linear',
    task_vectors.dare_linear,
    'DARE, arXiv 2311.03099',
    _DENSE,
    _RESCALED | _PLAIN,
    draws='tensor',
    chooses=True,
  ),
  _deltas(
    'dare_ties',
    task_vectors.dare_ties,
    'DARE, arXiv 2311.03099',
    _DENSE,
    _RESCALED | _PLAIN | _ELECTED,
    draws='tensor',
    chooses=True,
  ),
  _deltas(
    'della_linear',
    task_vectors.della_linear,
    'DELLA, arXiv 2406.11617',
    _RANKED,
    _RESCALED | _PLAIN,
    draws='tensor',
    by_row=True,
    chooses=True,
  ),
  _deltas(
    'della',
    task_vectors.della,
    'DELLA, arXiv 2406.11617',
    _RANKED,
    _RESCALED | _SHARED | _ELECTED,
    draws='tensor',
    by_row=True,
    chooses=True,
    idempotent=True,
  ),
  _deltas(
    'breadcrumbs',
    task_vectors.breadcrumbs,
    'breadcrumbs, arXiv 2312.06795',
    _CRUMBS,
    _KEPT | _PLAIN,
    chooses=True,
  ),
  _deltas(
    'breadcrumbs_ties',
    task_vectors.breadcrumbs_ties,
    'breadcrumbs, arXiv 2312.06795',
    _CRUMBS,
    _KEPT | _PLAIN | _ELECTED,
    chooses=True,
  ),
  _judged(
    'sce',
    consensus.sce,
    _ANY,
    'FuseChat 3, arXiv 2408.07990',
    {
      'select_topk': Parameter(
        1.0, 0.0, 1.0, 'share of positions that count', least=0.0, most=1.0
      )
    },
    idempotent=True,
  ),
  _judged('ram', consensus.ram, _ANY, 'arXiv 2601.13572', {'epsilon': _CHANGE}),
  _judged(
    'ramplus',
    consensus.ramplus,
    _ANY,
    'arXiv 2601.13572',
    {
      'epsilon': _CHANGE,
      'r': Parameter(0.1, 0.0, 1.0, 'enlargement of what one parent changes'),
      'alpha': Parameter(
        0.2, 0.0, 1.0, 'bound of the share it grows with', least=0.0
      ),
    },
  ),
  _judged(
    'model_stock',
    consensus.model_stock,
    _SOME,
    'arXiv 2403.19522',
    {},
    _ROWS | {'negative': ('as_is', 'base')},
    by_row=True,
    idempotent=True,
  ),
  _judged(
    'nearswap',
    pairs.nearswap,
    _ONE,
    'QuartetAnemoi-70B-t0.0001',
    {
      't': Parameter(1e-4, 0.0, 1e-2, 'largest change of an element', least=0.0)
    },
  ),
  _judged(
    'arcee_fusion', pairs.arcee_fusion, _ONE, 'mergekit', {}, by_row=True
  ),
  _blend(
    'passthrough',
    linear.passthrough,
    _ONE,
    'mergekit',
    {'scale': Parameter(1.0, 0.0, 2.0, 'factor on the parent')},
    linear_in_parents=True,
  ),
  _blend(
    'extrapolate',
    linear.extrapolate,
    _TWO,
    'Model Swarms, arXiv 2410.11163',
    {
      'low': Parameter(0.0, -1.0, 1.0, 'least weight of parent one'),
      'high': Parameter(2.0, 0.0, 3.0, 'largest weight of parent one'),
    },
    draws='genome',
    linear_in_parents=True,
  ),
  _blend(
    'blx',
    recombination.blx,
    _ANY,
    'BLX-alpha; GENOME, arXiv 2503.01155',
    {
      'weights': _WEIGHTS,
      'alpha': Parameter(0.5, 0.0, 2.0, 'reach beyond the parents', least=0.0),
    },
    {'form': ('sample', 'clamp')},
    draws='tensor',
  ),
  *(
    _blend(
      f'uniform_{name}',
      function,
      _ANY,
      'uniform crossover',
      {},
      draws=scope,
      linear_in_parents=True,
    )
    for name, function, scope in (
      ('element', recombination.uniform_element, 'tensor'),
      ('matrix', recombination.uniform_whole, 'matrix'),
      ('layer', recombination.uniform_whole, 'layer'),
    )
  ),
)

MERGES: Mapping[str, Merge] = {merge.name: merge for merge in _ALL}
