"""Members as mergekit recipes, where they can be said in one."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
import pathlib
from typing import Any

import yaml

import evojax_llm
from evojax_llm.models import folders
from evojax_llm.recipes import masks
from evojax_llm.recipes import yaml_merges
from evojax_llm.recipes.yaml_merges import Unsaid

FILE = 'mergekit.yaml'
# A change that is off by a smaller share of it is what f32 rounds.
_ROUNDING = 1e-4


class _Plain(yaml.SafeDumper):
  """Without anchors: what stands twice is written twice."""

  def ignore_aliases(self, data):
    return True


def write(
  folder: pathlib.Path,
  recipe: Mapping[str, Any],
  base: str | os.PathLike,
  adapters: Sequence[str | os.PathLike] = (),
  models: Sequence[str | os.PathLike] = (),
) -> str:
  """Writes a member's recipe as mergekit.yaml, if it is one of mergekit's.

  Args:
    folder: that the file is put in.
    recipe: of the member, as its space says it.
    base: folder of the base.
    adapters: folders of the experts that are adapters.
    models: folders of those that are models.

  Returns:
    A line for the model card: how it is used, or why there is none.
  """
  try:
    text = member(recipe, base, adapters, models)
  except Unsaid as why:
    return f'No recipe of mergekit makes it again: {why}.'
  (folder / FILE).write_text(text, encoding='utf-8')
  return (
    f'`{FILE}` is the recipe in the format of mergekit: `evojax-llm merge '
    f'--recipe={FILE} --out=FOLDER` makes the model again, in float32.'
  )


def member(
  recipe: Mapping[str, Any],
  base: str | os.PathLike,
  adapters: Sequence[str | os.PathLike] = (),
  models: Sequence[str | os.PathLike] = (),
) -> str:
  """Returns the text of the file; see `write`.

  Raises:
    Unsaid: no recipe of mergekit makes the member.
  """
  own = _reference(base)
  named = [*(f'{own}+{_reference(one)}' for one in adapters)]
  named += [_reference(one) for one in models]
  names = folders.expert_names([*adapters, *models])
  experts = dict(zip(names, named, strict=True))
  head = f'# A member of a search by evojax_llm {evojax_llm.__version__}.\n'
  if 'method' in recipe:
    from evojax_llm.models import hub

    config, _ = hub.load_config(base)
    said = yaml_merges.said(recipe, config, own, experts)
    if recipe.get('seed') is not None:
      head += masks.comment(recipe['seed'])
  else:
    said = _linear(_weights(recipe), own, experts)
  return head + yaml.dump(said, None, _Plain, sort_keys=False)


def _reference(folder: str | os.PathLike) -> str:
  """What recipes call a folder: a name of the hub, or a path."""
  name = folders.model_name(folder)
  path = os.path.abspath(os.path.expanduser(folder))
  found = name if '/' in name else path
  if '+' in found:
    raise Unsaid(f"'+' in {found} is what stands before an adapter in a recipe")
  return found


def _weights(recipe: Mapping[str, Any]) -> dict[str, float]:
  """Weights of the changes of the experts, by name.

  Raises:
    Unsaid: the member is no weighted sum of them.
  """
  if 'unexplained' in recipe:
    left = recipe['unexplained']
    if left is None or left > _ROUNDING:
      apart = '' if left is None else f', and {left:.2g} of its change is not'
      raise Unsaid(f'it is no weighted sum of the experts{apart}')
    # What is left of a fit is noise beyond these digits.
    found = {k: round(v['weight'], 7) for k, v in recipe['experts'].items()}
  elif 'weights' in recipe:
    found = recipe['weights']
  elif 'hops' in recipe:
    raise Unsaid('it is a path through layers; export --merged unrolls it')
  else:
    raise Unsaid('its space has no words for it')
  if not all(w is not None and math.isfinite(w) for w in found.values()):
    raise Unsaid('one of its weights is not finite')
  return found


def _linear(
  weights: Mapping[str, float], base: str, experts: Mapping[str, str]
) -> dict[str, Any]:
  """The base and a weighted sum of changes of it."""
  used = {name: float(w) for name, w in weights.items() if w}
  if unknown := sorted(used.keys() - experts.keys()):
    raise Unsaid(f'{unknown[0]} is in no folder of its own')
  if not used:
    return {
      'merge_method': 'passthrough',
      'models': [{'model': base}],
      'dtype': 'float32',
    }
  return {
    'merge_method': 'task_arithmetic',
    'base_model': base,
    'models': [
      {'model': experts[name], 'parameters': {'weight': weight}}
      for name, weight in used.items()
    ],
    'dtype': 'float32',
  }
