"""What slots that are refilled gain over static batches on uneven answers.

The same members continue the same prompts, with the same number of slots, in
two ways:

  refilled   a slot takes the next prompt when its answer ends
  static     a batch waits for its longest answer

How long answers are is drawn once, from 1 to --longest tokens with their mean
in between (a geometric law, cut off), and is known to neither way beforehand:
the prompts stand in random order. Ways take turns; medians are reported.
Compilation is not timed.

  python -m experiments.benchmark_generation --out=/tmp/generation
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import statistics
import time

from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import pocket
from evojax_llm.commands import command
from evojax_llm.engine import forms
from evojax_llm.engine.decoder import Decoder
from evojax_llm.engine.queues import Prompt
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.queues import pack_queues
from evojax_llm.engine.runtime import Runtime
from evojax_llm.models import hub
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.expression import LowRank
from evojax_llm.models.rope import Rope
from evojax_llm.models.transformer import Transformer
from evojax_llm.models.transformer import init_params
from evojax_llm.population import sharding
from experiments.benchmarks import tables

_MODEL = flags.DEFINE_enum(
  'model', 'pocket', ['pocket', 'mid'], '1 M parameters, or 106 M at random.'
)
_FORM = flags.DEFINE_enum('form', 'folded', forms.FORMS, 'Of execution.')
_MEMBERS = flags.DEFINE_integer('members', 1, 'Members.')
_PROMPTS = flags.DEFINE_integer('prompts', 256, 'Prompts of a member.')
_LENGTH = flags.DEFINE_integer('length', 16, 'Tokens of a prompt.')
_LONGEST = flags.DEFINE_integer('longest', 64, 'Tokens of the longest answer.')
_MEAN = flags.DEFINE_float('mean', 16.0, 'Tokens of an answer, before the cut.')
_SLOTS = flags.DEFINE_integer('slots', 32, 'Prompts in work at a time.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed repeats of each way.')
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json.')

_MID = ModelConfig(
  model_type='gemma2',
  vocab_size=8192,
  num_layers=12,
  embed_dim=768,
  ffn_dim=3072,
  num_heads=8,
  num_kv_heads=4,
  head_dim=96,
  query_pre_attn_scalar=96.0,
  attn_softcap=50.0,
  final_softcap=30.0,
  sliding_window=4096,
  layer_types=('sliding_attention', 'full_attention') * 6,
  rope_full=Rope(),
  rope_sliding=Rope(),
  activation='gelu_tanh',
  norm_eps=1e-6,
  post_norms=True,
  qk_norm=False,
  max_position_embeddings=8192,
)


@dataclasses.dataclass(frozen=True)
class NoStops:
  """A tokenizer of which no token ends an answer: lengths are drawn."""

  stop_ids: tuple[int, ...] = ()

  def decode(self, ids) -> str:
    """Is not asked for: there are no stop strings either."""
    raise NotImplementedError


def draw_lengths(count: int, mean: float, longest: int) -> np.ndarray:
  """(count,) i32 lengths of answers, from 1 to `longest`."""
  rng = np.random.default_rng(0)
  return np.minimum(rng.geometric(1 / mean, count), longest).astype(np.int32)


def make_queues(
  prompts: list[tuple[int, ...]],
  lengths: np.ndarray,
  longest: int,
  slots: int,
  whole: jax.sharding.Sharding,
) -> list[Queue]:
  """Queues of the prompts in their order, whose answers have these lengths."""
  packed = pack_queues(
    [Prompt(ids, longest) for ids in prompts],
    lambda *_: slots,
    lambda *_: slots,
    whole,
  )
  return [
    dataclasses.replace(
      queue,
      inputs={
        **queue.inputs,
        'limits': jax.device_put(lengths[queue.owner], whole),
      },
    )
    for queue in packed
  ]


def measure() -> dict:
  """Times both ways; returns what is written."""
  mesh = sharding.population_mesh(jax.devices()[:1])
  whole = sharding.replicated(mesh)
  if _MODEL.value == 'pocket':
    config, params = hub.load_checkpoint(pocket.base_folder())
  else:
    config = _MID
    params = init_params(config, jax.random.key(0))
  members, rng = _MEMBERS.value, np.random.default_rng(1)
  lora = {'layers': {}}
  for (block, name), (fan_in, fan_out) in config.linear_shapes().items():
    shape = (members, config.num_layers)
    lora['layers'].setdefault(block, {})[name] = {
      'a': rng.normal(0, 0.02, (*shape, fan_in, 8)).astype(np.float32),
      'b': rng.normal(0, 0.02, (*shape, 8, fan_out)).astype(np.float32),
    }
  lora = LowRank(jax.tree.map(jnp.asarray, lora))
  lora = forms.lay_out(_FORM.value, lora)
  prompts = [
    tuple(rng.integers(3, config.vocab_size, _LENGTH.value).tolist())
    for _ in range(_PROMPTS.value)
  ]
  slots = min(_SLOTS.value, len(prompts))
  lengths = draw_lengths(len(prompts), _MEAN.value, _LONGEST.value)
  refilled = make_queues(prompts, lengths, _LONGEST.value, slots, whole)
  static = [
    queue
    for i in range(0, len(prompts), slots)
    for queue in make_queues(
      prompts[i : i + slots],
      lengths[i : i + slots],
      _LONGEST.value,
      slots,
      whole,
    )
  ]
  model = Transformer(config)
  params = jax.device_put(params, whole)
  ways = {}
  for name, queues in (('refilled', refilled), ('static', static)):
    runtime = Runtime(devices=jax.devices()[:1])
    decoder = Decoder(runtime, model, params, _FORM.value, NoStops())
    ways[name] = (decoder, queues, runtime.ledger)

  def run(name: str) -> float:
    decoder, queues, _ = ways[name]
    start = time.perf_counter()
    decoder.start(queues, lora, np.ones(members, bool)).finish()
    return time.perf_counter() - start

  for name in ways:
    run(name)
    run(name)  # the first time, slots are filled apart.
    ledger = ways[name][2]
    compiling = ledger.seconds['compile']
    logging.info('%s: compiled in %.1f s', name, compiling)
    ways[name][2].__init__()
  seconds = {name: [] for name in ways}
  for _ in range(_REPEATS.value):
    for name in ways:
      seconds[name].append(run(name))
  tokens = int(lengths.sum()) * members
  result = {}
  for name, (_, _, ledger) in ways.items():
    median = statistics.median(seconds[name])
    result[name] = {
      'seconds': seconds[name],
      'new_tokens_per_second': tokens / median,
      'occupancy': ledger.occupancy,
      'ledger': ledger.as_dict(),
    }
    assert ledger.new_tokens == tokens * _REPEATS.value
  medians = {name: statistics.median(s) for name, s in seconds.items()}
  return {
    **tables.of_program('benchmark_generation'),
    'tokens': tokens,
    'ways': result,
    'speedup': medians['static'] / medians['refilled'],
  }


def main(_: Sequence[str]) -> None:
  result = measure()
  for name, way in result['ways'].items():
    print(
      f'{name:9} {statistics.median(way["seconds"]):7.3f} s '
      f'{way["new_tokens_per_second"]:9,.0f} new tokens/s  '
      f'occupancy {way["occupancy"]:.2f}'
    )
  print(f'refilled is {result["speedup"]:.2f} times as fast')
  if _OUT.value:
    out = pathlib.Path(_OUT.value).with_suffix('.json')
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  command.launch(main, quiet=False)
