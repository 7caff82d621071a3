"""Genes of recipes: numbers of the unit box that stand for a merge.

A genome is {'genes': {parameter: (G, N) or (G,)}} f32, with a value for each
of G groups and, of parameters that experts have each, of N experts; 'method'
(methods,) where several are given, the largest of which is chosen, and 'seed'
() where the seed of masks evolves. All of them are f32 and each has the same
box, 0 to 1, whatever it stands for, so that one first deviation suits all, and
any strategy moves in it: what must be whole is rounded when it is decoded.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import merged_options
from evojax_llm.genomes.merged_groups import Groups
from evojax_llm.genomes.merged_options import WEIGHTS
from evojax_llm.genomes.merged_options import MergedOptions
from evojax_llm.operators.merges import takes
from evojax_llm.operators.merges.registry import find
from evojax_llm.operators.operator import Merge
from evojax_llm.operators.operator import Parameter

GENES, METHOD, SEED = 'genes', 'method', 'seed'
# As many seeds as f32 tells apart, and more than any search sees.
SEEDS = 1 << 16
# Of softmax: a weight below its exponential is zero.
_LEAST = -30.0


class Genes:
  """What the genes of a configuration are, and what they stand for.

  Attributes:
    options: see `MergedOptions`.
    merges: of its methods.
  """

  def __init__(self, options: MergedOptions, experts: int, groups: Groups):
    """Makes the genes of N experts."""
    self.options, self.groups = options, groups
    self.merges = merges(options)
    check_experts(options, experts)
    self._experts = experts
    self._known = known(self.merges)
    self._low, self._high, self._log = {}, {}, set()
    bounds = merged_options.ranges(options.bounds)
    for name in options.genes:
      span = self._known[name].span
      if name == WEIGHTS and options.weights == 'softmax':
        span = (-4.0, 4.0)
      low, high, log = bounds.get(name, merged_options.Range(*span))
      if log:
        low, high = math.log(low), math.log(high)
        self._log.add(name)
      self._low[name], self._high[name] = low, high

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of the genes of a parameter."""
    each = (self._experts,) if self._known[name].per_model else ()
    return (len(self.groups.names), *each)

  @property
  def allows_zero(self) -> bool:
    """Whether weights may all be zero."""
    if self.options.weights in ('softmax', 'absolute', 'free'):
      return True
    return self._low[WEIGHTS] <= 0.0 <= self._high[WEIGHTS]

  def genome(self, values: Mapping[str, Any], seed: float = 0.0) -> Any:
    """Returns the genome of values by parameter, () or as its genes are.

    What is not given has the default of its parameter.
    """
    genes = {}
    for name in self.options.genes:
      value = values.get(name, self._known[name].default)
      value = np.broadcast_to(np.asarray(value, np.float64), self.shape(name))
      low, high = self._low[name], self._high[name]
      if name == WEIGHTS and self.options.weights == 'softmax':
        with np.errstate(divide='ignore'):
          value = np.maximum(np.log(value), _LEAST)
      if name in self._log:
        value = np.log(np.maximum(value, np.exp(low)))
      genes[name] = jnp.asarray((value - low) / (high - low), jnp.float32)
    found = {GENES: genes}
    if len(self.merges) > 1:
      found[METHOD] = jnp.asarray(np.eye(len(self.merges))[0], jnp.float32)
    if self.options.evolve_seed:
      found[SEED] = jnp.float32(seed)
    return found

  def full(self, value: float) -> Any:
    """Returns the genome whose genes all are one number."""
    zeros = jax.eval_shape(lambda: self.genome({}))
    return jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), zeros)

  def sample(self, key: jax.Array) -> Any:
    """Draws a genome, each gene ~ U(0, 1)."""
    shapes, structure = jax.tree.flatten(jax.eval_shape(lambda: self.full(0.0)))
    keys = jax.random.split(key, len(shapes))
    drawn = [
      jax.random.uniform(k, s.shape, s.dtype)
      for k, s in zip(keys, shapes, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)

  def decode(self, genome: Any) -> dict[str, Any]:
    """Returns what a genome stands for.

    Returns:
      'method' () i32, an index; 'seed' () i32; and 'values' by parameter, f32
      of the shapes of their genes.
    """
    values = {}
    for name, gene in genome[GENES].items():
      low, high = self._low[name], self._high[name]
      gene = gene.astype(jnp.float32)
      kept = self.options.weights if name == WEIGHTS else 'bounds'
      if kept in ('bounds', 'simplex'):
        gene = jnp.clip(gene, 0.0, 1.0)
      value = low + gene * jnp.float32(high - low)
      if name in self._log:
        value = jnp.exp(value)
      if kept == 'simplex':
        value = jnp.maximum(value, 0.0)
        total = jnp.sum(value, axis=-1, keepdims=True)
        value = value / jnp.where(total > 0.0, total, 1.0)
      elif kept == 'softmax':
        value = _softmax(value)
      elif kept == 'absolute':
        value = jnp.abs(value)
      values[name] = value
    method = jnp.argmax(genome[METHOD]) if METHOD in genome else 0
    seed = self.options.mask_seed
    if SEED in genome:
      # NaN would be some whole number, and its member not fail.
      seed = jnp.clip(jnp.nan_to_num(genome[SEED]), 0.0, 1.0)
      seed = jnp.round(seed * (SEEDS - 1))
    return {
      METHOD: jnp.asarray(method, jnp.int32),
      SEED: jnp.asarray(seed, jnp.int32),
      'values': values,
    }

  def given(self, merge: Merge, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a merge is told of its parameters, by group.

    Those are fixed numbers, and genes (G, ...); `weights` too where they choose
    experts for it.
    """
    known = {**merge.parameters}
    if choose(merge, self._experts):
      known.setdefault(WEIGHTS, takes.WEIGHTS)
    fixed = merged_options.numbers(self.options.values, 'values')
    both = {**fixed, **values}
    return {name: both[name] for name in known if name in both}

  def choices(self, merge: Merge) -> dict[str, Any]:
    """Returns the static options of a merge that are not its defaults."""
    found = merged_options.pairs(self.options.options, 'options')
    return {
      name: int(text) if merge.options[name].kind is int else text
      for name, text in found.items()
      if name in merge.options
    }


def _softmax(value: jax.Array) -> jax.Array:
  """Weights of the last axis; those of no more than _LEAST are zero."""
  there = ~(value <= _LEAST)
  largest = jnp.max(jnp.where(there, value, _LEAST), axis=-1, keepdims=True)
  parts = jnp.where(there, jnp.exp(value - largest), 0.0)
  total = jnp.sum(parts, axis=-1, keepdims=True)
  return parts / jnp.where(total == 0.0, 1.0, total)


def choose(merge: Merge, experts: int) -> int | None:
  """Returns how many experts a merge is given by the size of their weights.

  None where it takes all of them, in their order.
  """
  most = merge.most
  if most is None or (experts <= most and WEIGHTS in merge.parameters):
    return None
  return min(most, experts)


@functools.cache
def merges(options: MergedOptions) -> tuple[Merge, ...]:
  """Returns the merges of a configuration, which is checked here.

  Raises:
    ValueError: naming what no method has, or a number that is out of range.
  """
  found = tuple(find(name) for name in options.methods)
  if not found:
    raise ValueError("Got method ''; expected the name of a merge.")
  if len(set(options.methods)) < len(found):
    raise ValueError(f'Got method {options.method!r}; expected each one once.')
  parameters = known(found)
  of = f'parameter of {options.method}'
  merged_options.check_known(options.genes, parameters, of)
  if not options.genes and len(found) == 1 and not options.evolve_seed:
    raise ValueError(
      f'Got nothing that evolves; expected some of {sorted(parameters)}.'
    )
  if len(set(options.genes)) < len(options.genes):
    raise ValueError(f'Got evolve {options.evolve!r}; expected each name once.')
  fixed = merged_options.numbers(options.values, 'values')
  merged_options.check_known(fixed, parameters, of)
  for name, value in fixed.items():
    if name in options.genes:
      raise ValueError(
        f'Got a value for {name!r}, which evolves: leave it out.'
      )
    parameters[name].check(value, options.method)
  for name, (*ends, log) in merged_options.ranges(options.bounds).items():
    if name not in options.genes:
      raise ValueError(
        f'Got bounds for {name!r}; expected some of {list(options.genes)}, '
        'which evolve.'
      )
    if log and name == WEIGHTS:
      raise ValueError(
        'Got bounds of weights on a log scale; expected LOW:HIGH, or '
        "weights='softmax', whose genes are logarithms."
      )
    for end in ends:
      if not (name == WEIGHTS and options.weights == 'softmax'):
        parameters[name].check(end, 'bounds')
  static = {name: one for merge in found for name, one in merge.options.items()}
  choices = merged_options.pairs(options.options, 'options')
  merged_options.check_known(choices, static, f'option of {options.method}')
  for name, text in choices.items():
    value = text
    if static[name].kind is int:
      value = int(text) if text.isdecimal() else text
    if name == 'span' and value == 'genome':
      raise ValueError(
        "Got span='genome'; expected 'tensor', as groups differ by tensor."
      )
    static[name].check(value, options.method)
  return found


def known(found: Sequence[Merge]) -> dict[str, Parameter]:
  """Returns the parameters of merges by name.

  `weights` is one of each merge of few experts: it is given those whose weights
  are largest.
  """
  parameters = {n: p for merge in found for n, p in merge.parameters.items()}
  if any(merge.most is not None for merge in found):
    parameters.setdefault(WEIGHTS, takes.WEIGHTS)
  return parameters


def check_experts(options: MergedOptions, experts: int) -> None:
  """Refuses methods that cannot merge so many experts.

  Raises:
    ValueError: naming the method, and what it takes.
  """
  for merge in merges(options):
    if experts < merge.least:
      raise ValueError(
        f'Got {experts} experts for {merge.name}; expected at least '
        f'{merge.least}.'
      )
    too_many = merge.most is not None and experts > merge.most
    if too_many and WEIGHTS not in options.genes:
      raise ValueError(
        f'Got {experts} experts for {merge.name}, which merges {merge.most}; '
        "expected as many, or 'weights' among what evolves: those with the "
        'largest weights are merged.'
      )


def ordered(
  merge: Merge, values: Mapping[str, Any], experts: int
) -> tuple[dict[str, Any], jax.Array | None]:
  """Chooses the experts that a merge of few is given.

  As in mergekit-evolve, a merge of two gets those with the largest weights, the
  largest first, and its position t between them, where that is not given, is
  the second of the softmax of the two.

  Args:
    merge: of the method.
    values: by parameter, (..., N) of those that experts have each, or numbers.
    experts: N.

  Returns:
    The parameters of the merge, and indices (..., count) of the experts; None
    for all in their order.
  """
  count, weights = choose(merge, experts), values.get(WEIGHTS)
  values = {n: v for n, v in values.items() if n in merge.parameters}
  if count is None or weights is None:
    return values, None
  largest, which = jax.lax.top_k(weights, count)
  for name, value in values.items():
    if merge.parameters[name].per_model and jnp.ndim(value):
      values[name] = jnp.take_along_axis(value, which, axis=-1)
  if count == 2 and 't' in merge.parameters and 't' not in values:
    values['t'] = jax.nn.softmax(largest, axis=-1)[..., 1]
  return values, which
