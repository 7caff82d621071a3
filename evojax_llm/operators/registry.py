"""One table of all operators.

Property tests, `experiments.benchmark_operators` and the reference page of
this folder (README.md) walk it: an operator is a function in a module and an
entry here, or for merges in `merges.registry`. Strategies call the functions
themselves.
"""

import jax
import jax.numpy as jnp

from evojax_llm.operators import lora_algebra
from evojax_llm.operators import low_rank
from evojax_llm.operators import mutation
from evojax_llm.operators import niching
from evojax_llm.operators import noise
from evojax_llm.operators import pareto
from evojax_llm.operators import selection
from evojax_llm.operators import succession
from evojax_llm.operators import survival
from evojax_llm.operators.merges import lift
from evojax_llm.operators.merges.method import Merge
from evojax_llm.operators.merges.method import Parameter
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.operators.operator import Cost
from evojax_llm.operators.operator import Operator
from evojax_llm.population import stack

# How often a merge must see its parents; once, unless said here.
_PASSES = {
  'slerp': 2,
  'nuslerp': 2,
  'multislerp': 2,
  'karcher': 2,
  'split_slerp': 2,
  'model_stock': 2,
  'ramplus': 2,
  'sce': 2,
}
# What they do beside reading, drawing and writing.
_OTHER = {
  'della': 'sorting every row',
  'della_linear': 'sorting every row',
  'arcee_fusion': 'two softmaxes and counting for thresholds',
}
_COUNTING = 'counting for thresholds'
_TRIMMING = ('density', 'select_topk')
_PEFT = {
  'linear': 'linear',
  'ties': 'ties',
  'dare_linear': 'dare_linear',
  'dare_ties': 'dare_ties',
  'magnitude_linear': 'magnitude_prune',
}
_OURS = (
  'split_slerp',
  'magnitude_linear',
  'extrapolate',
  'blx',
  'uniform_element',
  'uniform_matrix',
  'uniform_layer',
)
# Values with which a merge is tested and measured, where its default does
# nothing.
_TRIED = {'density': 0.5, 'gamma': 0.05, 'select_topk': 0.5, 'split': 0.4}


def _merge(merge: Merge) -> Operator:
  """The entry of a merge of the registry: of two parents if it takes them."""
  parents = merge.least if merge.least == merge.most else 2
  based = int(merge.needs_base)

  def apply(key, *genomes, **chosen):
    options = {n: chosen.pop(n) for n in merge.options if n in chosen}
    return lift.genome(
      merge.name,
      stack.stack(genomes[: len(genomes) - based]),
      genomes[-1] if based else None,
      key=key if merge.draws else None,
      parameters={
        name: jnp.asarray(value, jnp.float32) for name, value in chosen.items()
      },
      **options,
    )

  # Keep chances are 16 bits for each parent; other draws a word an element.
  words = 0.0
  if merge.draws == 'tensor':
    words = parents / 2 if 'density' in merge.parameters else 1.0
  if words:
    group = 'random'
  elif set(_TRIMMING) & set(merge.parameters) or merge.name == 'arcee_fusion':
    group = 'trimming'
  else:
    group = 'elementwise'
  passes = _PASSES.get(merge.name, 1)
  other = _COUNTING if group == 'trimming' else 'arithmetic'
  other = _OTHER.get(merge.name, other)
  peers = {} if merge.name in _OURS else {'mergekit': merge.name}
  if merge.name in _PEFT:
    peers['peft'] = _PEFT[merge.name]
  tried = {n: v for n, v in _TRIED.items() if n in merge.parameters}
  return Operator(
    merge.name,
    'merge',
    parents + based,
    apply,
    merge.source,
    (merge.function.__doc__ or '').split('\n')[0],
    Cost(group, passes, words, other=other),
    merge.parameters,
    merge.options,
    cases=(tried,),
    draws=bool(merge.draws),
    least=merge.least,
    most=merge.most,
    base=merge.base,
    shared=based,
    peers=peers,
  )


def _exact_linear(key, one, two, *, weights=(0.5, 0.5)):
  del key
  return lora_algebra.linear(
    stack.stack([one, two]),
    jnp.asarray(weights, jnp.float32),
    products='exact',
  )


def _gaussian(key, genome, *, sigma=0.1, gene_rate=1.0, **options):
  return mutation.gaussian(key, genome, sigma, gene_rate, **options)


def _low_rank(key, genome, *, sigma=0.1, rank=1, **options):
  return low_rank.perturb(key, genome, sigma, rank, **options)


def _scale(key, genome, *, low=0.8, high=1.8):
  return mutation.scale(key, genome, low, high)


def _swarm(
  key,
  speed,
  position,
  personal,
  best,
  worst,
  *,
  inertia=0.2,
  cognitive=0.2,
  social=0.2,
  repel=0.1,
  length=0.5,
  draws='particle',
  normalise=True,
):
  blend = succession.draw_coefficients(
    key,
    jnp.asarray([inertia, cognitive, social, repel], jnp.float32),
    draws=draws,
    num_tensors=len(jax.tree.leaves(position)),
    normalise=normalise,
  )
  speed = succession.velocity(blend, speed, position, personal, best, worst)
  return speed, succession.step(position, speed, length)


def _first_velocity(key, position, target):
  del key
  return succession.first_velocity(position, target)


def _truncation(key, fitness, count, ids):
  del key
  return selection.truncation(fitness, count, ids)


def _survivors(key, fitness, count, ids, *, elites=1, **options):
  eligible = jnp.ones(fitness.shape, bool)
  return survival.survivors(
    key, fitness, eligible, count, ids, elites, **options
  )


def _pareto(key, objectives, count, ids):
  del key
  return pareto.ranking(objectives, ids)[:count]


def _shared(key, scores, count, ids, *, alpha=1.0):
  fitness = niching.shared_fitness(scores, alpha)
  return selection.roulette(key, fitness, count, ids)


def _mates(key, scores, count, ids, *, alpha=1.0, attract=True):
  return niching.mates(key, scores, ids, alpha, attract=attract)[:count]


_SIGMA = Parameter(0.1, 0.0, 1.0, 'deviation; of the root mean square')
_GENE_RATE = Parameter(1.0, 0.0, 1.0, 'probability that a gene changes')
_PHI = 'of the blend, before it is drawn and normalised'
_ALPHA = Parameter(1.0, 0.0, 3.0, 'how strongly members compete')
_ELITES = Parameter(1, 0, 10, 'the fittest that survive in any case')
_CHOICE = Cost('choice')
_GENOME = 'GENOME, arXiv 2503.01155'
_SWARMS = 'Model Swarms, arXiv 2410.11163'
_NICHES = 'M2N2, GECCO 2025'
_REPLACE = {'replace': (False, True)}
_ROUNDING = {'rounding': noise.ROUNDINGS}
_RELATIVE = {'relative': (True, False)}


def _selection(name, function, source, doc, parameters=None, **facts):
  parameters = parameters or {}
  return Operator(
    name, 'selection', 0, function, source, doc, _CHOICE, parameters, **facts
  )


OPERATORS: tuple[Operator, ...] = (
  *map(_merge, MERGES.values()),
  Operator(
    'exact_linear',
    'merge',
    2,
    _exact_linear,
    'Eckart and Young, 1936',
    'Weighted sum of what adapters change, brought back to their rank.',
    Cost('algebra', other='decompositions of small matrices'),
    {'weights': Parameter(0.5, -1.0, 2.0, 'of each parent', True)},
    draws=False,
    least=2,
    most=2,
    tolerance=1e-4,
    peers={'peft': 'svd'},
  ),
  Operator(
    'gaussian',
    'mutation',
    1,
    _gaussian,
    _GENOME,
    'Adds masked Gaussian noise.',
    Cost('random', 2, 1.0, other='normal numbers of the words'),
    {'sigma': _SIGMA, 'gene_rate': _GENE_RATE},
    _RELATIVE | {'mask': mutation.MASKS} | _ROUNDING,
    cases=(
      {'gene_rate': 0.5},
      {'gene_rate': 0.5, 'mask': 'matrix'},
      {'gene_rate': 0.5, 'mask': 'layer'},
      {'relative': False},
      {'rounding': 'stochastic'},
    ),
  ),
  Operator(
    'low_rank',
    'mutation',
    1,
    _low_rank,
    'EGGROLL, arXiv 2511.16652',
    'Adds seeded noise of rank r to every matrix.',
    Cost('elementwise', 2, other='products of factors'),
    {'sigma': _SIGMA},
    {'rank': (1, 2, 4, 8)} | _RELATIVE | _ROUNDING,
    tolerance=1e-5,
  ),
  Operator(
    'scale',
    'mutation',
    1,
    _scale,
    'this package',
    "Multiplies a member's mass, the B of an adapter.",
    Cost('elementwise', second_only=True),
    {
      'low': Parameter(0.8, 0.0, 1.0, 'least factor'),
      'high': Parameter(1.8, 1.0, 4.0, 'largest factor'),
    },
  ),
  Operator(
    'swarm',
    'succession',
    5,
    _swarm,
    f'{_SWARMS}; {_GENOME}',
    'One step by inertia, to the own and the common best, from the worst.',
    Cost('elementwise', other='a loop for each of two results'),
    {
      'inertia': Parameter(0.2, 0.0, 1.0, f'weight of the velocity {_PHI}'),
      'cognitive': Parameter(0.2, 0.0, 1.0, 'of the pull to the own best'),
      'social': Parameter(0.2, 0.0, 1.0, 'of the pull to the best of all'),
      'repel': Parameter(0.1, 0.0, 1.0, 'of the push from the worst of all'),
      'length': Parameter(0.5, 0.0, 1.0, 'of the step, lambda'),
    },
    {'draws': succession.DRAWS, 'normalise': (True, False)},
    cases=({}, {'draws': 'tensor'}, {'normalise': False}),
    shared=2,
    results=2,
  ),
  Operator(
    'first_velocity',
    'succession',
    2,
    _first_velocity,
    _SWARMS,
    'The difference from a position to a target.',
    Cost('elementwise'),
    draws=False,
  ),
  _selection(
    'truncation', _truncation, '', 'The fittest, best first.', draws=False
  ),
  _selection(
    'roulette',
    selection.roulette,
    _GENOME,
    'In proportion to fitness.',
    options=_REPLACE,
    cases=({}, {'replace': True}),
  ),
  _selection(
    'rank',
    selection.rank,
    '',
    'In proportion to rank.',
    options=_REPLACE,
    cases=({}, {'replace': True}),
  ),
  _selection(
    'tournament',
    selection.tournament,
    _GENOME,
    'Repeatedly the fittest of a few.',
    options={'entrants': (3, 2, 5)} | _REPLACE,
    cases=({}, {'replace': True}),
  ),
  _selection(
    'universal',
    selection.universal,
    'Baker, 1987',
    'One turn of a wheel with equal pointers.',
    options={'replace': (True, False)},
    cases=({'replace': True}, {'replace': False}),
  ),
  _selection(
    'survivors',
    _survivors,
    _GENOME,
    'Elites, then the rest by any of the above, nobody twice.',
    {'elites': _ELITES},
    options={'method': selection.METHODS, 'entrants': (3, 2, 5)},
    cases=tuple({'elites': 2, 'method': m} for m in selection.METHODS),
  ),
  _selection(
    'pareto',
    _pareto,
    'NSGA-II, Deb et al., 2002',
    'By non-dominated front, then crowding distance.',
    sees='objectives',
    draws=False,
  ),
  _selection(
    'shared_fitness',
    _shared,
    _NICHES,
    'Roulette by what few others solve.',
    {'alpha': _ALPHA},
    sees='scores',
  ),
  _selection(
    'mates',
    _mates,
    _NICHES,
    'Two parents, the second by what the first lacks.',
    {'alpha': _ALPHA},
    options={'attract': (True, False)},
    cases=({}, {'attract': False}),
    sees='scores',
    most=2,
  ),
)
