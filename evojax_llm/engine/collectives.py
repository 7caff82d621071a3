"""What compiled programs send between devices, read from their text."""

import collections
import math
import re
from typing import Any

KINDS = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
)
# The results, their shapes within, and the kind; `-done` has no shapes of its
# own work.
_CALL = re.compile(rf'= (\(.*?\)|\S+) ({"|".join(KINDS)})(-start)?\(')
_SHAPE = re.compile(r'\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def collectives(program: Any) -> dict[str, tuple[int, int]]:
  """Returns (number, bytes of the results on a device) of each kind.

  What stands in a loop counts once. An operation that is begun and awaited
  later has its operands among its results, and half of its bytes are counted.

  Args:
    program: compiled, or its optimised HLO as text.
  """
  text = program if isinstance(program, str) else program.as_text()
  found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for results, kind, begun in _CALL.findall(text):
    size = sum(
      math.prod(int(n) for n in shape.split(',') if n)
      * max(1, int(bits or 8) // 8)
      for bits, shape in _SHAPE.findall(results)
    )
    found[kind][0] += 1
    found[kind][1] += size // 2 if begun and kind != 'all-reduce' else size
  return {kind: (count, size) for kind, (count, size) in found.items()}
