"""Seconds that mergekit and PEFT take for what the operators do.

mergekit merges full models: it is asked where the genomes are matrices, tensor
by tensor, in its own python. PEFT merges adapters: its functions are called on
each layer's factors, member by member, as add_weighted_adapter does.

Both run in a process of their own, which is ended if one merge takes too long;
the others are then timed in another.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading

from absl import logging

from experiments.benchmarks import operator_costs
from experiments.benchmarks.operator_cases import Case
from experiments.benchmarks.operator_sizes import Size

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_MERGEKIT = _ROOT / 'third_party' / 'mergekit' / 'merge.py'
# Ours and theirs, where the names differ.
_NAMES = {'ramplus': 'ramplus_tl'}
_UNWEIGHTED = ('karcher',)
_PEFT = ('linear', 'ties', 'dare_linear', 'dare_ties', 'magnitude_prune')
# Best of so many, but no other begins after so many seconds.
_REPEATS = 3
_ENOUGH = 2.0
# Seconds until a peer has imported its packages and made its tensors.
_READY = 300.0

# Seconds, or why there are none.
Taken = float | str


def seconds(
  size: Size,
  cases: Sequence[Case],
  *,
  peft: bool,
  peer_python: str | None,
  limit: float,
) -> dict[str, dict[str, Taken]]:
  """Seconds of each peer by the name of the case, or why there are none.

  Args:
    size: shapes and number of the tensors.
    cases: those whose operator names the peer are timed.
    peft: whether to time PEFT, which works on adapters.
    peer_python: a python with mergekit, or None; works on matrices.
    limit: seconds that one merge of one tensor (of all factors of a member)
      may take with its repeats.
  """
  found = {case.name: {} for case in cases}
  if peer_python and not size.rank:
    for name, value in _mergekit(size, cases, peer_python, limit).items():
      found[name]['mergekit'] = value
  if peft and size.rank:
    for name, value in _peft(size, cases, limit).items():
      found[name]['peft'] = value
  return found


def _mergekit(size, cases, python, limit):
  # Matrices of one shape take the same time.
  shapes = [shape[::-1] for shape in size.matrices.values()]
  random, asked, times = {}, [], {}
  for place, shape in enumerate(dict.fromkeys(shapes)):
    tensor = 'x'.join(map(str, shape))
    for model in range(size.parents + 1):
      seed = place * 10 + model
      random[f'{tensor} {model}'] = {'shape': list(shape), 'seed': seed}
    for case in cases:
      if 'mergekit' in operator_costs.peers(case.operator):
        asked.append(_asked(size, case, tensor))
        times[asked[-1]['name']] = shapes.count(shape)
  command = [python, str(_MERGEKIT), f'--repeats={_REPEATS}']
  command += [f'--enough={_ENOUGH}', '--discard']
  found = _timed(command, {'random': random}, asked, limit)
  totals = {}
  for case in asked:
    old, taken = totals.get(case['row'], 0.0), found[case['name']]
    broken = [why for why in (old, taken) if isinstance(why, str)]
    whole = broken[0] if broken else old + times[case['name']] * taken
    totals[case['row']] = whole
  return totals


def _asked(size, case, tensor):
  """A merge of one tensor, as third_party/mergekit/merge.py reads it."""
  op = case.operator
  parents = op.most or size.parents
  parameters = {
    name: value for name, value in case.chosen.items() if name in op.parameters
  }
  method = operator_costs.peers(op)['mergekit']
  if 'weights' in op.parameters and method not in _UNWEIGHTED:
    parameters['weight'] = [1.0] * parents
  if 't' in op.parameters:
    parameters['t'] = op.parameters['t'].default
  asked = {
    'name': f'{case.name} {tensor}',
    'row': case.name,
    'method': _NAMES.get(method, method),
    'models': [f'{tensor} {model}' for model in range(parents)],
    'parameters': parameters,
  }
  if case.shared:
    asked['base'] = f'{tensor} {size.parents}'
  elif method == 'slerp':  # has two models, of which one is called the base.
    asked['base'] = asked['models'].pop(0)
  return asked


def _peft(size, cases, limit):
  # One member's factors, layer by layer; all members are alike in work.
  shapes = [
    shape
    for fan_in, fan_out in size.matrices.values()
    for shape in ((size.rank, fan_in), (fan_out, size.rank))
  ]
  asked = [
    {
      'name': case.name,
      'row': case.name,
      'function': operator_costs.peers(case.operator)['peft'],
      'density': case.chosen.get('density', 1.0),
    }
    for case in cases
    if operator_costs.peers(case.operator).get('peft') in _PEFT
  ]
  command = [sys.executable, '-m', 'experiments.benchmarks.operator_peft']
  given = {'shapes': shapes * size.layers}
  return {
    name: taken if isinstance(taken, str) else taken * size.members
    for name, taken in _timed(command, given, asked, limit).items()
  }


def _timed(
  command: Sequence[str],
  given: Mapping[str, object],
  cases: Sequence[Mapping[str, object]],
  limit: float,
) -> dict[str, Taken]:
  """What a peer's program says each case took; see operator_peft."""
  found, waiting = {}, list(cases)
  while waiting:
    with tempfile.TemporaryDirectory() as folder:
      (pathlib.Path(folder) / 'cases.json').write_text(
        json.dumps({**given, 'cases': waiting})
      )
      with subprocess.Popen(
        [*command, folder], stdout=subprocess.PIPE, text=True, cwd=_ROOT
      ) as process:
        lines = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines))
        reader.start()
        try:
          why = _follow(lines, waiting, found, limit)
        finally:
          process.kill()
          reader.join()
    if why is None:
      break
    # The row under way is given up, or all of them if nothing began.
    ready, reason = why
    row = waiting[0]['row']
    for case in waiting:
      if case['row'] == row or not ready:
        logging.warning('%s by its peer: %s', case['name'], reason)
        found[case['name']] = reason
    waiting = [case for case in waiting if case['name'] not in found]
  return found


def _read(output, lines):
  for line in output:
    lines.put(line)
  lines.put(None)


def _follow(lines, waiting, found, limit):
  """Takes what is said off `waiting`; None, or whether ready and what broke."""
  ready = False
  while waiting:
    try:
      line = lines.get(timeout=limit if ready else _READY)
    except queue.Empty:
      return ready, f'over {limit if ready else _READY:g} s'
    if line is None:
      return ready, 'failed'
    word, *rest = line.split(maxsplit=2) or ['']
    if word == 'ready':
      ready = True
    elif word == 'taken':
      taken, name = float(rest[0]), rest[1].strip()
      logging.info('%s by its peer: %.3f s', name, taken)
      found[name] = taken
      waiting.pop(0)
  return None
