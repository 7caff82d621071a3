"""Seconds and memory of `merge` and of mergekit-yaml on the same recipes.

Whole processes, from start to exit, in turns: wall time, seconds of all cores,
and the most memory: what was resident, pages of mapped files included, and what
of it was the process's own. Three random folders with Llama's names, a base and
two models, are made once below --folder and merged by every recipe; what is
merged is removed. Nothing is kept compiled from one process to the next, and
the files that are read are in the page cache.

  python -m experiments.benchmark_merge --folder=/tmp/merge \\
    --peer_python=.mergekit/bin/python --out=/tmp/merge_table
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys

from absl import flags

from evojax_llm.commands import command
from evojax_llm.runs.errors import say
from experiments.benchmarks import random_llama
from experiments.benchmarks import tables

# Layers of folders of about 1 GB.
_LAYERS = {'bfloat16': 8, 'float32': 3}
_SHARDS = 3
# Parameters of the whole, the models, and whether the base is one of them.
_WEIGHT, _DENSITY = {'weight': 0.5}, {'density': 0.5}
RECIPES = {
  'linear': (_WEIGHT, 'ab', False),
  'slerp': ({'t': 0.4}, 'b', True),
  'nuslerp': (_WEIGHT, 'ab', False),
  'task_arithmetic': (_WEIGHT, 'ab', True),
  'ties': (_WEIGHT | _DENSITY, 'ab', True),
  'dare_ties': (_WEIGHT | _DENSITY, 'ab', True),
  'della': (_WEIGHT | _DENSITY | {'epsilon': 0.1}, 'ab', True),
  'breadcrumbs': (_WEIGHT | _DENSITY | {'gamma': 0.01}, 'ab', True),
  'model_stock': ({}, 'ab', True),
  'passthrough': ({}, 'a', False),
}
# No programs are kept from one process to the next.
_ANEW = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
_SECONDS, _CPU, _RESIDENT, _OWN = 'seconds', 'cpu', 'resident', 'own'
# Starts a command and watches it; small, since a child's most memory is no less
# than that of the process which started it.
_WATCH = f"""
import json, os, subprocess, sys, time
start, own = time.perf_counter(), 0
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
while True:
  pid, status, used = os.wait4(child.pid, os.WNOHANG)
  if pid:
    break
  try:
    with open(f'/proc/{{child.pid}}/status') as f:
      for line in f:
        if line.startswith('RssAnon'):
          own = max(own, 1024 * int(line.split()[1]))
  except OSError:
    pass
  time.sleep(0.01)
print(json.dumps(dict({_SECONDS}=time.perf_counter() - start,
  {_CPU}=used.ru_utime + used.ru_stime, {_RESIDENT}=1024 * used.ru_maxrss,
  {_OWN}=own)))
sys.exit(os.waitstatus_to_exitcode(status))
"""

_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where models are made and merged: 7 GB.', required=True
)
_METHODS = flags.DEFINE_list(
  'methods', list(RECIPES), f'Some of {list(RECIPES)}.'
)
_DTYPES = flags.DEFINE_list('dtypes', list(_LAYERS), f'Of {list(_LAYERS)}.')
_LAYER_COUNT = flags.DEFINE_integer(
  'layers', None, 'Layers of the models; by default those of 1 GB.', 1
)
_WIDTH = flags.DEFINE_integer('width', 2048, 'Of the models.', 64)
_REPEATS = flags.DEFINE_integer('repeats', 2, 'Timed repeats of each.', 1)
_PEER_PYTHON = flags.DEFINE_string(
  'peer_python',
  None,
  'Python with mergekit (third_party/mergekit); without it, ours alone.',
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')


def recipe(method: str, dtype: str, models: Mapping[str, str]) -> str:
  """Returns a recipe, in JSON, which is YAML; models are named base, a, b."""
  parameters, listed, has_base = RECIPES[method]
  raw = {
    'merge_method': method,
    'models': [{'model': models[name]} for name in listed],
    'parameters': parameters,
    'dtype': dtype,
  }
  if has_base:
    raw['base_model'] = models['base']
  if method == 'slerp':
    raw['models'].insert(0, {'model': models['base']})
  return json.dumps(raw, indent=1)


def run_watched(arguments: Sequence[str]) -> dict[str, float]:
  """Returns what a process used: seconds, cpu, resident and own bytes.

  Raises:
    UserError: it failed.
  """
  done = subprocess.run(
    [sys.executable, '-S', '-c', _WATCH, *arguments],
    capture_output=True,
    text=True,
    env=os.environ | _ANEW,
  )
  if done.returncode:
    raise command.UserError(
      f'{shlex.join(arguments)} failed:\n{done.stderr[-2000:]}'
    )
  return json.loads(done.stdout)


def measure(
  folder: pathlib.Path,
  dtype: str,
  methods: Sequence[str],
  peer_python: str | None,
  *,
  layers: int,
  width: int,
  repeats: int,
) -> Iterator[dict]:
  """Yields what merges used so far, ours and the peer's in turns."""
  own = folder / f'{dtype}_{layers}x{width}'
  models = {name: str(own / name) for name in ('base', 'a', 'b')}
  for seed, path in enumerate(models.values()):
    if not os.path.isdir(path):
      random_llama.write(
        pathlib.Path(path),
        seed,
        layers=layers,
        width=width,
        dtype=dtype,
        shards=_SHARDS,
      )
  size = sum(f.stat().st_size for f in pathlib.Path(models['a']).iterdir())
  rows: dict[str, dict[str, list]] = {}
  kind = {'dtype': dtype, 'bytes': size, 'layers': layers, 'methods': rows}
  out, path = folder / 'merged', folder / 'recipe.yaml'
  shutil.rmtree(out, ignore_errors=True)
  ways = {
    'ours': [sys.executable, '-m', 'experiments.merge', f'--recipe={path}']
    + [f'--out={out}']
  }
  if peer_python:
    program = pathlib.Path(peer_python).with_name('mergekit-yaml')
    ways['mergekit'] = [str(program), str(path), str(out)]
  for _ in range(repeats):
    for method in methods:
      path.write_text(recipe(method, dtype, models))
      row = rows.setdefault(method, {'ours': [], 'mergekit': []})
      for name, arguments in ways.items():
        used = run_watched(arguments)
        say(
          f'{dtype} {method} {name}: {used[_SECONDS]:.1f} s, {used[_CPU]:.1f} '
          f'CPU s, {used[_RESIDENT] / 1e9:.2f} GB ({used[_OWN] / 1e9:.2f})'
        )
        row[name].append(used)
        shutil.rmtree(out, ignore_errors=True)
      yield kind


def markdown(result: dict) -> str:
  """Returns the tables of a result as Markdown."""
  lines = tables.heading(result, 'Merged folders, whole processes')
  lines += [
    'Medians. Memory is the most at a time: resident, and in brackets without '
    'pages of mapped files.',
    '',
  ]
  for kind in result['dtypes']:
    lines += [
      f'## {kind["dtype"]}, folders of {kind["bytes"] / 1e9:.2f} GB',
      '',
      '| method | s | CPU s | GB | mergekit s | CPU s | GB | times as fast '
      '| share of its memory |',
      '|---|---|---|---|---|---|---|---|---|',
    ]
    for method, row in kind['methods'].items():
      cells = [_cells(row['ours']), _cells(row['mergekit'])]
      ratios = ['', '']
      if row['mergekit']:
        times, shares = (
          _median(row['mergekit'], name) / _median(row['ours'], name)
          for name in (_SECONDS, _RESIDENT)
        )
        ratios = [f'{times:.1f}', f'{1 / shares:.2f}']
      lines.append(f'| {" | ".join([method, *cells[0], *cells[1], *ratios])} |')
    lines.append('')
  return '\n'.join(lines)


def _cells(used):
  if not used:
    return ['', '', '']
  return [
    f'{_median(used, _SECONDS):.1f}',
    f'{_median(used, _CPU):.1f}',
    f'{_median(used, _RESIDENT) / 1e9:.2f} ({_median(used, _OWN) / 1e9:.2f})',
  ]


def _median(used, name):
  return statistics.median(one[name] for one in used)


def main(_: Sequence[str]) -> None:
  for given, known in (
    (_METHODS.value, RECIPES),
    (_DTYPES.value, _LAYERS),
  ):
    if unknown := sorted(set(given) - set(known)):
      raise command.UserError(f'Got {unknown}; expected some of {list(known)}.')
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_merge'),
    'dtypes': [],
  }
  kinds = {}
  for dtype in _DTYPES.value:
    for kind in measure(
      pathlib.Path(os.path.expanduser(_FOLDER.value)).absolute(),
      dtype,
      _METHODS.value,
      _PEER_PYTHON.value,
      layers=_LAYER_COUNT.value or _LAYERS[dtype],
      width=_WIDTH.value,
      repeats=_REPEATS.value,
    ):
      # After each merge, so that a run that is stopped leaves what it has.
      kinds[dtype] = kind
      result['dtypes'] = list(kinds.values())
      text = markdown(result)
      if _OUT.value:
        tables.write(result, text, _OUT.value)
  print(text)


if __name__ == '__main__':
  command.launch(main, quiet=False)
