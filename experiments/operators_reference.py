"""Writes what of the documentation is made from declarations.

  python -m experiments.operators_reference

writes evojax_llm/operators/README.md, the reference page of the operators, and
the tables of options in experiments/<system>/README.md, each between a line
'<!-- options: NAME -->' and '<!-- end -->'. Tests say when one is out of date.
"""

from collections.abc import Sequence
import pathlib
import re

from evojax_llm import operators
from evojax_llm import options
from evojax_llm.commands import command
from evojax_llm.operators import operator
from evojax_llm.operators.merges.registry import MERGES
from evojax_llm.strategies import registry as strategies

PAGE = pathlib.Path(operators.__file__).with_name('README.md')

_HEAD = """# Operators

Pure functions on genomes, written for one member or one set of parents and
lifted with `vmap`. This page is made from `registry.py` by
`python -m experiments.operators_reference`; how fast each is, is measured by
`python -m experiments.benchmark_operators`.

Parameters are numbers that a sweep may vary without recompilation, with their
default and the range that makes sense for a search; with a star, one for each
parent. What an operator cannot have (a density is a share) is refused where it
is known; merges cut it inside of a program. Options are static, with their
default.

`from evojax_llm.operators import ...` gives all of them by these names; merges
of genomes are `merge('slerp', [a, b])` and `merge_population`. Genomes of a
space are stacked by layer: with `layers=space.layers` each layer is merged and
mutated on its own, without it every leaf is one tensor. A merge of your own is
a function of one tensor and an entry:

```python
from evojax_llm.operators import Merge
from evojax_llm.operators import Parameter


def pull(parents, *, t):
  return parents[0] + t * (parents[1] - parents[0])


T = Parameter('t', 0.5, 'how far')
PULL = Merge('pull', pull, 'me', (T,), parents=(2, 2))
```

`'my_module:PULL'` is then a name wherever the name of a merge is given.
"""
_SEES = ('fitness', 'objectives', 'scores')
_KINDS = {
  'merge': (
    'Merges (crossover)',
    'One child from parents. Applied to genomes by `merge` and to populations '
    'by `merge_population`; parameters may differ by member, layer and module. '
    '`base` says whether a base genome is needed beside the parents. '
    'Adapters are merged factor by factor.',
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
    'Indices of members, from the fitness of all (P,), from objectives (P, K) '
    'or from scores of each example (P, items). Whatever the fitness, the '
    'indices are valid; failed members come last. Fitness that is NaN or '
    'infinite is that of a failed member. `roulette` shifts all by the lowest '
    'fitness if that is negative; zeros are drawn after what is above zero.',
  ),
}
_EXACT = (
  'Merges of whole adapters',
  'Not tensor by tensor, so not a name for `merge`, strategies or recipes: '
  'call `exact_linear(parents, weights=...)` with a list of adapters, or with '
  'leaves (k, ...). `lora_algebra` has exact sums, compression and its error.',
)


def page() -> str:
  """The whole page."""
  lines = [_HEAD]
  for kind in operator.KINDS:
    title, words = _KINDS[kind]
    lines += [f'## {title}', '', words, '']
    ops = [op for op in operators.OPERATORS if op.kind == kind]
    apart = [op for op in ops if kind == 'merge' and op.name not in MERGES]
    lines += _kind(kind, [op for op in ops if op not in apart])
    if apart:
      lines += [f'### {_EXACT[0]}', '', _EXACT[1], '', *_kind(kind, apart)]
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
      cells += [next(name for name in _SEES if name in op.signature)]
    cells += [
      '; '.join(map(_parameter, op.parameters.values())),
      '; '.join(map(_option, op.options.values())),
      'yes' if op.draws else '',
      op.source,
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return [*lines, '']


def _parents(op):
  if op.most is None:
    return 'any' if op.least == 1 else f'{op.least} or more'
  return str(op.most)


def _parameter(parameter):
  star = '*' if parameter.per_model else ''
  low, high = parameter.span
  return (
    f'`{parameter.name}`{star} {parameter.default:g} ({low:g} to {high:g}): '
    f'{_text(parameter.text)}'
  )


def _option(option):
  others = [value for value in option.choices if value != option.default]
  allowed = ' or '.join(map(str, [option.default, *others]))
  if not others:
    allowed += f' ({option.allowed})'
  return f'`{option.name}` {allowed}: {_text(option.text)}'


def _text(words):
  return ' '.join(words.split()).replace('|', '\\|')


_TABLE = re.compile(r'<!-- options: (\S+) -->\n.*?<!-- end -->\n', re.DOTALL)


def with_tables(page: str) -> str:
  """Returns a Markdown page with the tables of options written anew."""

  def write(found: re.Match[str]) -> str:
    table = options.table(strategies.options(found[1]))
    return f'<!-- options: {found[1]} -->\n{table}<!-- end -->\n'

  return _TABLE.sub(write, page)


def main(_: Sequence[str]) -> None:
  PAGE.write_text(page())
  for path in pathlib.Path(__file__).parent.glob('*/README.md'):
    path.write_text(with_tables(path.read_text()))


if __name__ == '__main__':
  command.launch(main)
