"""One table of all operators, which the tests and the reference page walk."""

import functools

from evojax_llm.operators import lora_algebra
from evojax_llm.operators import low_rank
from evojax_llm.operators import mutation
from evojax_llm.operators import niching
from evojax_llm.operators import noise
from evojax_llm.operators import pareto
from evojax_llm.operators import selection
from evojax_llm.operators import succession
from evojax_llm.operators import survival
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Operator
from evojax_llm.operators.operator import Parameter
from evojax_llm.options import Option


def _flag(name, default, text):
  return Option(name, default, text, choices=(default, not default), kind=bool)


def _choice(name, default, text, choices):
  return Option(name, default, text, choices=choices, kind=str)


_RELATIVE = _flag('relative', True, 'whether sigma is of the root mean square')
_ROUNDING = 'how sums are rounded to bf16'
_REPLACE = _flag('replace', False, 'whether a member may be drawn twice')
_ENTRANTS = Option('entrants', 3, 'size of a tournament', low=1, kind=int)
_PHI = 'of the blend, before it is drawn and normalised'
_GENOME = 'GENOME, arXiv 2503.01155'
_SWARMS = 'Model Swarms, arXiv 2410.11163'
_NICHES = 'M2N2, GECCO 2025'

OPERATORS: tuple[Operator, ...] = (
  *MERGES.values(),
  # Of whole adapters, not tensor by tensor, and so not in MERGES.
  Merge(
    'exact_linear',
    functools.partial(lora_algebra.linear, products='exact'),
    'Eckart and Young, 1936',
    (
      Parameter(
        'weights', 0.5, 'of each parent', span=(-1.0, 2.0), per_model=True
      ),
    ),
    'Weighted sum of what adapters change, brought back to their rank.',
  ),
  Operator(
    'gaussian',
    'mutation',
    mutation.gaussian,
    _GENOME,
    (
      noise.SIGMA,
      mutation.GENE_RATE,
      _RELATIVE,
      _choice('mask', 'element', 'what one gene is', mutation.MASKS),
      _choice('rounding', 'stochastic', _ROUNDING, noise.ROUNDINGS),
    ),
  ),
  Operator(
    'perturb',
    'mutation',
    low_rank.perturb,
    'EGGROLL, arXiv 2511.16652',
    (
      noise.SIGMA,
      Option('rank', 1, 'rank of the noise', low=1, kind=int),
      _RELATIVE,
      _choice('rounding', 'nearest', _ROUNDING, noise.ROUNDINGS),
    ),
  ),
  Operator(
    'scale',
    'mutation',
    mutation.scale,
    'this package',
    (mutation.LOW, mutation.HIGH),
  ),
  Operator(
    'swarm',
    'succession',
    succession.swarm,
    f'{_SWARMS}; {_GENOME}',
    (
      Parameter('inertia', 0.2, f'weight of the velocity {_PHI}'),
      Parameter('cognitive', 0.2, 'of the pull to the own best'),
      Parameter('social', 0.2, 'of the pull to the best of all'),
      Parameter('repel', 0.1, 'of the push from the worst of all'),
      Parameter('length', 0.5, 'of the step, lambda'),
      _choice('draws', 'particle', 'what one draw is for', succession.DRAWS),
      _flag('normalise', True, 'whether the blend sums to one'),
    ),
  ),
  Operator('first_velocity', 'succession', succession.first_velocity, _SWARMS),
  Operator('truncation', 'selection', selection.truncation, ''),
  Operator('roulette', 'selection', selection.roulette, _GENOME, (_REPLACE,)),
  Operator('rank', 'selection', selection.rank, '', (_REPLACE,)),
  Operator(
    'tournament',
    'selection',
    selection.tournament,
    _GENOME,
    (_ENTRANTS, _REPLACE),
  ),
  Operator(
    'universal',
    'selection',
    selection.universal,
    'Baker, 1987',
    (_flag('replace', True, _REPLACE.text),),
  ),
  Operator(
    'survivors',
    'selection',
    survival.survivors,
    _GENOME,
    (
      survival.ELITES,
      _choice('method', 'roulette', 'how others survive', selection.METHODS),
      _ENTRANTS,
    ),
  ),
  Operator('ranking', 'selection', pareto.ranking, 'NSGA-II, Deb et al., 2002'),
  Operator(
    'shared_fitness',
    'selection',
    niching.shared_fitness,
    _NICHES,
    (niching.ALPHA,),
  ),
  Operator(
    'mates',
    'selection',
    niching.mates,
    _NICHES,
    (
      niching.ALPHA,
      _flag('attract', True, 'whether mates complement each other'),
    ),
  ),
)


def __getattr__(name: str) -> Operator:
  """Returns a merge, so that it can be imported by the name it has here."""
  for op in OPERATORS:
    if op.name == name and op.kind == 'merge':
      return op
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
