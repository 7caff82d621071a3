"""Layer paths: a genome says which layers of some models are gone through."""

from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import lookup
from evojax_llm import options as option_checks
from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes import layer_path_options
from evojax_llm.genomes import merged_options
from evojax_llm.genomes import space
from evojax_llm.genomes import weights as weight_genomes
from evojax_llm.genomes.merged_recipes import number
from evojax_llm.models import expression
from evojax_llm.models import folders
from evojax_llm.models import path_files
from evojax_llm.models import peft
from evojax_llm.models.errors import ModelError
from evojax_llm.population import sharding
from evojax_llm.population import stack

INDICATOR, SCALES = 'indicator', 'scales'
# The first deviation of a search; bounds are ten of them from the middle.
_DEVIATION = 0.1


class LayerPathSpace(space.Space):
  """Paths through the layers of models of one shape, with scaled inputs.

  Sakana's data-flow space (arXiv 2403.13187, section 3.2). The layers of K
  sources are laid end to end, M in all, and repeated r times: slot s of M r is
  layer s mod M. A genome is {'indicator': (M r,) f32, 'scales': ...}: the path
  goes through the slots whose indicator is above 0, in order, between the first
  and the last layer of A, the first source; a path that is longer than the cap
  lacks what would come behind it. The stream that enters layer j from layer i
  is multiplied by W_ij; that which enters the first hop is not. W is the leaf
  `scales`: (M, M), or (H - 1,) by hop, or the weights of a network whose zeros
  mean 1; a genome has no such leaf where W is 1. Everything but layers is A's.

  Attributes:
    names: of the experts among the sources.
    sources: of the K models.
  """

  exports, takes, bare = 'path', ('adapters', 'models'), False
  options = layer_path_options.LayerPathOptions
  layers, decodes, learns = None, True, False

  def __init__(self, plain: space.Space, **given: Any):
    """Makes the space of the base and experts of a space of them.

    Args:
      plain: a space of adapters, or of weights.
      **given: values of `LayerPathOptions`.

    Raises:
      ValueError: a source is no expert, or the options do not suit the models.
    """
    self.told = self.check(**given)
    self._plain, base = plain, plain.model()
    self.sources = sources(self.told, plain.names)
    self.names = tuple(
      name for name in self.sources if name != layer_path_options.BASE
    )
    if base.config.stacks:
      raise ValueError(
        f'Got paths through layers of a {base.config.model_type} model, whose '
        'layers differ in shape; expected one whose layers are alike, or '
        'another space, such as adapters, gates, merged or weights.'
      )
    each, depth = base.config.num_layers, len(self.sources)
    if self.told.pinned and each < 2:
      raise ValueError(
        f'Got a model of {each} layer, whose first and last one would be one; '
        'expected at least 2, or pinned=False.'
      )
    self._each, self._size = each, each * depth
    self.slots = self._size * self.told.repeats
    self.cap = min(self.told.cap or 2 * each, self.slots + 2)
    if self.cap < each:
      raise ValueError(
        f'Got cap {self.cap} for paths that begin with the {each} layers of A; '
        'expected as many at least.'
      )
    first, *others = (self._source(name) for name in self.sources)
    layers = jax.tree.map(
      # By way of the host, a leaf at a time.
      lambda *leaves: jnp.asarray(np.concatenate([*map(np.asarray, leaves)])),
      first['layers'],
      *(other['layers'] for other in others),
    )
    params = {**first, 'layers': layers}
    config = dataclasses.replace(
      base.config,
      num_layers=self._size,
      layer_types=base.config.layer_types * depth,
    )
    self._model = space.Model(config, params, base.folder, hops=self.cap)

  def _source(self, name: str) -> dict[str, Any]:
    """Returns the parameters of a source."""
    base = self._plain.model().params
    if name == layer_path_options.BASE:
      return base
    n = self._plain.names.index(name)
    expert = jax.tree.map(lambda leaf: leaf[n], self._plain.experts())
    member = self._plain.express(expert)
    if isinstance(member, expression.Weights):
      return member.params
    return jax.jit(expression.fold)(base, member)

  @classmethod
  def check(cls, **given: Any) -> layer_path_options.LayerPathOptions:
    """Returns the options, if they can be of any model."""
    option_checks.check(given, cls.options, what='layer_path')
    return cls.options(**given)

  @classmethod
  def configured(cls, **given: Any) -> type['LayerPathSpace']:
    """Returns the class, once the options are checked."""
    cls.check(**given)
    return cls

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | space.Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
    **given: Any,
  ) -> 'LayerPathSpace':
    """Makes the space of files; without a type they are loaded in f32."""
    dtype = jnp.float32 if dtype is None else dtype
    told = cls.check(**given)
    sources(told, folders.expert_names([*adapters, *models]))
    if models:
      files = base, adapters, models, dtype
      plain = weight_genomes.WeightSpace.from_files(*files)
    else:
      config = space.load_base(base, None).config
      loaded = peft.load_adapters(adapters, config)
      base = space.load_base(base, dtype)
      plain = adapter_genomes.AdapterSpace(loaded, base)
    return cls(plain, **given)

  @property
  def plain(self) -> space.Space:
    return self._plain

  def model(self) -> space.Model:
    """Returns A with the layers of all sources, M in all."""
    return self._model

  def experts(self) -> stack.Population:
    """Returns the paths through the layers of one expert each, W = 1."""
    return stack.stack([self._alone(name) for name in self.names])

  def base(self) -> stack.Genome:
    """Returns the path through A, W = 1."""
    return self._alone(self.sources[0])

  def _alone(self, name: str) -> stack.Genome:
    """Returns the genome of the first slots of a source alone, W = 1."""
    start = self.sources.index(name) * self._each
    indicator = np.full(self.slots, self.told.off * _DEVIATION, np.float32)
    indicator[start : start + self._each] = self.told.on * _DEVIATION
    genome = {INDICATOR: jnp.asarray(indicator)}
    scales = self._scales()
    return genome if scales is None else {**genome, SCALES: scales}

  def _scales(self) -> Any:
    """Returns the leaf or leaves that stand for W = 1, or None."""
    hidden = self.told.hidden
    match self.told.scales:
      case 'matrix':
        return jnp.ones((self._size, self._size), jnp.float32)
      case 'hop':
        return jnp.ones((self.cap - 1,), jnp.float32)
      case 'network':
        shapes = {'inner': (4, hidden), 'outer': (hidden + 1,)}
        return {k: jnp.zeros(shape, jnp.float32) for k, shape in shapes.items()}
    return None

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    """Returns A plus weighted differences of the experts' genomes from it."""
    rows = np.asarray(weights, np.float64) * np.asarray(factors)[:, None]

    def combine(base, experts):
      base, experts = (np.asarray(leaf, np.float64) for leaf in (base, experts))
      mixed = base + np.tensordot(rows, experts - base, 1)
      return jnp.asarray(mixed, jnp.float32)

    return jax.tree.map(combine, self.base(), self.experts())

  def _centre(self, count: int) -> stack.Population:
    """Returns the paper's first mean, the path through A, so many times."""
    return stack.stack([self.base()] * count)

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    """Draws one genome ~ N(A, 0.1), within the bounds.

    Options, which other spaces have for their mixes, change nothing.
    """
    del options
    mean, (low, high) = self.base(), self.bounds()
    leaves, structure = jax.tree.flatten(mean)
    keys = jax.tree.unflatten(structure, jax.random.split(key, len(leaves)))
    return jax.tree.map(
      lambda mean, key, low, high: jnp.clip(
        mean + _DEVIATION * jax.random.normal(key, mean.shape), low, high
      ),
      mean,
      keys,
      low,
      high,
    )

  def bounds(self) -> tuple[stack.Genome, stack.Genome]:
    """Returns indicators of -1 and 1, and all others 1 around their first."""
    middle = self.base()
    middle[INDICATOR] = jnp.zeros_like(middle[INDICATOR])
    return tuple(
      jax.tree.map(lambda leaf, by=by: leaf + by, middle) for by in (-1.0, 1.0)
    )

  def deviation(self) -> float:
    """Returns 0.1, of which the first indicators are multiples."""
    return _DEVIATION

  def binary(self) -> stack.Genome:
    """Returns a tree of bools, which leaves count by their sign alone."""
    return {
      name: jax.tree.map(lambda _, name=name: name == INDICATOR, leaf)
      for name, leaf in self.base().items()
    }

  def express(self, genome: stack.Genome) -> expression.Path:
    """Returns the hops (H,) and their scales; H is the cap on the length."""
    hops = self._hops(genome[INDICATOR])
    before = jnp.maximum(hops[:-1], 0)
    entered = jnp.maximum(hops[1:], 0)
    own = genome.get(SCALES)
    match self.told.scales:
      case 'matrix':
        scales = own[before, entered]
      case 'hop':
        scales = own
      case 'network':
        scales = self._network(own, before, entered)
      case _:
        scales = jnp.ones(self.cap - 1, jnp.float32)
    scales = jnp.concatenate([jnp.ones(1, jnp.float32), scales])
    return expression.Path(hops, jnp.where(hops >= 0, scales, 1.0))

  decoded = express

  def _hops(self, indicator: jax.Array) -> jax.Array:
    """Returns layers (H,) i32, -1 behind the last one."""
    slot = jnp.arange(self.slots, dtype=jnp.int32)
    layer, used = slot % self._size, indicator > 0
    first, last, pinned = 0, self._each - 1, int(self.told.pinned)
    if pinned and self.told.reuse:
      # Not beside the same layer at an end.
      head = jnp.argmax(used)
      tail = self.slots - 1 - jnp.argmax(used[::-1])
      used &= ~((slot == head) & (layer == first))
      used &= ~((slot == tail) & (layer == last))
    elif pinned:
      used &= (layer != first) & (layer != last)
    room = self.cap - 2 * pinned
    place = jnp.cumsum(used, dtype=jnp.int32) - 1
    place = jnp.where(used & (place < room), place + pinned, self.cap)
    hops = jnp.full(self.cap, -1, jnp.int32).at[place].set(layer, mode='drop')
    if pinned:
      count = jnp.minimum(jnp.sum(used, dtype=jnp.int32), room)
      hops = hops.at[0].set(first).at[count + 1].set(last)
    return hops

  def _network(self, own, before, entered):
    """Returns 1 + pi(i, j, t), a network of both layers and the hop."""
    middle = (self._size - 1) / 2
    hop = jnp.arange(1, self.cap, dtype=jnp.float32)
    given = jnp.stack(
      [
        before.astype(jnp.float32) / middle - 1,
        entered.astype(jnp.float32) / middle - 1,
        2 * hop / self.cap - 1,
        jnp.ones(self.cap - 1, jnp.float32),
      ],
      axis=-1,
    )
    inner = jnp.tanh(given @ own['inner'])
    return 1 + inner @ own['outer'][:-1] + own['outer'][-1]

  @functools.cached_property
  def _decode(self) -> Any:
    return jax.jit(self.express)

  def penalties(self, population: stack.Population) -> np.ndarray | None:
    """Returns (P,) f32 that fitness is less for long paths; None for none."""
    if not self.told.penalty:
      return None
    hops = sharding.to_host(jax.vmap(self._hops)(population[INDICATOR]))
    beyond = np.maximum((hops >= 0).sum(axis=1) - self._each, 0)
    return (self.told.penalty * beyond).astype(np.float32)

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns the path as `hops`: of each its source, layer and scale, if any.

    `experts` says which share of the hops is of each; a scale that is not
    finite is None.
    """
    hops, scales = self._path(genome)
    source, layer = hops // self._each, hops % self._each
    shares = np.bincount(source, minlength=len(self.sources))
    shares = shares / max(1, len(hops))
    return {
      'sources': ','.join(self.sources),
      'length': len(hops),
      'hops': ' '.join(
        f'{self.sources[k]}:{i}' + (f'*{number(scale)}' if scale != 1 else '')
        for k, i, scale in zip(source, layer, scales, strict=True)
      ),
      'experts': {
        name: {'weight': float(shares[self.sources.index(name)])}
        for name in self.names
      },
    }

  def _path(self, genome):
    """Returns the hops of a genome and their scales, without what is behind."""
    path = sharding.to_host(self._decode(genome))
    there = path.hops >= 0
    return path.hops[there], path.scales[there]

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a path folder; see `models.path_files`."""
    return self._write(genome, folder, path_files.save_path)

  def export_model(
    self, genome: stack.Genome, folder: str | os.PathLike, dtype: Any = None
  ) -> pathlib.Path:
    """Writes one member as a model folder with a layer for every hop.

    Raises:
      ModelError: a scale is 0, or what they come to is beyond what a model can
        hold; see `path_files.unroll`.
    """
    return self._write(genome, folder, path_files.save_unrolled, dtype=dtype)

  def _write(self, genome, folder, save, **options):
    space.check_genome(self, genome)
    for leaf in jax.tree.leaves(genome):
      if not np.isfinite(leaf).all():
        raise ModelError(
          'The genome has NaN or infinite numbers; expected finite ones. '
          'Nothing is written.'
        )
    hops, scales = self._path(genome)
    model = self._model
    return save(
      folder, model.params, model.config, hops, scales, model.folder, **options
    )


def sources(
  told: layer_path_options.LayerPathOptions, experts: Sequence[str]
) -> tuple[str, ...]:
  """Returns the names of the sources, A's first.

  Raises:
    ValueError: one is neither an expert nor the base, or there is one alone.
  """
  base = layer_path_options.BASE
  chosen = merged_options.names(told.sources) or (base, *experts[:1])
  for name in chosen:
    if name not in (base, *experts):
      raise ValueError(
        f'Got sources {told.sources!r} with {name!r}'
        + lookup.expected(name, [base, *experts])
      )
  if len(chosen) < 2 or len(set(chosen)) < len(chosen):
    raise ValueError(
      f'Got sources {told.sources!r}; expected at least two different ones of '
      f'{", ".join([base, *experts])}.'
    )
  return chosen
