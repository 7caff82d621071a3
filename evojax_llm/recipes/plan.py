"""What a recipe comes to, tensor by tensor, known before a weight is read."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from evojax_llm.models.folders import listing
from evojax_llm.models.names import is_buffer
from evojax_llm.recipes import model_folder
from evojax_llm.recipes.model_folder import FLOATS
from evojax_llm.recipes.model_folder import ModelFolder
from evojax_llm.recipes.recipe import Recipe
from evojax_llm.recipes.recipe import Slice
from evojax_llm.recipes.recipe import Source
from evojax_llm.recipes.values import Values

# A tensor of a folder, by its name there.
Tensor = tuple[ModelFolder, str]
# Where a base stands that no slice lists.
_UNLISTED = 'base_model'
# Of indices and masks, which are no weights.
_INTEGERS = ('BOOL', 'I16', 'I32', 'I64', 'U16', 'U32', 'U64')


@dataclasses.dataclass(frozen=True)
class Output:
  """A tensor of the result.

  Attributes:
    name: its name.
    shape: its shape.
    dtype: what it is stored as, a name of safetensors.
    parents: what it is merged of; the only one where it is copied.
    base: what deltas are taken of, or None.
    values: numbers of the operator, one or one for each parent.
    options: static choices of the operator; None for a copy.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  parents: tuple[Tensor, ...]
  base: Tensor | None = None
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  options: tuple[tuple[str, Any], ...] | None = None

  @property
  def size(self) -> int:
    """Bytes in the result."""
    width = FLOATS[self.dtype].itemsize if self.dtype in FLOATS else None
    if width is None:
      folder, name = self.parents[0]
      return folder.tensors[name].size
    return math.prod(self.shape) * width

  @property
  def reads(self) -> int:
    """Bytes that are read for it."""
    given = (*self.parents, *([self.base] if self.base else ()))
    return sum(folder.size(name) for folder, name in given)


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is done for a recipe.

  Attributes:
    recipe: it.
    like: the folder whose names, config.json and files the result has.
    folders: all that are read, by what the recipe calls them.
    layers: of the result, each the layers it is made of.
    outputs: its tensors.
    notes: what a user should know.
  """

  recipe: Recipe
  like: ModelFolder
  folders: Mapping[str, ModelFolder]
  layers: tuple[tuple[tuple[ModelFolder, int], ...], ...]
  outputs: tuple[Output, ...]
  notes: tuple[str, ...]

  @property
  def size(self) -> int:
    """Bytes of the result's tensors."""
    return sum(output.size for output in self.outputs)


def build(recipe: Recipe) -> Plan:
  """Returns the plan of a recipe; reads the headers of its files alone.

  Raises:
    RecipeError: what the recipe asks for does not fit the folders.
    ModelError: a folder is none, or not whole.
  """
  return _Builder(recipe).plan()


def _of(part: Slice) -> str:
  """The key of a slice's list of models."""
  return part.sources[0].where.rpartition('[')[0]


class _Builder:
  """Resolves one recipe."""

  def __init__(self, recipe: Recipe):
    self._recipe, self._method = recipe, recipe.method
    refs = [s.model for part in recipe.slices for s in part.sources]
    if recipe.base:
      refs.insert(0, recipe.base)
    self._folders = {ref: ModelFolder(ref) for ref in dict.fromkeys(refs)}
    self._like = self._folders[refs[0]]
    self._slices = [self._with_base(part) for part in recipe.slices]
    self._notes: list[str] = []
    self._alone: list[str] = []
    self._values = Values(recipe)
    if recipe.unused:
      named = ', '.join(recipe.unused)
      self._notes.append(f'{named}: accepted, without effect here.')
    self._check_base()

  def _check_base(self):
    method, base = self._method, self._recipe.base
    if base is None and method.base in ('first', 'required'):
      why = (
        't = 0 is the base' if method.base == 'first' else 'deltas are of it'
      )
      raise self._recipe.fail(
        'base_model', f'missing; {method.name} needs one: {why}.'
      )
    for part in self._slices:
      count = len(self._parents(part))
      least, most = method.merge.least, method.merge.most
      if count < least or (most is not None and count > most):
        wanted = f'{least} or more' if most is None else f'{least}'
        beside = {'first': ', the base one of them', 'model': ''}.get(
          method.base, ' beside the base'
        )
        raise self._recipe.fail(
          _of(part),
          f'{count} models for {method.name}; expected {wanted}{beside}.',
        )

  def _with_base(self, part: Slice) -> Slice:
    """The slice with the base among its sources, where it plays a part."""
    base, ranges = self._recipe.base, {s.layers for s in part.sources}
    if base is None or any(s.model == base for s in part.sources):
      return part
    if self._method.base == 'model' and ranges != {None}:
      return part
    if len(ranges) > 1:
      raise self._recipe.fail(
        _of(part),
        f'layers differ, and which ones of {base} belong to them is not said; '
        'list it among the sources.',
      )
    added = Source(base, ranges.pop(), {}, _UNLISTED)
    return dataclasses.replace(part, sources=(*part.sources, added))

  def _parents(self, part: Slice) -> list[Source]:
    """The models of a slice that the operator takes."""
    base, role = self._recipe.base, self._method.base
    if role == 'model':
      alone = self._method.merge.most == 1
      return [s for s in part.sources if s.where != _UNLISTED or not alone]
    rest = [s for s in part.sources if s.model != base]
    listed = [s for s in part.sources if s.model == base]
    return [*listed, *rest] if role == 'first' else rest

  def _lead(self, part: Slice) -> Source:
    """The base, or the first model where there is none."""
    listed = [s for s in part.sources if s.model == self._recipe.base]
    return (listed or part.sources)[0]

  def plan(self) -> Plan:
    """Returns the plan."""
    outputs, layers = [], []
    for part in self._slices:
      for t, at in self._depths(part):
        outputs += self._layer(part, t, at, len(layers))
        layers.append(
          tuple(
            (self._folders[s.model], n)
            for s, n in zip(part.sources, at, strict=True)
          )
        )
    outputs = [*self._outside(), *outputs]
    if self._alone:
      self._notes.append(
        f'{len(self._alone)} tensors that {self._like.name} alone has are '
        f'written through: {listing(self._alone)}.'
      )
    if not outputs:
      raise self._recipe.fail('models', 'the folders hold no tensors.')
    return Plan(
      self._recipe,
      self._like,
      self._folders,
      tuple(layers),
      tuple(outputs),
      tuple(self._notes),
    )

  def _depths(self, part: Slice) -> Iterator[tuple[float, list[int]]]:
    """How deep each layer is in its slice, and which it is of each source."""
    firsts, counts = [], []
    for source in part.sources:
      folder = self._folders[source.model]
      first, end = source.layers or (0, folder.layers)
      if end > folder.layers:
        raise self._recipe.fail(
          f'{source.where}.layer_range',
          f'[{first}, {end}]; {folder.name} has {folder.layers} layers.',
        )
      firsts.append(first)
      counts.append(end - first)
    if len(set(counts)) > 1:
      named = ', '.join(
        f'{self._folders[s.model].name} {n}'
        for s, n in zip(part.sources, counts, strict=True)
      )
      raise self._recipe.fail(
        _of(part),
        f'the numbers of layers differ: {named}; expected equal ones. Choose '
        'layers with slices and layer_range.',
      )
    for n in range(counts[0]):
      t = 1.0 if counts[0] == 1 else n / (counts[0] - 1)
      yield t, [first + n for first in firsts]

  def _layer(self, part, t, at, number) -> Iterator[Output]:
    """The tensors of one layer of the result."""
    layer = {id(s): n for s, n in zip(part.sources, at, strict=True)}
    lead = self._lead(part)
    expected = self._folders[lead.model].inside[layer[id(lead)]]
    for rest in expected:

      def tensor(source, rest=rest):
        own = self._folders[source.model]
        return own, f'{own.stack}.{layer[id(source)]}.{rest}'

      name = f'{self._like.stack}.{number}.{rest}'
      if is_buffer(name):  # Of old checkpoints; not all of them have it.
        yield self._copy(name, tensor(lead))
      else:
        yield self._output(name, part, t, tensor)
    for source in part.sources:
      own = self._folders[source.model]
      extra = {
        rest
        for rest in set(own.inside[layer[id(source)]]).difference(expected)
        if not is_buffer(f'.{rest}')
      }
      if extra:
        raise self._recipe.fail(
          source.where,
          f'{own.name} has tensors in its layers that '
          f'{self._folders[lead.model].name} lacks: {listing(sorted(extra))}. '
          'They are models of different kinds.',
        )

  def _outside(self) -> Iterator[Output]:
    """The tensors outside of the layers: of the first slice, or the last."""
    like = self._like
    end = f'{like.stack.rpartition(".")[0]}.'
    for name in like.outside:
      if model_folder.is_head(name) and like.tied:
        self._notes.append(f'{name} is the embedding, and is stored once.')
        continue
      # The end of the model goes with its last layers.
      last = model_folder.is_head(name) or (
        name.startswith(end) and re.search('norm|ln_f', name)
      )
      part = self._slices[-1 if last else 0]
      others = {s.model for s in part.sources} - {like.ref}
      if not any(self._folders[o].find(name) for o in others) and others:
        self._alone.append(name)
        yield self._copy(name, (like, name))
        continue

      def tensor(source, name=name):
        own = self._folders[source.model]
        return own, own.find(name) or name

      yield self._output(name, part, 0.0, tensor)
    for folder in self._folders.values():
      extra = [n for n in folder.outside if like.find(n) is None]
      heads = [n for n in extra if model_folder.is_head(n)]
      if like.tied and folder is not like:
        heads = [n for n in folder.outside if model_folder.is_head(n)]
        heads = [] if folder.tied else heads
      extra += [n for n in heads if n not in extra]
      if extra:
        self._notes.append(
          f'{folder.name} has tensors that {like.name} has no place for, which '
          f'are left out: {listing(extra)}.'
        )

  def _copy(self, name: str, tensor: Tensor) -> Output:
    """A tensor that no operator touches; `out_dtype` alone changes it."""
    folder, stored = tensor
    dtype = folder.dtype(stored)
    if self._recipe.out_dtype and dtype in FLOATS:
      dtype = self._recipe.out_dtype
    return Output(name, folder.tensors[stored].shape, dtype, (tensor,))

  def _output(self, name, part, t, tensor) -> Output:
    """The tensor of that name, merged of `tensor(source)` of its sources."""
    method = self._method
    lead = self._there(tensor(self._lead(part)), name)
    stored = lead[0].tensors[lead[1]]
    if stored.dtype in _INTEGERS or not stored.size:
      return self._copy(name, lead)
    sources = self._parents(part)
    # Filters of what a model has of its own look for its own names.
    names = {id(s): tensor(s)[1] for s in sources}
    if model_folder.is_head(name):  # of which some have the embedding
      names = {}
    values = {
      known: [
        self._values.number(
          known,
          names.get(id(s), name) if method.of_model(known) else name,
          *(t, part, s),
        )
        for s in sources
      ]
      for known in method.numbers
    }
    if 'weight' in method.needed:
      weights = values['weight']
      self._values.check_given('weight', part, sources)
      keep = [i for i, w in enumerate(weights) if w is not None]
      if not keep:
        return self._copy(name, lead)
      if len(keep) >= method.merge.least:
        sources = [sources[i] for i in keep]
        values = {n: [v[i] for i in keep] for n, v in values.items()}
      else:  # Of two, the one without a weight has none.
        values['weight'] = [w or 0.0 for w in weights]
    for known in method.needed:
      if known != 'weight':
        self._values.check_given(known, part, sources[:1])
        if values[known][0] is None:
          return self._copy(name, lead)
    parents = tuple(self._there(tensor(source), name) for source in sources)
    base = None
    if self._recipe.base and method.base in ('optional', 'required'):
      base = lead
    given = (*parents, *([base] if base else ()))
    types = [folder.dtype(stored) for folder, stored in given]
    if method.name == 'passthrough' and values['scale'][0] in (None, 1.0):
      dtype = self._recipe.out_dtype or self._recipe.dtype
      dtype = dtype if types[0] in FLOATS and dtype else types[0]
      folder, stored = parents[0]
      return Output(name, folder.tensors[stored].shape, dtype, parents)
    self._check_alike(name, given, types)
    folder, stored = given[0]
    dtype = types[0]
    if len(set(types)) > 1:  # Of two halves of a float neither has the other.
      dtype = 'F64' if 'F64' in types else 'F32'
    values, options = self._values.operator(name, part, values)
    return Output(
      name,
      folder.tensors[stored].shape,
      self._recipe.out_dtype or self._recipe.dtype or dtype,
      parents,
      base,
      values,
      options,
    )

  def _there(self, tensor: Tensor, name: str) -> Tensor:
    folder, stored = tensor
    if stored not in folder.tensors:
      raise self._recipe.fail(
        name,
        f'{folder.name} has no tensor {stored}, which {self._like.name} has; '
        'the folder is incomplete or of another kind of model.',
      )
    return tensor

  def _check_alike(self, name, given, types):
    for (folder, stored), kind in zip(given, types, strict=True):
      if kind not in FLOATS:
        raise self._recipe.fail(
          name,
          f'is stored as {kind} in {folder.tensors[stored].file}; only '
          f'{", ".join(FLOATS)} are merged. Leave it out with filters, or '
          'convert it.',
        )
    shapes = [folder.tensors[stored].shape for folder, stored in given]
    if len(set(shapes)) == 1:
      return
    sizes = ', '.join(
      f'{folder.name} {list(shape)}'
      for (folder, _), shape in zip(given, shapes, strict=True)
    )
    rows = {shape[:1] for shape in shapes}
    words = model_folder.is_head(name) or model_folder.is_embedding(name)
    if words and len(rows) > 1 and len({shape[1:] for shape in shapes}) == 1:
      raise self._recipe.fail(
        name,
        f'the vocabularies differ: {sizes}. Resize the models to one '
        'vocabulary first; or merge the layers alone, with every weight (or t) '
        "as [{filter: layers, value: ...}], so that the base's stays.",
      )
    raise self._recipe.fail(
      name, f'the shapes differ: {sizes}; expected equal ones.'
    )
