"""Results of benchmark_operators as Markdown, with what was wanted."""

import statistics

from experiments.benchmarks import tables

# Share of the limit that is wanted of each group.
WANTED = {'elementwise': 0.8, 'trimming': 0.25, 'random': 0.8}
# At least so many times as fast as mergekit; others at least as fast.
_FAST = ('linear', 'slerp', 'ties', 'dare_ties')
_FACTOR = 3.0
_HEAD = (
  'operator',
  'ms',
  'GB',
  'GB/s',
  '% of copy',
  'M words/s',
  '% of generator',
  'x mergekit',
  'x PEFT',
  'as wanted',
  'where the time goes',
)


def markdown(result: dict) -> str:
  """The result of benchmark_operators as a Markdown document."""
  lines = tables.heading(result, 'Operators')
  lines += [
    'Wanted of elementwise operators are '
    f'{WANTED["elementwise"]:.0%} of the copy, of those that trim by magnitude '
    f'{WANTED["trimming"]:.0%}, of those that draw {WANTED["random"]:.0%} of '
    "JAX's generator; of all to be no slower than their peer, and of "
    f'{", ".join(_FAST)} to be {_FACTOR:.0f} times as fast as mergekit. Where '
    'a row misses this, its time is told apart: what the copy needs for the '
    'bytes, the generator for the words, and the rest.',
    '',
  ]
  for size in result['sizes']:
    lines += _size(size)
  return '\n'.join(lines)


def _size(size):
  lines = [f'## {size["size"]}: {size["note"]}', '']
  for name, limit in size['limits'].items():
    draws = name.startswith('generator')
    unit, scale = ('M words/s', 1e6) if draws else ('GB/s', 1e9)
    lines.append(f'- {name}: {limit["per_second"] / scale:.1f} {unit}')
  lines += ['', f'| {" | ".join(_HEAD)} |', f'|{"---|" * len(_HEAD)}']
  for row in size['rows']:
    lines.append(f'| {" | ".join(cells(row, size["limits"]))} |')
  return [*lines, '']


def cells(row: dict, limits: dict) -> list[str]:
  """One row of the table, as text.

  Args:
    row: of `benchmark_operators.measure`.
    limits: of the same size.
  """
  taken = statistics.median(row['seconds'])
  speed, words = row['moved'] / taken, row['words'] / taken
  of_copy = speed / limits[row['copy']]['per_second']
  of_generator = words / max(
    limit['per_second']
    for name, limit in limits.items()
    if name.startswith('generator')
  )
  ratios = {
    peer: value / taken
    for peer, value in row['peers'].items()
    if not isinstance(value, str)
  }
  missed = misses(row, of_copy, of_generator, ratios)
  return [
    row['name'],
    f'{taken * 1e3:.1f}',
    f'{row["moved"] / 1e9:.2f}',
    f'{speed / 1e9:.1f}',
    f'{of_copy:.0%}',
    f'{words / 1e6:.0f}' if words else '',
    f'{of_generator:.0%}' if words else '',
    *(_ratio(row['peers'].get(peer), taken) for peer in ('mergekit', 'peft')),
    'no: ' + '; '.join(missed) if missed else 'yes',
    why(row, of_copy, of_generator) if missed else '',
  ]


def _ratio(peer, taken):
  """Times as fast as the peer, or why that is not known."""
  if peer is None:
    return ''
  return peer if isinstance(peer, str) else f'{peer / taken:.1f}'


def why(row: dict, of_copy: float, of_generator: float) -> str:
  """Where the time of a row goes, in words."""
  parts = [f'memory {of_copy:.0%}']
  if of_generator:
    parts.append(f'generator {of_generator:.0%}')
  rest = 1.0 - of_copy - of_generator
  if rest > 0.0:
    parts.append(f'{row["else"]} {rest:.0%}')
  return ', '.join(parts)


def misses(
  row: dict, of_copy: float, of_generator: float, ratios: dict[str, float]
) -> list[str]:
  """What of the wanted a row misses, in words."""
  found = []
  wanted = WANTED.get(row['group'])
  reached = of_generator if row['group'] == 'random' else of_copy
  if wanted and reached < wanted:
    found.append(f'{reached:.0%} of {wanted:.0%}')
  for peer, ratio in ratios.items():
    plain = row['name'].split('-')[0]
    least = _FACTOR if peer == 'mergekit' and plain in _FAST else 1.0
    if ratio < least:
      found.append(f'{ratio:.1f} of {least:.0f} times {peer}')
  return found
