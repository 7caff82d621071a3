"""mergekit's rules in numpy, written apart from the library.

One tensor at a time: parents x, base b (or None), weights w and the other
parameters p of the recipe, as D = x - b.
"""

import itertools

import numpy as np

NEEDS_WEIGHT = frozenset(
  'linear nuslerp multislerp task_arithmetic ties dare_linear dare_ties '
  'della_linear della breadcrumbs breadcrumbs_ties'.split()
)
NO_BASE = ('linear', 'karcher', 'passthrough')


def _lerp(x, y, t):
  nx, ny = np.linalg.norm(x), np.linalg.norm(y)
  cos = np.clip(np.vdot(x, y) / (nx * ny), -1, 1)
  if abs(cos) > 0.9995:
    return (1 - t) * x + t * y
  angle = np.arccos(cos)
  return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def _directions(xs, w):
  norms = [np.linalg.norm(x) for x in xs]
  mean = sum(a * x / n for a, x, n in zip(w, xs, norms, strict=True))
  length = sum(a * n for a, n in zip(w, norms, strict=True))
  return mean / np.linalg.norm(mean) * length


def _karcher(xs):
  norms = [np.linalg.norm(x) for x in xs]
  us = [x / n for x, n in zip(xs, norms, strict=True)]
  m = sum(us) / np.linalg.norm(sum(us))
  for _ in range(10):
    tangent = 0
    for u in us:
      dot = np.clip(np.vdot(u, m), -1, 1)
      angle = np.arccos(dot)
      if np.sin(angle) > 1e-5:
        tangent = tangent + angle / np.sin(angle) * (u - dot * m) / len(us)
    size = np.linalg.norm(tangent)
    if size < 1e-5:
      break
    m = np.cos(size) * m + np.sin(size) * tangent / size
  return m * np.mean(norms)


def _kept(d, skip, count):
  order = np.argsort(-np.abs(d).ravel(), kind='stable')
  mask = np.zeros(d.size, bool)
  mask[order[skip : skip + count]] = True
  return np.where(mask.reshape(d.shape), d, 0)


def _sparse(name, d, density, p):
  if name.startswith('breadcrumbs'):
    count = max(1, int(density * d.size))
    skip = min(int(p.get('gamma', 0.01) * d.size), d.size - count)
    return _kept(d, skip, count)
  if name == 'ties' and density < 1:
    return _kept(d, 0, max(1, int(density * d.size)))
  assert density == 1 or name == 'task_arithmetic'
  return d


def _task_vectors(name, xs, b, w, p):
  density = p.get('density') or [1.0] * len(xs)
  ds = [_sparse(name, x - b, d, p) for x, d in zip(xs, density, strict=True)]
  terms = [a * d for a, d in zip(w, ds, strict=True)]
  normalize = p.get('normalize', name in ('ties', 'della'))
  if name in ('ties', 'dare_ties', 'della', 'breadcrumbs_ties'):
    sign = np.where(sum(terms) >= 0, 1, -1)
    agree = [np.sign(t) == sign for t in terms]
    mixed = sum(np.where(a, t, 0) for a, t in zip(agree, terms, strict=True))
    total = sum(a * v for a, v in zip(agree, w, strict=True))
    if normalize:
      mixed = mixed / np.where(total == 0, 1, total)
  else:
    mixed = sum(terms)
    if normalize:
      mixed = mixed / sum(w)
  return b + p.get('lambda', 1.0) * mixed


def _sce(ds):
  energy = [np.mean(d**2) for d in ds]
  sign = np.where(sum(ds) >= 0, 1, -1)
  agree = [np.sign(d) == sign for d in ds]
  mixed = sum(
    e * np.where(a, d, 0) for e, a, d in zip(energy, agree, ds, strict=True)
  )
  shares = sum(e * a for e, a in zip(energy, agree, strict=True))
  return mixed / np.maximum(shares, 1e-6 * sum(energy))


def _ram(ds, plus):
  there = [np.abs(d) > 1e-5 for d in ds]
  count = sum(t.astype(int) for t in there)
  result = 0
  for mine, d in zip(there, ds, strict=True):
    alone, shared = np.sum(mine & (count == 1)), np.sum(mine & (count > 1))
    factor = 1.0
    if plus:
      factor = 1 + 0.1 * np.clip(shared / max(alone, 1e-5), 0, 0.2)
    scale = np.where(count == 1, factor, 1 / np.maximum(count, 1))
    result = result + np.where(mine, scale * d, 0)
  return result


def _stock(ds):
  cosines = [
    np.vdot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y))
    for x, y in itertools.combinations(ds, 2)
  ]
  c, k = np.mean(cosines), len(ds)
  return k * c / (1 + (k - 1) * c) * sum(ds) / k


def _fusion(x, b):
  def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) + 1e-8

  p, q = softmax(x), softmax(b)
  divergence = np.maximum((p * np.log(p / q)).sum(-1, keepdims=True), 0)
  score = np.abs(x - b) * divergence
  ordered = np.sort(score.ravel())
  low, middle, high = (
    ordered[int(part * (score.size - 1))] for part in (0.25, 0.5, 0.75)
  )
  return np.where(score >= middle + 1.5 * (high - low), x - b, 0)


def tensor(name, xs, b, p):
  """The merge of one tensor, f64."""
  xs = [x.astype(np.float64) for x in xs]
  b = None if b is None else b.astype(np.float64)
  w = p.get('weight')
  if name == 'passthrough':
    return p.get('scale', 1.0) * xs[0]
  if name == 'linear':
    total = sum(w) if p.get('normalize', True) else 1.0
    return sum(a * x for a, x in zip(w, xs, strict=True)) / total
  if name == 'karcher':
    return _karcher(xs)
  if name == 'slerp':
    return _lerp(b, xs[0], p['t'])
  if name in ('nuslerp', 'multislerp'):
    ds = xs if b is None else [x - b for x in xs]
    if name == 'nuslerp':
      made = _lerp(*ds, w[1] / (w[0] + w[1]))
    else:
      made = _directions(ds, np.asarray(w) / sum(w))
    return made if b is None else b + made
  if name in NEEDS_WEIGHT:
    return _task_vectors(name, xs, b, w, p)
  ds = [x - b for x in xs]
  if name == 'nearswap':
    share = np.clip(p['t'] / np.maximum(np.abs(ds[0]), 1e-6), 0, 1)
    return b + share * ds[0]
  return (
    b
    + {
      'sce': lambda: _sce(ds),
      'ram': lambda: _ram(ds, plus=False),
      'ramplus_tl': lambda: _ram(ds, plus=True),
      'model_stock': lambda: _stock(ds),
      'arcee_fusion': lambda: _fusion(xs[0], b),
    }[name]()
  )


def value(levels, name, t):
  """The first of several values that says something of a tensor."""
  for given in levels:
    if isinstance(given, list) and isinstance(given[0], dict):
      entries = [
        e
        for e in given
        if e.get('filter', '*') in ('*', None, name)
        or e.get('filter', '*') in name
      ]
      given = entries[0]['value'] if entries else None
    if isinstance(given, list):
      at = t * (len(given) - 1)
      i = min(int(at), len(given) - 2) if len(given) > 1 else 0
      j = min(i + 1, len(given) - 1)
      given = float(given[i]) * (1 - (at - i)) + float(given[j]) * (at - i)
    if given is not None:
      return given if isinstance(given, bool) else float(given)
  return None


def folder(recipe, tensors):
  """All tensors of a recipe; `tensors` by model, and by name."""
  method, base = recipe['merge_method'], recipe.get('base_model')
  first = base or _sources(recipe)[0][0]['model']
  like = tensors[first]
  found, number = {}, 0
  for part, outer in _slices(recipe):
    ranges = [s.get('layer_range') or [0, _layers(like)] for s in part]
    count = ranges[0][1] - ranges[0][0]
    for n in range(count):
      t = n / (count - 1) if count > 1 else 1.0
      lead = f'model.layers.{ranges[0][0] + n}.'
      model = tensors[part[0]['model']]
      for name in (k for k in model if k.startswith(lead)):
        rest = name.removeprefix(lead)
        out = f'model.layers.{number}.{rest}'

        def get(i, n=n, rest=rest, ranges=ranges, part=part):
          key = f'model.layers.{ranges[i][0] + n}.{rest}'
          return tensors[part[i]['model']][key]

        found[out] = _one(method, recipe, part, outer, get, out, t, base)
      number += 1
  slices = _slices(recipe)
  for name in (k for k in like if '.layers.' not in k):
    last = 'norm' in name or 'lm_head' in name
    part, outer = slices[-1 if last else 0]

    def get(i, name=name, part=part):
      return tensors[part[i]['model']][name]

    found[name] = _one(method, recipe, part, outer, get, name, 0.0, base)
  return found


def _layers(tensors):
  return 1 + max(int(k.split('.')[2]) for k in tensors if '.layers.' in k)


def _sources(recipe):
  return [part for part, _ in _slices(recipe)]


def _slices(recipe):
  if 'models' in recipe:
    return [(recipe['models'], {})]
  return [(s['sources'], s.get('parameters', {})) for s in recipe['slices']]


def _one(method, recipe, part, outer, get, name, t, base):
  overall = [outer, recipe.get('parameters', {})]
  keys = {
    k
    for level in [*overall, *(s.get('parameters', {}) for s in part)]
    for k in level
  }
  models = [
    i for i, s in enumerate(part) if s['model'] != base or method in NO_BASE
  ]
  bases = [i for i, s in enumerate(part) if s['model'] == base]
  lead = (bases or models)[0]
  p = {}
  for key in keys:
    if key in ('weight', 'density', 'gamma', 'epsilon'):
      continue
    given = value([level[key] for level in overall if key in level], name, t)
    own = part[models[0]].get('parameters', {})
    if given is None and key in own:
      given = value([own[key]], name, t)
    if given is not None:
      p[key] = given

  def each(key):
    return [
      value(
        [
          level[key]
          for level in [part[i].get('parameters', {}), *overall]
          if key in level
        ],
        name,
        t,
      )
      for i in models
    ]

  if method in NEEDS_WEIGHT:
    weights = each('weight')
    models = [i for i, w in zip(models, weights, strict=True) if w is not None]
    if not models:
      return get(lead)
    p['weight'] = each('weight')
  if method in ('slerp', 'nearswap') and 't' not in p:
    return get(lead)
  if 'density' in keys:
    p['density'] = [1.0 if d is None else d for d in each('density')]
  if 'gamma' in keys:
    p['gamma'] = each('gamma')[0]
  b = get(bases[0]) if bases and method not in NO_BASE else None
  return tensor(method, [get(i) for i in models], b, p)
