"""Which execution form is faster, by trying them for a moment."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.engine import likelihood
from evojax_llm.engine.plan import Plan
from evojax_llm.engine.runtime import Runtime
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import hosts
from evojax_llm.population import sharding

# A row that all models can read, long enough to be like the work to come.
_LENGTH = 128
_BATCHES = 2
# Passes are timed, three at most, until they have taken so long together.
_ENOUGH_SECONDS = 1.0


def choose(
  plans: Sequence[Plan],
  runtime: Runtime,
  model: Transformer,
  params: Any,
  member: Any,
) -> Plan:
  """Returns the plan whose form reads the most tokens a second.

  Each form reads a few rows of zeros for the members that it computes together,
  one a device in the folded form; values do not change the time. `member` holds
  shapes and types of one expressed member.
  """
  speeds = {
    plan.form: _speed(plan, runtime, model, params, member) for plan in plans
  }
  speeds = hosts.agreed(speeds)
  best = max(plans, key=lambda plan: speeds[plan.form])
  shown = ', '.join(f'{form} {v:,.0f}' for form, v in speeds.items())
  return dataclasses.replace(best, reason=f'measured tokens/s: {shown}')


def _speed(
  plan: Plan, runtime: Runtime, model: Transformer, params: Any, member: Any
) -> float:
  """Returns tokens a second of the likelihood program in a plan's form."""
  mesh, axis = runtime.mesh, forms.member_axis(plan.form)
  size = -(-plan.members_at_once // runtime.shards) * runtime.shards
  rows = plan.rows(_LENGTH)
  shape = (_BATCHES, rows, _LENGTH)
  reads = np.zeros((_BATCHES, rows), np.int32)
  read = np.arange(reads.size, dtype=np.int32)
  batch = {
    'tokens': np.zeros(shape, np.int32),
    'positions': np.broadcast_to(np.arange(_LENGTH, dtype=np.int32), shape),
    'until': np.full(shape, _LENGTH, np.int32),
    'row': reads,
    'column': reads,
    'kept': read,
    'count': np.int32(read.size),
    'source': read,
    'target': reads.ravel(),
  }
  members = jax.tree.map(
    lambda leaf: np.zeros(
      (*leaf.shape[:axis], size, *leaf.shape[axis:]), leaf.dtype
    ),
    member,
  )
  along = sharding.population_sharding
  arguments = (
    params,
    sharding.place(members, along(mesh, axis)),
    sharding.place(np.ones(size, bool), along(mesh)),
    sharding.place(batch, sharding.replicated(mesh)),
  )
  program = forms.group_program(
    runtime, likelihood.likelihood, plan.form, model, *arguments
  )
  seconds = []
  while len(seconds) < 3 and sum(seconds) < _ENOUGH_SECONDS:
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    seconds.append(time.perf_counter() - start)
  return size * batch['tokens'].size / min(seconds)
