"""The parameters of a recipe, resolved for one tensor.

Those of a model go before those of its slice, and these before those of the
whole merge; where none of the filters of one matches, the next is asked.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from evojax_llm.operators.merges import check
from evojax_llm.operators.merges import parameters
from evojax_llm.recipes.recipe import Recipe
from evojax_llm.recipes.recipe import Slice
from evojax_llm.recipes.recipe import Source


class Values:
  """The parameters of one recipe."""

  def __init__(self, recipe: Recipe):
    self._recipe, self._method = recipe, recipe.method
    self._checked: set[Any] = set()

  def operator(
    self, name: str, part: Slice, values: Mapping[str, Sequence[Any]]
  ) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Returns our numbers and options of one tensor.

    Args:
      name: of the tensor.
      part: its slice.
      values: by mergekit's name, those of `number` of each model.

    Raises:
      RecipeError: a value is out of its range, or the weights sum to zero.
    """
    method, merge = self._method, self._method.merge
    numbers, options = {}, {}
    for theirs, ours in method.numbers.items():
      found = [v for v in values[theirs] if v is not None]
      if not found:
        continue
      if not method.per_model(theirs):
        target = numbers if ours in merge.parameters else options
        target[ours] = found[0]
      else:
        default = merge.parameters[ours].default
        numbers[ours] = tuple(
          default if v is None else v for v in values[theirs]
        )
    if 'iterations' in options:
      options['iterations'] = self._whole('max_iter', options['iterations'])
    switches = {
      known: self._switch(known, default, name, part)
      for known, default in method.switches.items()
    }
    options |= method.options(switches)
    normalised = switches.get('normalize', switches.get('normalize_weights'))
    if normalised and method.divides:
      total = sum(numbers['weights'])
      if abs(total) < 1e-8:
        raise self._recipe.fail(
          'weight',
          f'the weights of {name} sum to {total:g}, and normalize divides by '
          'that. Set normalize: false, other weights, or filters without a '
          'default, which leave such tensors as they are.',
        )
    self._check_numbers(tuple(numbers.items()), tuple(options.items()))
    return numbers, tuple(sorted(options.items()))

  def _whole(self, key, value):
    if value != int(value):
      raise self._recipe.fail(key, f'{value:g}; expected a whole number.')
    return int(value)

  def _check_numbers(self, numbers, options):
    merge = self._method.merge
    if (numbers, options) in self._checked:
      return
    self._checked.add((numbers, options))
    try:
      check.check_values(merge, {n: np.asarray(v) for n, v in numbers})
      check.check_options(merge, dict(options))
    except ValueError as error:
      raise self._recipe.fail('parameters', str(error)) from None

  def _levels(self, key, part, source=None) -> Sequence[Any]:
    """The values that are given, those that go first in front."""
    given = [part.parameters, self._recipe.parameters]
    if source is not None:
      given.insert(0, source.parameters)
    return [level[key] for level in given if key in level]

  def number(
    self, key: str, name: str, t: float, part: Slice, source: Source | None
  ) -> float | None:
    """Returns a number for a tensor at depth t.

    None where none is given, or no filter matches.
    """
    for value in self._levels(key, part, source):
      found = parameters.read(key, value, name, np.float64(t))
      if found is not None:
        # The shortest decimals, so that messages say what was written.
        return float(str(found))
    return None

  def _switch(self, key, default, name, part) -> bool:
    for value in self._levels(key, part):
      for entry in value if isinstance(value, list) else [{'value': value}]:
        wanted = entry.get('filter') or '*'
        if wanted == '*' or wanted in name:
          return entry['value']
    return default

  def check_given(
    self, key: str, part: Slice, sources: Sequence[Source]
  ) -> None:
    """Refuses a model that has no value at all, not even behind a filter."""
    for source in sources:
      if source.model == self._recipe.base and self._method.base == 'model':
        continue  # A base without a weight is none of the models.
      if not self._levels(key, part, source):
        at = f'{source.where}.parameters' if key == 'weight' else 'parameters'
        raise self._recipe.fail(
          f'{at}.{key}',
          f'missing; {self._method.name} needs it. Give it there, or for all '
          "under 'parameters' outside.",
        )
