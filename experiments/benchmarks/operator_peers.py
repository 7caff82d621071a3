"""Seconds that mergekit and PEFT take for what the operators do.

mergekit merges full models: it is asked where the genomes are matrices, tensor
by tensor, in its own python. PEFT merges adapters: its functions are called on
each layer's factors, member by member, as add_weighted_adapter does.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import subprocess
import tempfile
import time

from evojax_llm.operators import operator
from experiments.benchmarks.operator_sizes import Size

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_MERGEKIT = _ROOT / 'third_party' / 'mergekit' / 'merge.py'
# Ours and theirs, where the names differ.
_NAMES = {'ramplus': 'ramplus_tl'}
_REPEATS = 3


def seconds(
  size: Size,
  cases: Sequence[operator.Case],
  *,
  peft: bool,
  peer_python: str | None,
) -> dict[str, dict[str, float]]:
  """Seconds of each peer by the name of the case.

  Args:
    size: shapes and number of the tensors.
    cases: those whose operator names the peer are timed.
    peft: whether to time PEFT, which works on adapters.
    peer_python: a python with mergekit, or None; works on matrices.
  """
  found = {case.name: {} for case in cases}
  if peer_python and not size.rank:
    for name, value in _mergekit(size, cases, peer_python).items():
      found[name]['mergekit'] = value
  if peft and size.rank:
    for name, value in _peft(size, cases).items():
      found[name]['peft'] = value
  return found


def _mergekit(size, cases, python):
  shapes = {name: shape[::-1] for name, shape in size.matrices.items()}
  random, asked = {}, []
  for place, (name, shape) in enumerate(shapes.items()):
    for model in range(size.parents + 1):
      seed = place * 10 + model
      random[f'{name} {model}'] = {'shape': list(shape), 'seed': seed}
    for case in cases:
      if 'mergekit' in case.operator.peers:
        asked.append(_asked(size, case, name))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    (path / 'cases.json').write_text(
      json.dumps({'random': random, 'cases': asked})
    )
    subprocess.run(
      [
        python,
        str(_MERGEKIT),
        folder,
        f'--repeats={_REPEATS}',
        '--discard',
      ],
      check=True,
    )
    taken = json.loads((path / 'seconds.json').read_text())
  totals = {}
  for case in asked:
    name = case['name'].rsplit(' ', 1)[0]
    totals[name] = totals.get(name, 0.0) + taken[case['name']]
  return totals


def _asked(size, case, tensor):
  """A merge of one tensor, as third_party/mergekit/merge.py reads it."""
  op = case.operator
  parents = op.most or size.parents
  parameters = {
    name: value for name, value in case.chosen.items() if name in op.parameters
  }
  if 'weights' in op.parameters:
    parameters['weight'] = [1.0] * parents
  if 't' in op.parameters:
    parameters['t'] = op.parameters['t'].default
  method = op.peers['mergekit']
  asked = {
    'name': f'{case.name} {tensor}',
    'method': _NAMES.get(method, method),
    'models': [f'{tensor} {model}' for model in range(parents)],
    'parameters': parameters,
  }
  if op.shared:
    asked['base'] = f'{tensor} {size.parents}'
  elif method == 'slerp':  # has two models, of which one is called the base.
    asked['base'] = asked['models'].pop(0)
  return asked


def _peft(size, cases):
  import torch

  generator = torch.Generator().manual_seed(0)

  def draw(*shape):
    return torch.randn(shape, generator=generator)

  # One member's parents, layer by layer; all members are alike in work.
  pairs = [
    [draw(*shape) for _ in range(size.parents)]
    for fan_in, fan_out in size.matrices.values()
    for _ in range(size.layers)
    for shape in ((size.rank, fan_in), (fan_out, size.rank))
  ]
  found = {}
  for case in cases:
    function = _peft_function(case)
    if function is None:
      continue
    best = float('inf')
    with torch.no_grad():
      for _ in range(_REPEATS):
        start = time.perf_counter()
        for tensors in pairs:
          function(tensors)
        best = min(best, time.perf_counter() - start)
    found[case.name] = best * size.members
  return found


def _peft_function(
  case: operator.Case,
) -> Callable[[list], object] | None:
  from peft.utils import merge_utils
  import torch

  density = case.chosen.get('density', 1.0)
  weights = torch.tensor([0.5, 0.5])
  functions: Mapping[str, Callable[[list], object]] = {
    'linear': lambda ts: merge_utils.task_arithmetic(ts, weights),
    'ties': lambda ts: merge_utils.ties(ts, weights, density),
    'dare_linear': lambda ts: merge_utils.dare_linear(ts, weights, density),
    'dare_ties': lambda ts: merge_utils.dare_ties(ts, weights, density),
    'magnitude_prune': lambda ts: merge_utils.magnitude_prune(
      ts, weights, density
    ),
  }
  return functions.get(case.operator.peers.get('peft', ''))
