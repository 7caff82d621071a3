"""Random recipes of a small grammar are what numpy makes of them."""

import random

from tests.recipes import reference
from tests.recipes.making import check
from tests.recipes.making import made

CHEAP = (
  'linear',
  'slerp',
  'task_arithmetic',
  'ties',
  'passthrough',
  'nearswap',
)


def _value(draw, low=0.1, high=1.0):
  """A number, a gradient or filters."""
  kind = draw.randrange(5)
  if kind == 0:
    return [_number(draw, low, high) for _ in range(draw.randint(1, 3))]
  if kind == 1:
    entries = [
      {
        'filter': draw.choice(['mlp', 'self_attn', 'layers', 'norm']),
        'value': draw.choice([_number(draw, low, high), [low, high]]),
      }
      for _ in range(draw.randint(1, 2))
    ]
    return entries + draw.choice([[], [{'value': _number(draw, low, high)}]])
  return _number(draw, low, high)


def _number(draw, low, high):
  number = round(draw.uniform(low, high), 3)
  return draw.choice([number, str(number)])


def _random_recipe(draw, paths):
  base, *rest = paths
  method = draw.choice(CHEAP)
  count = {'passthrough': 1, 'slerp': 1, 'nearswap': 1}.get(method)
  chosen = draw.sample(rest, count or draw.choice([2, 3]))
  recipe = {'merge_method': method, 'parameters': {}}
  sources = []
  for model in chosen:
    own = {'weight': _value(draw)} if method in reference.NEEDS_WEIGHT else {}
    if method == 'ties' and draw.random() < 0.7:
      own['density'] = _value(draw)
    if method == 'passthrough' and draw.random() < 0.7:
      own['scale'] = _value(draw)
    sources.append({'model': model, 'parameters': own})
  if method in ('slerp', 'nearswap'):
    recipe['parameters']['t'] = _value(draw, 0.0)
  if method not in reference.NO_BASE:
    recipe['base_model'] = base
    sources.insert(draw.randrange(len(sources) + 1), {'model': base})
  if draw.random() < 0.5:
    return {**recipe, 'models': sources}
  recipe['slices'] = []
  for _ in range(draw.randint(1, 2)):
    start = draw.randrange(3)
    end = draw.randint(start + 1, 3)
    recipe['slices'].append(
      {'sources': [{**s, 'layer_range': [start, end]} for s in sources]}
    )
    if method in reference.NEEDS_WEIGHT and draw.random() < 0.5:
      recipe['slices'][-1]['parameters'] = {'weight': _value(draw)}
  return recipe


def test_random_recipes_are_those_of_numpy(models, tmp_path):
  draw = random.Random(0)
  for i in range(200):
    paths, tensors = models[draw.choice(['qwen2', 'gemma2'])]
    recipe = _random_recipe(draw, paths)
    check(made(tmp_path, recipe, str(i)), reference.folder(recipe, tensors))
