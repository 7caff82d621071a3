"""The contract of genome spaces: how a genome is made, expressed and exported.

A population is a pytree whose leaves have a leading P; a genome is the same
tree without it. A space gives meaning to genomes: the engine asks it for the
parameters that its members share (`model`) and for what tells one member from
them (`express`), strategies and runs for the rest.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any
from typing import Protocol
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import lookup
from evojax_llm import options
from evojax_llm.genomes import initial
from evojax_llm.genomes import recipe as recipe_lib
from evojax_llm.models import folders as folders_lib
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.expression import Expression
from evojax_llm.models.expression import LowRank
from evojax_llm.models.hub import Model
from evojax_llm.population import keys
from evojax_llm.population import leaves
from evojax_llm.population import stack

# By the value of the configuration; see `make_space`.
SPACES: dict[str, Any] = {
  'adapters': 'evojax_llm.genomes.adapters:AdapterSpace',
  'gates': 'evojax_llm.genomes.gates:GateSpace',
  'layer_path': 'evojax_llm.genomes.layer_path:LayerPathSpace',
  'merged': 'evojax_llm.genomes.merged:MergedSpace',
  'seeded': 'evojax_llm.genomes.seeded:SeededSpace',
  'singular': 'evojax_llm.genomes.singular:SingularSpace',
  'sparsified_gates': (
    'evojax_llm.genomes.sparsified_gates:SparsifiedGateSpace'
  ),
  'weights': 'evojax_llm.genomes.weights:WeightSpace',
}
# Names that spaces had, for messages.
_FORMER = {'coefficients': 'gates'}


class Expressing(Protocol):
  """What the engine asks of a space.

  Attributes:
    held: arrays that `express` reads beside a genome, or None. With some it
      takes them as a second argument, so that they are arguments of a program
      and not constants in it.
    decodes: whether `decoded` says what a genome stands for.
    learns: whether a gradient can move a genome.
    streams: whether `stream` expresses members, call by call, from what the
      device has no room for; `express` then says their shapes.
  """

  held: Any = None
  decodes: bool = False
  learns: bool = True
  streams: bool = False

  def model(self) -> Model:
    """Returns what all members share."""

  def express(self, genome: stack.Genome) -> Expression:
    """Returns what tells one member from the model; pure, may be mapped."""

  def base(self) -> stack.Genome | None:
    """Returns the genome of the model itself, or None if forms vary."""
    return None

  def decoded(self, genome: stack.Genome) -> Any:
    """Returns arrays; members that are equal in them are the same model."""

  def stream(
    self, genomes: Sequence[stack.Genome], call: Callable[..., Any]
  ) -> Expression:
    """Returns M members, leaves (M, ...).

    `call(run, *arguments)` compiles a function once for shapes, and runs it.
    """


class Space(Expressing, Protocol):
  """A genome space over N experts; a base class with what most spaces do alike.

  Attributes:
    names: (N,) of the experts.
    exports: 'adapter', 'model' or 'path', the kind of folder that `export`
      writes. Members of 'path' are unlike those of `plain`.
    takes: kinds of experts that `from_files` takes, of 'adapters' and 'models'.
    bare: whether the space exports where no parameters are loaded.
    options: dataclass of what else `from_files` takes by name, or None; with
      one, `configured` is there as well.
    layers: key of a genome below which leaves have the axis L, or None.
    shares_base: whether members use the parameters of `model`; where they do
      not, nothing is gained by an int8 base.
  """

  names: tuple[str, ...]
  exports: str = 'adapter'
  takes: tuple[str, ...] = ('adapters',)
  shares_base: bool = True
  bare: bool = True
  options: type | None = None
  layers: str | None = leaves.LAYERS

  @classmethod
  def from_files(
    cls,
    base: str | os.PathLike | Model,
    adapters: Sequence[str | os.PathLike] = (),
    models: Sequence[str | os.PathLike] = (),
    dtype: Any = jnp.float32,
  ) -> 'Space':
    """Makes the space of a base and experts on disk; see `make_space`.

    That is cls(adapters, model) of adapter folders.
    """
    del models
    config = load_base(base, None).config
    return cls(peft.load_adapters(adapters, config), load_base(base, dtype))

  @property
  def plain(self) -> 'Space':
    """The space of the plain mixes of its experts that a search has to beat."""
    return self

  def experts(self) -> stack.Population:
    """Returns the experts as genomes, leaves (N, ...)."""

  def base(self) -> stack.Genome:
    """Returns the genome that is expressed as the model without a change."""

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    """Returns C mixes of the experts, weights (C, N) f64.

    The change from the base is multiplied by factors (C,) f64.
    """

  def adapted(self, adapter: LowRank) -> stack.Genome | None:
    """Returns the base with an adapter, or None if no member is that."""
    del adapter
    return None

  def mix_rows(self, rows: Sequence[initial.Row]) -> stack.Population:
    """Makes the members of rows of experts."""
    return self.mix(np.stack([row.second for row in rows]), np.ones(len(rows)))

  def initial(
    self, recipe: Sequence[initial.Entry], size: int, key: jax.Array
  ) -> initial.Initial:
    """Makes an initial population; see `initial.make_initial`.

    The mass of a member, which 'zero' and 'scaled_average' choose, is that of
    its change from the base.
    """
    rows = initial.make_rows(len(self.names), recipe, size, key)
    parts = {
      name: [i for i, row in enumerate(rows) if row.operator == name]
      for name in initial.OF_SPACE
    }
    own = sum(parts.values(), [])
    mixed = [i for i in range(size) if i not in own]
    if not own:
      return initial.finish(rows, self.mix_rows(rows), key)
    made = [self.mix_rows([rows[i] for i in mixed])] if mixed else []
    if count := len(parts['centre']):
      made.append(self._centre(count))
    if drawn := parts['random']:
      drawn = jnp.asarray(drawn, jnp.int32)
      drawn = keys.keys_for(key, 0, drawn, 'random')
      made.append(jax.vmap(self.sample)(drawn))
    order = np.argsort(mixed + own)
    population = stack.take(stack.concatenate(*made), order)
    return initial.finish(rows, population, key)

  def _centre(self, count: int) -> stack.Population:
    """Returns the middle of the bounds, so many times."""
    bounds = self.bounds()
    if bounds is None:
      raise ValueError(
        "Got the recipe 'centre' for a space without bounds; expected one "
        'with, such as gates or merged.'
      )
    middle = jax.tree.map(lambda low, high: (low + high) / 2, *bounds)
    return stack.stack([middle] * count)

  def sample(
    self,
    key: jax.Array,
    concentration: float = 1.0,
    low: float = 0.0,
    high: float = 4.0,
  ) -> stack.Genome:
    """Draws one genome: a mix ~ Dirichlet(concentration), its mass ~ U(low,
    high).

    Draws are within `bounds` unless `high` is over 4.
    """

  def bounds(self) -> tuple[stack.Genome, stack.Genome] | None:
    """Returns the lowest and highest genome that `sample` draws, if known."""
    return None

  def binary(self) -> stack.Genome | None:
    """Returns a tree of bools, which leaves count by sign alone, or None."""
    return None

  def deviation(self) -> float:
    """Returns how far apart the experts are, for a search's first steps.

    The root mean square over all numbers of a genome of their standard
    deviation over the experts; of their distance from the base where there is
    one expert, or all are the same.
    """
    total, count = np.zeros(2), 0
    for leaf, base in zip(
      jax.tree.leaves(self.experts()), jax.tree.leaves(self.base()), strict=True
    ):
      # A layer at a time: models are stacked here.
      count += base.size
      leaf = np.asarray(leaf).reshape(len(leaf), *(base.shape or (1,)))
      for rows, own in zip(
        np.moveaxis(leaf, 1, 0), np.atleast_1d(np.asarray(base)), strict=True
      ):
        rows = np.asarray(rows, np.float64)
        apart = np.square(rows - np.asarray(own, np.float64)).mean(axis=0)
        total += rows.var(axis=0).sum(), apart.sum()
    spread, change = np.sqrt(total / count)
    return float(spread or change)

  def penalties(self, population: stack.Population) -> np.ndarray | None:
    """Returns (P,) f32 that a search sees fitness less; None for nothing."""
    return None

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns what one member is in the terms of the space, as JSON holds it.

    A space says here what it can, such as weights by the experts' names, and
    the same of members that are equal in what it has `decoded`.
    """
    return recipe_lib.numbers(genome)

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a new folder, of the kind that `exports` says."""


@dataclasses.dataclass(frozen=True, eq=False)
class Expressed(Expressing):
  """Members that are expressed already: a genome is an `Expression`.

  Attributes:
    shared: what they have in common.
  """

  shared: Model

  def model(self) -> Model:
    """Returns what all members share."""
    return self.shared

  def express(self, genome: Expression) -> Expression:
    """Returns the genome."""
    return genome


def find_space(name: str, options: Mapping[str, Any] | None = None) -> Any:
  """Returns the class of a space of SPACES, or 'package.module:Object'.

  Of a space that has `options`, they tell which class it is.

  Raises:
    ValueError: there is no such space, or its options are none of it.
  """
  if name in _FORMER:
    raise ValueError(
      f'Got space {name!r}; expected one of {", ".join(SPACES)}. Did you mean '
      f'{_FORMER[name]!r}, as it is called now?'
    )
  found = lookup.find(name, SPACES, 'space')
  if not options:
    return found
  if getattr(found, 'options', None) is None:
    raise ValueError(
      f'Got options {sorted(options)} for the space {name!r}, which has none.'
    )
  return found.configured(**options)


# Those that a space holds, by what they were loaded from.
_loaded: weakref.WeakValueDictionary[Any, Model] = weakref.WeakValueDictionary()


def load_base(
  base: str | os.PathLike | Model, dtype: Any = jnp.float32
) -> Model:
  """Loads a model folder; with no dtype, its configuration alone.

  A model that is loaded already is returned as it is, and so is one of the same
  files that another space has, so that several spaces share its arrays.
  """
  if isinstance(base, Model):
    return base
  if dtype is None:
    return Model(hub.load_config(base)[0], None, base)
  folder = folders_lib.existing_folder(base, 'a model folder')
  stats = sorted((f.name, f.lstat()) for f in folder.iterdir())
  files = tuple((name, s.st_mtime_ns, s.st_size) for name, s in stats)
  key = str(base), str(folder), jnp.dtype(dtype), files
  model = _loaded.get(key)
  if model is None:
    model = Model(*hub.load_checkpoint(base, dtype), base)
    _loaded[key] = model
  return model


def check_genome(
  space: Expressing, genome: Any, population: bool = False
) -> None:
  """Refuses what is no genome of a space, or no population of them.

  The rank of adapter factors is free, and so is what a space takes whose `base`
  is None.

  Raises:
    ValueError: naming the leaf and the shapes.
  """

  def by_name(tree):
    paths = jax.tree.leaves_with_path(tree)
    return {leaves.name(path): (path, np.shape(leaf)) for path, leaf in paths}

  wanted, given = by_name(jax.eval_shape(space.base)), by_name(genome)
  what = 'population' if population else 'genome'
  for name in wanted and sorted(wanted.keys() ^ given.keys()):
    has = 'with a' if name in given else 'without the'
    raise ValueError(
      f'Got a {what} {has} leaf {name!r}; expected those of the space, such as '
      f'{", ".join(list(wanted)[:3])}.'
    )
  for name, (path, shape) in wanted.items():
    found, shape = given[name][1], (0,) * population + shape
    # That of the rank, which may be another one.
    free = -2 if leaves.is_second_factor(path) else -1
    free = len(shape) + free if leaves.module(path) != name else None
    fits = len(found) == len(shape) and all(
      one == other or axis in (free, 0 if population else None)
      for axis, (one, other) in enumerate(zip(found, shape, strict=True))
    )
    if not fits:
      form = str(shape).replace('(0', '(P', 1) if population else shape
      hint = (
        'Stack genomes with stack().'
        if population
        else 'Take one member with take().'
      )
      raise ValueError(
        f'Got a {what} whose leaf {name!r} has the shape {found}; expected '
        f'{form}, as in the space. {hint}'
      )


def make_space(
  name: str,
  base: str | os.PathLike | Model,
  adapters: Sequence[str | os.PathLike] = (),
  models: Sequence[str | os.PathLike] = (),
  dtype: Any = jnp.float32,
  **given: Any,
) -> Space:
  """Makes the space of a base and experts on disk.

  Args:
    name: see `find_space`.
    base: folder of the base, or the base where it is loaded already.
    adapters: PEFT adapter folders, one an expert.
    models: folders of models that were tuned from the base, the experts after
      those.
    dtype: of the parameters; None to load none, for a space that only exports.
    **given: options of a space that has some, such as method='ties' of merged.

  Raises:
    ValueError: the name is unknown, or the space does not take such experts.
    ModelError: a folder cannot be used.
  """
  found = find_space(name, given)
  for kind, folders in (('adapters', adapters), ('models', models)):
    options.check_list(kind, folders)
    if folders and kind not in found.takes:
      raise ValueError(
        f'Got experts that are {kind} for the space {name!r}; expected '
        f'{" or ".join(found.takes)}.'
      )
  return found.from_files(base, adapters, models, dtype, **given)
