"""Bytes of the engine's programs, compiled for shapes alone.

No array of a model is made: a `MeasuringRuntime` compiles what the engine asks
for, keeps what the compiler says of its memory, and returns shapes in place of
results. Programs are those of one device, on which no other is waited for.
"""

from collections.abc import Callable
from collections.abc import Hashable
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.engine import groups
from evojax_llm.engine import likelihood
from evojax_llm.engine.batches import BATCHES_PER_CALL
from evojax_llm.engine.decode_programs import DecodePrograms
from evojax_llm.engine.plan import Plan
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.runtime import word_of
from evojax_llm.models.transformer import Transformer

# Of the tokens of a row, those of options, whose logits are read.
_READ_SHARE = 8


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one program.

  Attributes:
    name: what it does.
    workspace: bytes beside its arguments and its results.
    results: bytes of those that take no argument's memory.
    seconds: that compiling took.
  """

  name: str
  workspace: int
  results: int
  seconds: float


class MeasuringRuntime(Runtime):
  """A runtime of one device whose programs are compiled and never run.

  Attributes:
    sizes: of what was compiled, in order.
  """

  def __init__(self, dtype: Any, platform: str):
    super().__init__(devices=jax.devices()[:1], dtype=dtype)
    self._platform = platform
    self.sizes: list[Compiled] = []

  @property
  def platform(self) -> str:
    """That of the plan, which may be for other devices than are here."""
    return self._platform

  def compiled(
    self,
    name: Hashable,
    function: Callable,
    *arguments: Any,
    donate: tuple[int, ...] = (),
    **_: Any,
  ) -> Callable:
    """Compiles for shapes; what is returned makes shapes of shapes."""
    begun = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    found = lowered.compile().memory_analysis()
    self.sizes.append(
      Compiled(
        word_of(name),
        found.temp_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        time.perf_counter() - begun,
      )
    )
    return lambda *given: jax.eval_shape(function, *given)

  def ahead(self, *_: Any, **__: Any) -> None:
    """Nothing waits for these programs."""


def read(
  runtime: MeasuringRuntime,
  model: Transformer,
  params: Any,
  members: Any,
  plan: Plan,
  length: int,
) -> None:
  """Compiles the program that reads rows of `length` tokens of a group.

  Of a row's tokens an eighth are those of options, as of texts; letters have
  fewer. `params` and `members`, as `forms.lay_out` leaves them, are shapes.
  """
  calls, rows = BATCHES_PER_CALL, plan.rows(length)
  reads = -(-rows * length // _READ_SHARE)
  shapes = dict.fromkeys(
    ('tokens', 'positions', 'until'), (calls, rows, length)
  )
  shapes |= dict.fromkeys(('row', 'column'), (calls, reads))
  shapes |= dict.fromkeys(('kept', 'source', 'target'), (calls * reads,))
  shapes |= {'count': ()}
  batch = {name: _i32(*shape) for name, shape in shapes.items()}
  active = jax.ShapeDtypeStruct((plan.members_per_group,), bool)
  forms.group_program(
    runtime,
    likelihood.likelihood,
    plan.form,
    model,
    *(params, members, active, batch),
  )


def make(
  runtime: MeasuringRuntime,
  model: Transformer,
  params: Any,
  members: Any,
  plan: Plan,
  length: int,
  new: int,
) -> tuple[int, int]:
  """Compiles the programs that continue prompts of `length` tokens.

  Returns:
    Bytes of the cache of all slots, and of what else is kept between calls:
      layers beside the stacks, and members folded into the base.
  """
  # Of a kernel for other devices than are here XLA has the plain form.
  programs = DecodePrograms(
    runtime, model, params, plan.form, (), plan.walk, 'plain'
  )
  active = np.ones(plan.members_per_group, bool)
  part = programs.parts(active)[0]
  slots = plan.slots(length, new)
  # A second turn of prompts: slots are filled again as they become free.
  prompts = 2 * slots
  queue = Queue(
    owner=np.arange(prompts, dtype=np.int32),
    stops=[()] * prompts,
    slots=slots,
    refill=min(max(1, slots // 4), plan.rows(length, new)),
    columns=length + new,
    new=new,
    inputs={
      'tokens': _i32(prompts, length),
      'positions': _i32(prompts, length),
      'limits': _i32(prompts),
      'items': _i32(prompts),
    },
    prefix=None,
    prompt_tokens=0,
    prefix_tokens=0,
  )
  weights = programs.weights(members, part)
  layers = programs.layers(weights)
  call = programs.calls(queue, weights, layers, None, active[part], part)
  call(True, None, 0)
  cache = len(part) * slots * (length + new) * plan.cache_token
  own = groups.num_bytes(layers)
  if plan.form == 'folded':
    own += groups.num_bytes(weights)
  return cache, own


def _i32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.int32)
