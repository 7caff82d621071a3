"""The results of `benchmark_accelerator` as Markdown."""

from collections.abc import Mapping
from typing import Any

from experiments.benchmarks import tables

# Column, key and format of the rows of a way.
_WAYS = (
  ('first call s', 'first', '.1f'),
  ('compile s', 'compile', '.1f'),
  ('steady s', 'steady', '.3f'),
  ('tokens/s', 'tokens_per_second', ',.0f'),
  ('peak GiB', 'peak_gib', '.1f'),
)
_COLUMNS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
  'likelihood': (*_WAYS, ('of the product', 'rate_share', '.0%')),
  'generation': (
    *_WAYS,
    ('slots', 'slots', '.0f'),
    ('steps', 'steps', '.0f'),
    ('ms a step', 'step_ms', '.2f'),
    ('limit ms', 'limit_ms', '.2f'),
    ('of the limit', 'limit_share', '.0%'),
    ('prefill s', 'prefill', '.2f'),
    ('idle s', 'idle', '.2f'),
    ('host s', 'host', '.2f'),
  ),
  'peer': (
    ('first call s', 'first', '.1f'),
    ('steady s', 'steady', '.3f'),
    ('tokens/s', 'tokens_per_second', ',.0f'),
    ('peak GiB', 'peak_gib', '.1f'),
  ),
  'layer': (
    ('ms', 'seconds', '1e3'),
    ('GB/s', 'bytes_per_second', '1e-9'),
    ('of the copy', 'copy_share', '.0%'),
    ('of the product', 'rate_share', '.0%'),
    ('difference', 'difference', '.4f'),
  ),
  'operators': (
    ('first call s', 'first', '.1f'),
    ('ms', 'seconds', '1e3'),
    ('GB/s', 'bytes_per_second', '1e-9'),
    ('of the copy', 'copy_share', '.0%'),
  ),
}
_NOTES = {
  'generation': (
    'The limit is the time in which the copy reads what a step needs: the '
    'weights, the members, and keys and values of the mean context.'
  ),
  'layer': (
    'Attention is that of a step of decoding, and its bytes are the keys and '
    'values that rows see. Differences are to the first of a kind.'
  ),
  'peer': 'One member; the engine answers for all members in its time.',
}


def markdown(result: dict[str, Any]) -> str:
  """Returns the document of what is known so far."""
  lines = tables.heading(result, 'An accelerator and the engine')
  s = result['settings']
  how = f'{s["layers"] or "all"} layers, {s.get("dtype", "no type yet")}'
  lines += [
    f'{s["shape"]} at random, {how}; '
    f'{s["members"]} members of rank {s["rank"]}, {s["items"]} items a member, '
    f'{s["new_tokens"]} new tokens. One model has the items of all members.',
    '',
  ]
  for name, found in result['parts'].items():
    lines += [f'## {name.capitalize()}', '']
    spent = found.get('seconds')
    if name == 'limits':
      lines += [f'- {k}: {v:.4g}' for k, v in found.items() if k != 'seconds']
    elif name == 'kernels':
      lines += _kernels(found)
    elif name in _COLUMNS:
      lines += _table(found, _COLUMNS[name])
    if name in _NOTES:
      lines += ['', _NOTES[name]]
    if spent is not None:
      lines += ['', f'{spent:.0f} s in all.']
    lines.append('')
  lines += _ratios(result['parts'])
  if programs := result.get('compiled'):
    lines += ['## Compiling', '', '| program | times | lower s | compile s |']
    lines.append('|---|---|---|---|')
    lines += [
      f'| `{name}` | {row["count"]} | {row["lower"]:.2f} '
      f'| {row["compile"]:.2f} |'
      for name, row in programs.items()
    ]
    lines.append('')
  for title in ('skipped', 'failed'):
    if result[title]:
      lines += [f'## {title.capitalize()}', '']
      lines += [f'- {what}: {why}.' for what, why in result[title].items()]
      lines.append('')
  return '\n'.join(lines)


def _table(found, columns):
  rows = {name: row for name, row in found.items() if isinstance(row, dict)}
  lines = [
    '|  | ' + ' | '.join(title for title, *_ in columns) + ' |',
    '|---' * (len(columns) + 1) + '|',
  ]
  for name, row in rows.items():
    cells = [_shown(row.get(key), form) for _, key, form in columns]
    lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
  return lines


def _shown(value, form):
  if value is None:
    return ''
  if 'e' in form:
    return f'{value * float(form):,.2f}'
  return format(value, form)


def _kernels(found):
  lines = []
  for variant, row in found.items():
    if not isinstance(row, dict):
      continue
    lines += [
      f'{variant}: the first call, of programs that the cache on disk has, '
      f'took {row["first"]:.1f} s ({row["compile"]:.1f} s of it to compile); '
      f'{row["unit_ms"]:.2f} ms a {row["unit"]}. The device was busy for '
      f'{row["busy"]:.3f} of {row["window"]:.3f} s, in {row["different"]} '
      'kinds of kernels.',
      '',
      '| share | ms a call | times | kernel |',
      '|---|---|---|---|',
    ]
    lines += [
      f'| {k["share"]:.1%} | {1e3 * k["seconds"] / k["count"]:.4f} '
      f'| {k["count"]} | `{name[:90]}` |'
      for name, k in row['kernels'].items()
    ]
    lines.append('')
  return lines


def _ratios(parts):
  """The population beside one model and the peer."""
  lines = []
  for name in ('likelihood', 'generation'):
    speed = {
      way: row['tokens_per_second']
      for way, row in parts.get(name, {}).items()
      if isinstance(row, dict) and 'tokens_per_second' in row
    }
    peers = {
      way: row['tokens_per_second']
      for way, row in parts.get('peer', {}).items()
      if isinstance(row, dict) and way.startswith(name)
    }
    best = max(
      (v for k, v in speed.items() if k.startswith('population')), default=0
    )
    alone = max(
      (v for k, v in speed.items() if k.startswith('one model')), default=0
    )
    if best and alone:
      lines.append(
        f'- {name}: the population is {best / alone:.2f} of one model.'
      )
    lines += [
      f'- {name}: the population is {best / v:.1f} times the peer ({k}).'
      for k, v in peers.items()
      if best
    ]
  return ['## Beside each other', '', *lines, ''] if lines else []
