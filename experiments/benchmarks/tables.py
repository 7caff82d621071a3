"""Benchmark results as Markdown, with the machine they come from."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys

_PACKAGES = ('jax', 'numpy', 'torch', 'transformers', 'peft')


def of_program(name: str) -> dict:
  """The machine, and the command line of a program experiments.<name>."""
  words = ['python', '-m', f'experiments.{name}', *sys.argv[1:]]
  return {'machine': machine(), 'command': shlex.join(words)}


def machine() -> dict[str, str]:
  """What a timing depends on: processor, cores, memory and versions."""
  found = {
    'cpu': _cpu_model(),
    'cores': str(os.cpu_count()),
    'memory': _memory(),
    'python': platform.python_version(),
  }
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _cpu_model() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor() or 'unknown'
  fields = dict(
    map(str.strip, line.split(':', 1)) for line in lines if ':' in line
  )
  name = fields.get('model name', 'unknown')
  numbers = ' '.join(
    f'{key} {fields[key]}' for key in ('cpu family', 'model') if key in fields
  )
  return f'{name} ({numbers})' if numbers else name


def _memory() -> str:
  try:
    size = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  except (ValueError, OSError):
    return 'unknown'
  return f'{size / 2**30:.0f} GiB'


def write(result: dict, text: str, out: str) -> None:
  """Writes <out>.json and <out>.md.

  Args:
    result: what was measured.
    text: the same as Markdown.
    out: path without an ending; its folder is made.
  """
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.with_name(f'{path.name}.json').write_text(
    json.dumps(result, indent=1) + '\n'
  )
  path.with_name(f'{path.name}.md').write_text(text)


def heading(result: dict, title: str) -> list[str]:
  """The first lines of a table: what of, on what machine, by what command.

  Args:
    result: note, machine and command.
    title: where the note is empty.
  """
  machine_text = ', '.join(f'{k} {v}' for k, v in result['machine'].items())
  return [
    f'# {result["note"] or title}',
    '',
    f'Machine: {machine_text}.',
    '',
    '```',
    result['command'],
    '```',
    '',
  ]


def markdown(result: dict) -> str:
  """A benchmark's result as a Markdown document.

  Args:
    result: note, machine, command and workloads, as `benchmark_fitness` makes
      it.
  """
  lines = heading(result, 'Scoring a population')
  for workload in result['workloads']:
    lines += _workload(workload)
  return '\n'.join(lines)


def _workload(workload: dict) -> list[str]:
  speed = workload['tokens_per_second']
  peers = {k: v for k, v in speed.items() if k.startswith('peer')}
  best_peer = max(peers.values(), default=None)
  best = max(v for k, v in speed.items() if k.startswith('population'))
  lines = [
    f'## {workload["kind"].capitalize()}: {workload["task"]}, '
    f'{workload["members"]} members x {workload["items"]} items',
    '',
    '| way | median s | range s | tokens/s | x best peer | of matrix rate '
    '| idle | compile s | recompiled |',
    '|---|---|---|---|---|---|---|---|---|',
  ]

  def shown(column: str, name: str, form: str) -> str:
    value = workload.get(column, {}).get(name)
    return '' if value is None else format(value, form)

  for name, seconds in workload['seconds'].items():
    ratio = f'{speed[name] / best_peer:.2f}' if best_peer else ''
    lines.append(
      f'| {name} | {statistics.median(seconds):.3f} '
      f'| {min(seconds):.3f} to {max(seconds):.3f} '
      f'| {speed[name]:,.0f} | {ratio} '
      f'| {shown("rate_share", name, ".2f")} | {shown("idle", name, ".1%")} '
      f'| {shown("compile_seconds", name, ".1f")} '
      f'| {shown("recompiled", name, "d")} |'
    )
  lines.append('')
  one_by_one = max(v for k, v in speed.items() if k.startswith('one by one'))
  alone = max(v for k, v in speed.items() if k.startswith('one model'))
  gates = max((v for k, v in speed.items() if k.startswith('gates')), default=0)
  summary = (
    f'The population at once is {best / one_by_one:.2f} times as fast as its '
    f'members one by one, and {best / alone:.2f} times as fast as one model '
    f'on {workload["members"]} times the items'
  )
  if gates:
    summary += f'; gates are {gates / alone:.2f} times as fast as that'
  if best_peer:
    summary += f'; it is {best / best_peer:.2f} times as fast as the best peer'
  lines += [summary + ' (each at its best).']
  lines += [f'- {k}: {v}.' for k, v in workload['agreement'].items()]
  if 'matrix_rate' in workload:
    lines.append(f'- Matrix rate: {workload["matrix_rate"] / 1e9:.0f} GFLOP/s.')
  return [*lines, '']
