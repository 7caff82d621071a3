"""Continues prompts through the decoder, as its tests do."""

from concurrent import futures
import dataclasses

import jax
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.engine import queues as queues_lib
from evojax_llm.engine.decoder import Decoder
from evojax_llm.engine.runtime import Runtime
from evojax_llm.models.expression import LowRank
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import sharding
from evojax_llm.population import stack

STOP_IDS = tuple(range(5, 300, 15))


@dataclasses.dataclass(frozen=True)
class Bytes:
  """A tokenizer whose tokens are letters, two of which make a character."""

  stop_ids: tuple[int, ...] = STOP_IDS

  def decode(self, ids):
    return bytes(97 + i % 26 for i in ids).decode()


def run(model, prompts, form='folded', slots=3, refill=2, **options):
  """Tokens of each member and prompt, or None for a member that failed.

  Args:
    model: (config, params, population).
    prompts: to be continued.
    form: of execution.
    slots: prompts in work at a time.
    refill: prompts read at a time.
    **options: runtime, or devices, ledger and sampling for one; ids, active,
      stop_ids; `walk`, the decoder's walk and attention; `before`, a population
      that the same decoder continues first.
  """
  config, params, population = model
  runtime = options.pop('runtime', None) or Runtime(
    devices=jax.devices()[: options.pop('devices', 1)],
    sampling=options.pop('sampling', None),
    ledger=options.pop('ledger', None),
  )
  mesh = runtime.mesh
  ids = options.pop('ids', range(stack.size(population)))
  whole = sharding.replicated(mesh)
  queues = queues_lib.pack_queues(
    prompts, lambda *_: slots, lambda *_: refill, whole
  )
  decoder = Decoder(
    runtime,
    Transformer(config),
    jax.device_put(params, whole),
    form,
    Bytes(options.pop('stop_ids', STOP_IDS)),
    **options.pop('walk', {}),
  )
  active = np.asarray(options.pop('active', [True] * len(ids)))
  before = options.pop('before', None)
  assert not options
  for members in [population] if before is None else [before, population]:
    lora = jax.device_put(
      forms.lay_out(form, LowRank(members)),
      sharding.population_sharding(mesh, forms.member_axis(form)),
    )
    results = decoder.start(queues, lora, active, list(ids)).finish()
  # What has been compiled ahead is what was asked for.
  programs = [program for program, _ in runtime._programs.values()]
  assert not any(isinstance(p, futures.Future) for p in programs)
  texts = []
  for m in range(len(ids)):
    made = [None] * len(prompts)
    for queue, result in zip(queues, results, strict=True):
      for owner, row in zip(queue.owner, result.tokens[m], strict=True):
        made[owner] = tuple(row[row >= 0].tolist())
    finite = all(result.finite[m] for result in results)
    texts.append(made if finite else None)
  return texts
