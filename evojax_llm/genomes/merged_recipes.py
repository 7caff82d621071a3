"""What all spaces of recipes share: all but what is merged."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import options as option_checks
from evojax_llm.genomes import merged_genes
from evojax_llm.genomes import merged_groups
from evojax_llm.genomes import merged_options
from evojax_llm.genomes import space
from evojax_llm.genomes.merged_genes import METHOD
from evojax_llm.genomes.merged_genes import SEED
from evojax_llm.genomes.merged_options import WEIGHTS
from evojax_llm.genomes.merged_options import MergedOptions
from evojax_llm.operators.merges import lift
from evojax_llm.operators.operator import Merge
from evojax_llm.population import leaves
from evojax_llm.population import sharding
from evojax_llm.population import stack


class RecipeSpace(space.Space):
  """A space whose genomes are recipes, as `merged_genes` has them."""

  options, decodes, learns = MergedOptions, True, False

  def _settle(
    self,
    names: tuple[str, ...],
    given: Mapping[str, Any],
    tensors: Any,
    config: Any,
  ) -> None:
    """Fixes the genes.

    Args:
      names: (N,) of the experts.
      given: values of `MergedOptions` by name.
      tensors: what is merged of one expert, or shapes.
      config: of the model, if there is one.

    Raises:
      ValueError: the options do not suit the experts.
    """
    self.names, self._told = names, MergedOptions(**given)
    stacks = config.stacks if config else ()
    layers = {
      leaf.shape[0]
      for path, leaf in jax.tree.leaves_with_path(tensors)
      if leaves.is_layered(path, leaves.LAYERS)
    }
    count = config.num_layers if stacks else max(layers, default=0)
    groups = merged_groups.make(self._told.groups, count, tensors, stacks)
    self.genes = merged_genes.Genes(self._told, len(names), groups)
    self._decode = jax.jit(self.genes.decode)

  @classmethod
  def check(cls, **given: Any) -> MergedOptions:
    """Returns the options, if they can be of any model."""
    option_checks.check(given, MergedOptions, what='merged')
    options = MergedOptions(**given)
    merged_genes.merges(options)
    merged_groups.check(options.groups)
    if options.stream == 'yes' and options.on != 'weights':
      raise ValueError(
        f"Got stream='yes' with on={options.on!r}; expected on='weights', as "
        'factors fit on a device.'
      )
    return options

  @classmethod
  def check_for(cls, config: Any, experts: int, **given: Any) -> None:
    """Refuses options that do not suit a model, or so many experts of it."""
    told = cls.check(**given)
    merged_groups.check_depth(told.groups, config.num_layers)
    merged_genes.check_experts(told, experts)

  def experts(self) -> stack.Population:
    """Returns the experts as recipes: the weight of one is 1.

    Where no weights evolve, all are the default recipe.
    """
    count = len(self.names)
    if WEIGHTS in self.genes.options.genes:
      return self.mix(np.eye(count), np.ones(count))
    return stack.stack([self.genes.genome({})] * count)

  def base(self) -> stack.Genome:
    """Returns the recipe of the base.

    That of weights of zero, where the method leaves the base with them; else
    all genes are -inf, which no other recipe has.
    """
    if self._zero_is_base:
      return self.genes.genome({WEIGHTS: 0.0})
    return self.genes.full(-np.inf)

  @property
  def _zero_is_base(self) -> bool:
    """Whether weights of zero stand for the base."""
    merge, genes = self.genes.merges[0], self.genes
    return (
      WEIGHTS in genes.options.genes
      and WEIGHTS in merge.parameters
      and genes.allows_zero
      and self._of_changes(merge)
    )

  def _of_changes(self, merge: Merge) -> bool:
    """Whether a merge of nothing is the base."""
    return merge.needs_base

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    """Returns recipes with these weights, and defaults otherwise.

    Raises:
      ValueError: the weights do not evolve.
    """
    if WEIGHTS not in self.genes.options.genes:
      raise ValueError(
        f'Got mixes of experts for recipes of {self._told.method} in which '
        f'{", ".join(self._told.genes) or "the method"} evolve and no weights; '
        "expected 'centre' or 'random', as in --config.initial=random."
      )
    rows = np.asarray(weights, np.float64) * np.asarray(factors)[:, None]
    return stack.stack([self.genes.genome({WEIGHTS: row}) for row in rows])

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    """Draws every gene ~ U(0, 1) within its bounds.

    Options, which other spaces have for their mixes, change nothing.
    """
    del options
    return self.genes.sample(key)

  def bounds(self) -> tuple[stack.Genome, stack.Genome]:
    return self.genes.full(0.0), self.genes.full(1.0)

  def deviation(self) -> float:
    """Returns 1/6 of the bounds, Sakana's (arXiv 2403.13187)."""
    return 1.0 / 6.0

  def decoded(self, genome: stack.Genome) -> Any:
    return self.genes.decode(genome)

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns the merge that a genome stands for, whole.

    Its keys are `method`; `weights`, the means over groups by expert, where the
    method has them; `groups`, in each of which every parameter has one number,
    or one by expert, and `experts` names those that a method of few merges, in
    order; `seed` where something is drawn; the static `options`; what it is
    merged `on`; and `components`. What is not finite is None.
    """
    decoded = sharding.to_host(self._decode(genome))
    merge = self.genes.merges[int(decoded[METHOD])]
    given = self.genes.given(merge, decoded['values'])
    values, which = merged_genes.ordered(merge, given, len(self.names))
    values = {**_defaults(merge), **sharding.to_host(values)}
    found = {
      'method': merge.name,
      **self._weights(merge, given),
      'groups': [
        {'group': name, **self._of_group(merge, g, values, which)}
        for g, name in enumerate(self.genes.groups.names)
      ],
      'options': {
        **{name: one.default for name, one in merge.options.items()},
        **self.genes.choices(merge),
      },
      'grouped': self._told.groups,
      'on': self._told.on,
      'components': self._told.components,
    }
    if merge.draws:
      found['seed'] = int(decoded[SEED])
    return found

  def _weights(self, merge, given):
    weights = given.get(WEIGHTS)
    if weights is None:
      return {}
    means = np.broadcast_to(
      np.asarray(weights, np.float32),
      (len(self.genes.groups.names), len(self.names)),
    ).mean(axis=0)
    return {'weights': self._by_name(means, self.names)}

  def _of_group(self, merge, group, values, which):
    names = self.names
    found = {}
    if which is not None:
      names = [names[i] for i in np.asarray(which)[group]]
      found['experts'] = names
    for name, value in values.items():
      value = np.asarray(value, np.float32)
      value = value[group] if value.ndim else value
      if merge.parameters[name].per_model:
        value = np.broadcast_to(value, (len(names),))
        found[name] = self._by_name(value, names)
      else:
        found[name] = number(value)
    return found

  def _by_name(self, numbers, names):
    return {n: number(x) for n, x in zip(names, numbers, strict=True)}

  @functools.cached_property
  def carried_out(self) -> Any:
    """Merges, as f(genome, experts (N, ...), base), what a recipe says.

    A part of the experts and the base may be given, and behind it the first of
    its layers; it comes out as it does of the whole.

    Members are merged one after another, wherever they are mapped over: in a
    program of any number of them one comes out with the same bits, and there is
    room for one.
    """

    @jax.jit
    @jax.custom_batching.sequential_vmap
    def run(*given):
      genome, *held = jax.lax.optimization_barrier(given)
      decoded = jax.lax.optimization_barrier(self.genes.decode(genome))
      branches = [
        functools.partial(self._merged, merge) for merge in self.genes.merges
      ]
      if len(branches) == 1:
        return jax.lax.optimization_barrier(branches[0](decoded, *held))
      merged = jax.lax.switch(decoded[METHOD], branches, decoded, *held)
      return jax.lax.optimization_barrier(merged)

    return run

  def _merged(self, merge, decoded, experts, base, first=None):
    """One recipe of one method, of all layers or of those from `first` on."""
    given = self.genes.given(merge, decoded['values'])
    layers = {
      leaves.name(path): leaves.is_layered(path, leaves.LAYERS)
      and leaf.shape[1]
      for path, leaf in jax.tree.leaves_with_path(experts)
    }
    spread = {
      name: self.genes.groups.spread(value) if jnp.ndim(value) else value
      for name, value in given.items()
    }

    def part(value, leaf):
      if first is None or not layers[leaf]:
        return value
      return jax.lax.dynamic_slice_in_dim(value, first, layers[leaf])

    fixed = {n: v for n, v in spread.items() if not isinstance(v, dict)}
    values = {n: v for n, v in fixed.items() if n in merge.parameters}
    chosen = {}
    for leaf in layers:
      own = {
        n: part(v[leaf], leaf) for n, v in spread.items() if n not in fixed
      }
      own, chosen[leaf] = merged_genes.ordered(
        merge, {**fixed, **own}, len(self.names)
      )
      for name in own.keys() - fixed.keys():
        values.setdefault(name, {})[leaf] = own[name]

    def take(path, leaf):
      which = chosen[leaves.name(path)]
      if which is None:
        return leaf
      if which.ndim == 1:
        return leaf[which]
      which = jnp.moveaxis(which, -1, 0)
      which = which.reshape(which.shape + (1,) * (leaf.ndim - which.ndim))
      return jnp.take_along_axis(leaf, which, axis=0)

    key = jax.random.key(decoded[SEED], impl='threefry2x32')
    return lift.genome(
      merge,
      jax.tree.map_with_path(take, experts),
      base if merge.needs_base else None,
      key=key if merge.draws else None,
      parameters=values,
      layers=leaves.LAYERS,
      first=0 if first is None else first,
      **self.genes.choices(merge),
    )

  def _or_base(self, genome: stack.Genome, merged: Any, base: Any) -> Any:
    """Returns what was merged, or for the recipe `base()` the base."""
    if self._zero_is_base:
      return merged
    first = jax.tree.leaves(genome)[0]
    is_base = jnp.all(jnp.isneginf(first))
    return jax.tree.map(
      lambda one, other: jnp.where(is_base, other.astype(one.dtype), one),
      merged,
      base,
    )


def components(text: str, tree: Any) -> Any:
  """Returns the part of a tree whose modules' names have one of some texts.

  Args:
    text: texts with commas between; '' for all.
    tree: nested dicts.

  Raises:
    ValueError: no module's name has one of them.
  """
  wanted = merged_options.names(text)
  if not wanted:
    return tree
  for one in wanted:
    if not any(
      one in leaves.module(path) for path, _ in jax.tree.leaves_with_path(tree)
    ):
      known = dict.fromkeys(
        leaves.module(path) for path, _ in jax.tree.leaves_with_path(tree)
      )
      raise ValueError(
        f'Got components {one!r}, which is in the name of no tensor; expected '
        f'a part of {", ".join(list(known)[:8])}.'
      )
  return _pruned(tree, wanted, '')


def filled(part: Any, whole: Any) -> Any:
  """Returns a part of a tree with what it lacks from the whole."""
  if not isinstance(whole, dict):
    return whole if part is None else part
  part = part or {}
  return {name: filled(part.get(name), node) for name, node in whole.items()}


def alike(whole: Any, part: Any) -> Any:
  """Returns the leaves of a whole tree that a part of it has."""
  if not isinstance(part, dict):
    return None if part is None else whole
  return {name: alike(whole[name], node) for name, node in part.items()}


def _pruned(tree, wanted, name):
  if not isinstance(tree, dict) or leaves.is_factors(tree):
    return tree if any(one in name for one in wanted) else None
  found = {
    key: _pruned(node, wanted, f'{name}/{key}'.lstrip('/'))
    for key, node in tree.items()
  }
  return {key: node for key, node in found.items() if node is not None} or None


def _defaults(merge: Merge) -> dict[str, float]:
  return {name: p.default for name, p in merge.parameters.items()}


def number(value: Any) -> float | None:
  """Returns the shortest decimal of an f32, 0.3 and not 0.30000001, or None."""
  value = np.float32(value)
  return float(str(value)) if np.isfinite(value) else None
