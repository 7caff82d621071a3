"""How fast operators are, beside what the machine and others can do.

Every operator of evojax_llm.operators.table that makes genomes is applied to a
population, compiled, with the buffers of its result given to it: mutations and
succession work in place, merges write over an older population. The limits are
measured in the same run and the same way, all taking turns, and medians are
reported:

  copy      negates every number, in place or into another buffer: the bytes a
            second that elementwise work can move
  generator jax.random.bits: the random words a second of JAX's generator

What must move is every parent once (twice where a norm must be known first)
and the child once. The peers, mergekit in its own python and PEFT, get random
tensors of the same shapes; their best repeat counts.

  python -m experiments.benchmark_operators --out=/tmp/operators \\
    --peer_python=.mergekit/bin/python
"""

import importlib.util
import shlex
import sys

from absl import app
from absl import flags

from experiments.benchmarks import operator_sizes
from experiments.benchmarks import operator_tables
from experiments.benchmarks import operator_timing
from experiments.benchmarks import tables

_SIZES = flags.DEFINE_list(
  'sizes', ['lora10', 'layer4'], f'Some of {list(operator_sizes.SIZES)}.'
)
_OPERATORS = flags.DEFINE_list(
  'operators', None, 'Names in the table of operators; all by default.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed repeats of each.')
_PEER = flags.DEFINE_bool('peer', True, 'Time PEFT, where it is installed.')
_PEER_PYTHON = flags.DEFINE_string(
  'peer_python',
  None,
  'Python with mergekit (third_party/mergekit); without it, mergekit is left '
  'out.',
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1:]} is not understood; see --help.')
  unknown = sorted(set(_SIZES.value) - set(operator_sizes.SIZES))
  if unknown:
    raise app.UsageError(
      f'Got sizes {unknown}; expected some of {list(operator_sizes.SIZES)}.'
    )
  try:
    cases = operator_timing.chosen_cases(_OPERATORS.value)
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  has_peft = all(map(importlib.util.find_spec, ('torch', 'peft')))
  result = {
    'note': _NOTE.value,
    'machine': tables.machine(),
    'command': shlex.join(
      ['python', '-m', 'experiments.benchmark_operators', *sys.argv[1:]]
    ),
    'sizes': [
      operator_timing.measure(
        size,
        cases,
        repeats=_REPEATS.value,
        peft=_PEER.value and has_peft,
        peer_python=_PEER_PYTHON.value,
      )
      for size in _SIZES.value
    ],
  }
  text = operator_tables.markdown(result)
  print(text)
  if _OUT.value:
    tables.write(result, text, _OUT.value)


if __name__ == '__main__':
  app.run(main)
