"""How fast operators are, beside what the machine and others can do.

Every operator of `operators.registry` that makes genomes is applied to a
population, compiled, with the buffers of its result given to it: mutations and
succession work in place, merges write over an older population. The limits are
measured in the same run and the same way, all taking turns, and medians are
reported:

  copy      negates every number, in place or into another buffer: the bytes a
            second that elementwise work can move
  generator jax.random.bits: the random words a second of JAX's generator, the
            words stored or summed, whichever is faster

What must move is every parent once (twice where a norm must be known first)
and the child once. The peers, mergekit in its own python and PEFT, get random
tensors of the same shapes; their best repeat counts, and one that takes longer
than --peer_limit for a merge, or fails, loses this row only.

  python -m experiments.benchmark_operators --out=/tmp/operators \\
    --peer_python=.mergekit/bin/python
"""

from collections.abc import Sequence
import importlib.util

from absl import flags
import jax

from evojax_llm.commands import command
from experiments.benchmarks import operator_sizes
from experiments.benchmarks import operator_tables
from experiments.benchmarks import operator_timing
from experiments.benchmarks import tables

_SIZES = flags.DEFINE_list(
  'sizes', ['lora10', 'layer4'], f'One or more of {list(operator_sizes.SIZES)}.'
)
_OPERATORS = flags.DEFINE_list(
  'operators', None, 'Names in the table of operators; all by default.'
)
_WITHOUT = flags.DEFINE_list('without', [], 'Names that are left out.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed repeats of each.')
_PEER = flags.DEFINE_bool('peer', True, 'Time PEFT, where it is installed.')
_PEER_PYTHON = flags.DEFINE_string(
  'peer_python',
  None,
  'Python with mergekit (third_party/mergekit); without it, mergekit is left '
  'out.',
)
_PEER_LIMIT = flags.DEFINE_float(
  'peer_limit', 60.0, 'Seconds that a peer may take for one merge.'
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')


def main(_: Sequence[str]) -> None:
  unknown = sorted(set(_SIZES.value) - set(operator_sizes.SIZES))
  if unknown or not _SIZES.value:
    raise command.UserError(
      f'Got sizes {unknown}; expected some of {list(operator_sizes.SIZES)}.'
    )
  try:
    cases = operator_timing.chosen_cases(_OPERATORS.value, _WITHOUT.value)
  except ValueError as error:
    raise command.UserError(str(error)) from error
  has_peft = all(map(importlib.util.find_spec, ('torch', 'peft')))
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_operators'),
    'sizes': [],
  }
  result['machine']['device'] = _device()
  for size in _SIZES.value:
    result['sizes'].append(
      operator_timing.measure(
        size,
        cases,
        repeats=_REPEATS.value,
        peft=_PEER.value and has_peft,
        peer_python=_PEER_PYTHON.value,
        peer_limit=_PEER_LIMIT.value,
      )
    )
    text = operator_tables.markdown(result)
    # After each size, so that a run that is stopped leaves what it has.
    if _OUT.value:
      tables.write(result, text, _OUT.value)
  print(text)


def _device():
  device = jax.devices()[0]
  return f'{device.platform} {device.device_kind}'


if __name__ == '__main__':
  command.launch(main, quiet=False)
