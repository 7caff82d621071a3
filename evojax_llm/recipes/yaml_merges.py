"""Recipes of the space `merged` in the words of mergekit."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
from typing import Any

from evojax_llm.genomes import merged_groups
from evojax_llm.models import names as names_lib
from evojax_llm.recipes.methods import METHODS
from evojax_llm.recipes.methods import Method

# Names of modules that differ from those of the stored tensors.
_STORED = {'embedder': 'embed_tokens', 'final_norm': '.norm.weight'}
_WHOLE = 'iterations'


class Unsaid(ValueError):
  """A member that no recipe of mergekit makes; says why."""


def said(
  recipe: Mapping[str, Any], config: Any, base: str, experts: Mapping[str, str]
) -> dict[str, Any]:
  """Returns a recipe for YAML.

  Args:
    recipe: of a member of the space `merged`.
    config: of the base.
    base: what it is called in the file.
    experts: likewise, by the names in the recipe.

  Raises:
    Unsaid: mergekit has no words for it.
  """
  return _Writer(recipe, config, base, experts).said()


class _Writer:
  """One recipe."""

  def __init__(self, recipe, config, base, experts):
    self._recipe, self._base, self._experts = recipe, base, experts
    self._layers = config.num_layers
    self._leaves = {'/'.join(x.path): x for x in names_lib.leaves(config)}
    self._method = _method(recipe)
    self._switches = _switches(self._method, recipe['options'])
    depth, self._module = merged_groups.parts(recipe['grouped'])
    self._kind, _, size = depth.partition(':')
    count = {
      'model': 1,
      'layer': self._layers,
      'layers': self._layers // int(size or 1),
      'knots': int(size or 1),
    }[self._kind]
    groups = recipe['groups']
    width = len(groups) // count
    self._cells = [
      groups[start : start + width] for start in range(0, len(groups), width)
    ]
    self._filters = self._find_filters()
    self._check()

  def said(self) -> dict[str, Any]:
    curve = self._kind in ('model', 'knots')
    found = {'merge_method': self._method.name}
    base = self._find_base()
    if base:
      found['base_model'] = base
    shared = self._switches
    if curve:
      cells = self._cells
      found['models'] = self._sources(cells)
      shared = {**shared, **self._shared(cells, base)}
    else:
      size = self._layers // len(self._cells)
      found['slices'] = []
      for d, cells in enumerate(self._cells):
        first, end = d * size, (d + 1) * size
        part = {'sources': self._sources([cells], (first, end))}
        if base and base not in [s['model'] for s in part['sources']]:
          part['sources'].append(_source(base, (first, end)))
        if own := self._shared([cells], base):
          part['parameters'] = own
        found['slices'].append(part)
    if shared:
      found['parameters'] = shared
    return {**found, 'dtype': 'float32'}

  def _sources(self, cells, layers=None):
    """The models of a slice, with the parameters of each."""
    sources = []
    for name in self._named(cells[0][0]):
      own = {
        theirs: self._value(cells, ours, name)
        for theirs, ours in self._method.numbers.items()
        if self._method.per_model(theirs)
      }
      sources.append(_source(self._experts[name], layers))
      if own:
        sources[-1]['parameters'] = own
    return sources

  def _named(self, cell):
    """The experts of a group, in order."""
    return cell.get('experts') or list(self._experts)

  def _shared(self, cells, base):
    """The parameters that the models of a slice have in common."""
    found = {}
    for theirs, ours in self._method.numbers.items():
      if ours == _WHOLE:
        found[theirs] = self._recipe['options'][_WHOLE]
      elif not self._method.per_model(theirs):
        found[theirs] = self._value(cells, ours, None, base)
    return found

  def _value(self, cells, name, expert, base=None):
    """A number, a gradient of them, or either by filters."""

    def number(cell):
      value = cell[name] if expert is None else cell[name][expert]
      if value is None:
        raise Unsaid(f'{name} is not finite')
      turned = name == 't' and base not in (None, self._first(cell))
      return 1.0 - value if turned and self._method.base == 'first' else value

    values = []
    for module in zip(*cells, strict=True):
      column = [number(cell) for cell in module]
      values.append(column[0] if len(set(column)) == 1 else column)
    if self._filters is None:
      return values[0]
    found = [
      {'filter': text, 'value': values[index]}
      if text
      else {'value': values[index]}
      for text, index in self._filters
    ]
    if self._recipe['components']:  # What is left of them stays the base's.
      found.append({'value': 0.0 if name in ('weights', 't') else values[0]})
    return found

  def _first(self, cell):
    return self._experts[self._named(cell)[0]]

  def _find_base(self):
    """What changes are of, or where a line between two models begins."""
    if self._method.base == 'required':
      return self._base
    if self._method.base != 'first':
      return None
    cells = [cell for row in self._cells for cell in row]
    common = set.intersection(*(set(self._named(cell)) for cell in cells))
    ordered = [name for name in self._named(cells[0]) if name in common]
    if not ordered:
      raise Unsaid('a recipe has one base, and its blocks of layers have none')
    return self._experts[ordered[0]]

  def _find_filters(self):
    """(text, index of the group) of each filter; None where there is one."""
    parts = self._recipe['components']
    if not (self._module or parts):
      return None
    modules = [cell['group'].split(', ')[-1] for cell in self._cells[0]]
    own = {name: self._of(name, modules) for name in self._leaves}
    own = {name: index for name, index in own.items() if index is not None}
    if parts:
      texts = [text.strip() for text in parts.split(',')]
      own = {n: i for n, i in own.items() if any(t in n for t in texts)}
    else:
      short = [(_STORED.get(m, m), i) for i, m in enumerate(modules)]
      short.sort(key=lambda pair: modules[pair[1]] == merged_groups.OTHER)
      short[-1] = None, short[-1][1]  # What no expert changes is there as well.
      if all(_matched(short, self._stored(n)) == i for n, i in own.items()):
        return short
    # Longer texts, each of one kind of tensor.
    found = [(self._text(name), index) for name, index in own.items()]
    if any(_matched(found, self._stored(n)) != own[n] for n in own):
      raise Unsaid(f'no filters are those of its groups {self._module!r}')
    return found if parts else [*found[:-1], (None, found[-1][1])]

  def _of(self, leaf, modules):
    """The index of the module that a leaf is in; None of what is not merged."""
    if not self._module:
      return 0
    kind, _, text = self._module.partition(':')
    found = merged_groups.module_of(leaf)
    if kind == 'filters':
      found = next(
        (one for one in text.split('/') if one in leaf), merged_groups.OTHER
      )
    return modules.index(found) if found in modules else None

  def _stored(self, leaf):
    return f'model.{self._leaves[leaf].name.format(0)}'

  def _text(self, leaf):
    _, inside, rest = self._leaves[leaf].name.partition('{}.')
    return f'.{rest}' if inside else f'.{self._leaves[leaf].name}'

  def _check(self):
    """Refuses what has numbers or parts that mergekit does not know."""
    method, recipe = self._method, self._recipe
    ours = {*method.numbers.values()}
    cells = [cell for row in self._cells for cell in row]
    for name, parameter in method.merge.parameters.items():
      values = [cell.get(name, parameter.default) for cell in cells]
      flat = [v for x in values for v in _flat(x)]
      if name not in ours and any(v != parameter.default for v in flat):
        raise Unsaid(f'{method.name} has no {name} there')
    scaled = method.name == 'linear' and not self._switches['normalize']
    scaled |= any(cell.get('scale', 1.0) != 1.0 for cell in cells)
    if scaled and all('+' in model for model in self._experts.values()):
      raise Unsaid(
        f'{method.name} scales all tensors there, and here those that the '
        'adapters change'
      )
    if self._kind == 'knots' and any('experts' in cell for cell in cells):
      raise Unsaid('between its knots, layers choose their models themselves')
    for row in self._cells:
      if any(cell.get('experts') != row[0].get('experts') for cell in row):
        raise Unsaid('its groups of modules merge other models each')
    used = {name for cell in cells for name in self._named(cell)}
    if unknown := sorted(used - self._experts.keys()):
      raise Unsaid(f'{unknown[0]} is in no folder of its own')
    normalised = any(
      self._switches.get(k) for k in ('normalize', 'normalize_weights')
    )
    if method.divides and normalised:
      sums = [sum(_flat(cell['weights'])) for cell in cells]
      if recipe['components'] or any(abs(total) < 1e-8 for total in sums):
        raise Unsaid('some of its weights sum to zero, and are to sum to one')
    # What is no component has no weight, which is the base where there is one.
    if recipe['components'] and not (
      method.base == 'required' and ours & {'weights', 't'}
    ):
      raise Unsaid(f'{method.name} merges all tensors, and it merges some')


def _source(model, layers=None):
  found = {'model': model}
  return found if layers is None else {**found, 'layer_range': list(layers)}


def _flat(value):
  return list(value.values()) if isinstance(value, Mapping) else [value]


def _matched(filters: Sequence[tuple[str | None, int]], name: str):
  """The group of the first filter that matches a tensor's name."""
  return next((i for text, i in filters if text is None or text in name), None)


def _method(recipe: Mapping[str, Any]) -> Method:
  name, on = recipe['method'], recipe['on']
  if on == 'factors':
    raise Unsaid(
      'the factors of adapters were merged one by one, and mergekit merges '
      "whole matrices (config.merged.on='weights' does)"
    )
  if recipe.get('rank'):
    raise Unsaid(f'its change was brought to rank {recipe["rank"]}')
  if on == 'exact' and name == 'linear':
    # Of changes, not of models.
    normalised = recipe['options'].get('normalize') == 'weights'
    name = 'linear' if normalised else 'task_arithmetic'
  for method in METHODS.values():
    if method.merge.name == name:
      return method
  raise Unsaid(f'{name} is none of its methods')


def _switches(method: Method, options: Mapping[str, Any]) -> dict[str, bool]:
  """mergekit's booleans that are these options of ours."""
  known = {n: o.default for n, o in method.merge.options.items()}
  wanted = {n: options.get(n, default) for n, default in known.items()}
  wanted.pop(_WHOLE, None)
  known.pop(_WHOLE, None)
  for values in itertools.product((True, False), repeat=len(method.switches)):
    switches = dict(zip(method.switches, values, strict=True))
    if {**known, **method.options(switches)} == wanted:
      return switches
  changed = [f'{n}={v}' for n, v in wanted.items() if v != known[n]]
  raise Unsaid(f'{method.name} has no {", ".join(changed)} there')
