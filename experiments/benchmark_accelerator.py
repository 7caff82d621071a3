"""What a device does and what the engine makes of it, in a few minutes.

A model at a published shape is drawn at random on the device, with adapters
beside it and items that are made up: no files are needed. The parts, in this
order unless --parts says otherwise:

  peer        transformers + PEFT, where torch finds the device; a process of
              its own, which ends before jax takes the memory
  limits      a large product, and a copy into memory that is there
  likelihood  multiple choice: a population, one model with as many items, gates
  generation  answers of --new_tokens by the same, for every one of --slots
  kernels     what the device does as it decodes and reads, by the profiler
  layer       attention of decoding and a projection, in several ways
  operators   merges and mutations of adapters, beside a copy

Decoding goes as the plan has it, or by each of --variants. Each part has a
share of --minutes; what does not fit is left out and named. JSON and
Markdown are written after every measurement. Compiled programs go to a new
folder, so that first calls compile; `kernels` finds those of `generation`
there.

  python -m experiments.benchmark_accelerator --out=/tmp/accelerator
"""

from collections.abc import Sequence
import functools
import os
import tempfile

from absl import flags
import jax

from evojax_llm.commands import command
from experiments.benchmarks import accelerator_layer
from experiments.benchmarks import accelerator_limits
from experiments.benchmarks import accelerator_parts
from experiments.benchmarks import accelerator_peer
from experiments.benchmarks import accelerator_profile
from experiments.benchmarks import accelerator_tables
from experiments.benchmarks import shapes
from experiments.benchmarks import tables
from experiments.benchmarks.accelerator_clock import Clock

# Of the time; in the order in which they run.
_SHARES = {
  'peer': 8,
  'limits': 1,
  'likelihood': 3,
  'generation': 9,
  'kernels': 3,
  'layer': 4,
  'operators': 3,
}
# Ways to decode, by what the plan is told; see --variants.
_VARIANTS: dict[str, dict[str, str]] = {
  'plan': {},
  'scan': {'walk': 'scan'},
  'plain': {'walk': 'unrolled', 'attention': 'plain'},
  'pallas': {'walk': 'unrolled', 'attention': 'pallas'},
}
_SMOKE = {
  'shape': 'tiny',
  'members': 2,
  'items': 3,
  'new_tokens': 8,
  'rank': 2,
}

_MINUTES = flags.DEFINE_float('minutes', 4.0, 'For all parts.', lower_bound=0)
_SHAPE = flags.DEFINE_enum(
  'shape', 'gemma-2-2b', sorted(shapes.SHAPES), 'Of the model.'
)
_LAYERS = flags.DEFINE_integer('layers', None, 'Fewer than the shape has.')
_MEMBERS = flags.DEFINE_integer('members', 10, 'Of the population.')
_RANK = flags.DEFINE_integer('rank', 8, 'Of the adapters.')
_ITEMS = flags.DEFINE_integer('items', 100, 'Of a member, for each kind.')
_NEW = flags.DEFINE_integer('new_tokens', 200, 'Of an answer.')
_SLOTS = flags.DEFINE_list(
  'slots', ['0', '1000'], 'Answers in work at a time; 0 as the plan chooses.'
)
_WAYS = flags.DEFINE_list(
  'ways', ['population', 'one model', 'gates'], 'Of the engine.'
)
_PARTS = flags.DEFINE_list('parts', list(_SHARES), 'To run, in this order.')
_VARIANT = flags.DEFINE_list(
  'variants', ['plan'], f'Ways to decode: {", ".join(_VARIANTS)}.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', None, ['bfloat16', 'float32'], 'bfloat16; float32 on a CPU.'
)
_DATA = flags.DEFINE_string(
  'data', None, 'Folder with mmlu.json and gsm8k.json, in place of made up.'
)
_SMOKE_FLAG = flags.DEFINE_bool(
  'smoke', False, 'All parts on a shape of a few numbers.'
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')


def _settings() -> dict:
  """The flags that say what is measured."""
  given = {
    'shape': _SHAPE.value,
    'layers': _LAYERS.value,
    'members': _MEMBERS.value,
    'rank': _RANK.value,
    'items': _ITEMS.value,
    'new_tokens': _NEW.value,
    'data': _DATA.value,
    'small': _SMOKE_FLAG.value,
  }
  for name, known in (('parts', _SHARES), ('variants', _VARIANTS)):
    if unknown := [v for v in flags.FLAGS[name].value if v not in known]:
      raise command.UserError(
        f'Got --{name}={",".join(unknown)}; expected some of '
        f'{", ".join(known)}.'
      )
  return given | (_SMOKE if _SMOKE_FLAG.value else {})


def main(_: Sequence[str]) -> None:
  settings, slots = _settings(), [int(count) for count in _SLOTS.value]
  variants = {name: _VARIANTS[name] for name in _VARIANT.value}
  heard = accelerator_profile.Compiled()
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_accelerator'),
    'settings': settings,
  }

  def keep(found: dict) -> None:
    result.update(found, compiled=heard.longest())
    if _OUT.value:
      text = accelerator_tables.markdown(result)
      tables.write(result, text, _OUT.value)

  @functools.cache
  def bench() -> accelerator_parts.Bench:
    """Takes the device, at the first part that needs it."""
    kind = jax.devices()[0].device_kind
    dtype = _DTYPE.value
    if dtype is None:
      dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    made = accelerator_parts.Bench(**settings, dtype=dtype)
    result['machine'] |= {'device': f'{jax.device_count()} x {kind}'}
    result['settings'] |= {
      'dtype': dtype,
      'layers': made.config.num_layers,
      'parameters': made.config.num_params,
    }
    clock.say(f'{result["machine"]["device"]}, {result["settings"]}')
    return made

  def of_engine(part, **options):
    return lambda clock, found: part(bench(), clock, found, **options)

  parts = {
    'peer': functools.partial(accelerator_peer.run, settings),
    'limits': of_engine(accelerator_limits.limits),
    'likelihood': of_engine(accelerator_parts.likelihood, ways=_WAYS.value),
    'generation': of_engine(
      accelerator_parts.generation,
      slots=slots,
      variants=variants,
      ways=_WAYS.value,
    ),
    'kernels': of_engine(
      accelerator_parts.kernels, slots=slots[-1], variants=variants
    ),
    'layer': of_engine(accelerator_layer.layer),
    'operators': of_engine(accelerator_limits.operators),
  }
  clock = Clock(60 * _MINUTES.value, keep)
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    # The folder goes when the process ends.
    cache = tempfile.TemporaryDirectory()
    jax.config.update('jax_compilation_cache_dir', cache.name)
  # The peer goes first: later the memory is jax's.
  names = sorted(_PARTS.value, key=lambda name: name != 'peer')
  clock.run({name: (parts[name], _SHARES[name]) for name in names})
  keep(clock.result)
  print(accelerator_tables.markdown(result))


if __name__ == '__main__':
  command.launch(main, quiet=False)
