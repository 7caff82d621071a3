"""The reference page of the operators, made from their table."""

import pathlib

from evojax_llm.operators import operator
from evojax_llm.operators import registry

PAGE = pathlib.Path(__file__).with_name('README.md')

_HEAD = """# Operators

Pure functions on genomes, written for one member or one set of parents and
lifted with `vmap`. This page is made from `table.py` by
`python -m experiments.operators_reference`; how fast each is, is measured by
`python -m experiments.benchmark_operators`.

Parameters are numbers that a sweep may vary without recompilation, with their
default and the range that makes sense; with a star, one for each parent. Those
of merges have bounds as well (a density is a share): what is beyond is refused
where it is known, and cut inside of a program. Options are static; the first
choice is the default.
"""
_KINDS = {
  'merge': (
    'Merges (crossover)',
    'One child from parents. Applied to genomes and populations by '
    '`merges.lift`; parameters may differ by member, layer and module. '
    '`base` says whether a base genome is needed beside the parents. '
    'Adapters are merged factor by factor; `lora_algebra` has their exact '
    'sums, compression and its error.',
  ),
  'mutation': (
    'Mutations',
    'A changed copy of one genome. Low-rank noise need not be formed: '
    '`low_rank.as_adapter` runs a member from its seed, and `low_rank.update` '
    'moves the centre by all of them.',
  ),
  'succession': (
    'Succession',
    "Members move by their own and the population's experience. The memories "
    'are in `succession`, restarts of stale particles in `restarts`.',
  ),
  'selection': (
    'Selection',
    'Places of members, from the fitness of all (P,), from objectives (P, K) '
    'or from scores of each example (P, items). Whatever the fitness, the '
    'places are valid; failed members come last.',
  ),
}


def page() -> str:
  """The whole page."""
  lines = [_HEAD]
  for kind in operator.KINDS:
    title, words = _KINDS[kind]
    lines += [f'## {title}', '', words, '']
    ops = [op for op in registry.OPERATORS if op.kind == kind]
    lines += _kind(kind, ops)
  return '\n'.join(lines)


def _kind(kind, ops):
  head = ['name', 'what it does']
  head += {'merge': ['parents', 'base'], 'selection': ['sees']}.get(kind, [])
  head += ['parameters', 'options', 'draws', 'source']
  lines = [f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
  for op in ops:
    cells = [f'`{op.name}`', _text(op.doc)]
    if kind == 'merge':
      cells += [_parents(op), '' if op.base == 'none' else op.base]
    elif kind == 'selection':
      cells += [op.sees]
    cells += [
      '; '.join(_parameter(*item) for item in op.parameters.items()),
      '; '.join(_option(*item) for item in op.options.items()),
      'yes' if op.draws else '',
      op.source,
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return [*lines, '']


def _parents(op):
  if op.most is None:
    return 'any' if op.least == 1 else f'{op.least} or more'
  return str(op.most)


def _parameter(name, parameter):
  star = '*' if parameter.per_model else ''
  span = f'{parameter.low:g} to {parameter.high:g}'
  return (
    f'`{name}`{star} {parameter.default:g} ({span}): {_text(parameter.doc)}'
  )


def _option(name, choices):
  return f'`{name}` ' + ', '.join(map(str, choices))


def _text(words):
  return ' '.join(words.split()).replace('|', '\\|')
