"""Seconds that PEFT's merges take: python -m ...operator_peft FOLDER.

Reads FOLDER/cases.json: "shapes" of the tensors that one merge has two of, and
"cases", each with a name, a function and a density. Prints "ready", and after
each case "taken SECONDS NAME", as third_party/mergekit/merge.py does.
"""

from collections.abc import Callable
import json
import pathlib
import sys
import time

_REPEATS = 3
_ENOUGH = 10.0


def _functions(density: float) -> dict[str, Callable[[list], object]]:
  from peft.utils import merge_utils
  import torch

  weights = torch.tensor([0.5, 0.5])
  return {
    'linear': lambda ts: merge_utils.task_arithmetic(ts, weights),
    'ties': lambda ts: merge_utils.ties(ts, weights, density),
    'dare_linear': lambda ts: merge_utils.dare_linear(ts, weights, density),
    'dare_ties': lambda ts: merge_utils.dare_ties(ts, weights, density),
    'magnitude_prune': lambda ts: merge_utils.magnitude_prune(
      ts, weights, density
    ),
  }


def main() -> None:
  """Times the cases one after the other."""
  import torch

  given = json.loads((pathlib.Path(sys.argv[1]) / 'cases.json').read_text())
  generator = torch.Generator().manual_seed(0)
  pairs = [
    [torch.randn(shape, generator=generator) for _ in range(2)]
    for shape in given['shapes']
  ]
  print('ready', flush=True)
  for case in given['cases']:
    function, taken = _functions(case['density'])[case['function']], []
    with torch.no_grad():
      while len(taken) < _REPEATS and sum(taken) < _ENOUGH:
        start = time.perf_counter()
        for tensors in pairs:
          function(tensors)
        taken.append(time.perf_counter() - start)
    print(f'taken {min(taken)} {case["name"]}', flush=True)


if __name__ == '__main__':
  main()
