"""Which execution form is faster, by trying them for a moment."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine import forms
from evojax_llm.engine import likelihood
from evojax_llm.engine.plan import Plan
from evojax_llm.models.transformer import Gemma
from evojax_llm.population import sharding

# A row that all models can read, long enough to be like the work to come.
_LENGTH = 128
_BATCHES = 2


def choose(
  plans: Sequence[Plan],
  model: Gemma,
  params: Any,
  member: Any,
  mesh: jax.sharding.Mesh,
) -> Plan:
  """The plan whose form reads the most tokens a second.

  Each form reads a few rows of nothing in particular for its group of members;
  values do not change the time. Both programs are compiled for it.

  Args:
    plans: that differ in their form.
    model: the module.
    params: of the base, on all devices.
    member: shapes and types of one expressed member.
    mesh: devices.

  Returns:
    One of the plans, with the speeds of all in `reason`.
  """
  speeds = {
    plan.form: _speed(plan, model, params, member, mesh) for plan in plans
  }
  best = max(plans, key=lambda plan: speeds[plan.form])
  told = ', '.join(f'{form} {v:,.0f}' for form, v in speeds.items())
  return dataclasses.replace(best, reason=f'measured tokens/s: {told}')


def _speed(
  plan: Plan,
  model: Gemma,
  params: Any,
  member: Any,
  mesh: jax.sharding.Mesh,
) -> float:
  """Tokens a second of the likelihood program in a plan's form."""
  size = -(-plan.members_per_group // mesh.size) * mesh.size
  rows = plan.rows(_LENGTH)
  shape = (_BATCHES, rows, _LENGTH)
  columns = jnp.broadcast_to(jnp.arange(_LENGTH, dtype=jnp.int32), shape)
  reads = jnp.zeros((_BATCHES, rows), jnp.int32)
  batch = jax.device_put(
    {
      'tokens': jnp.zeros(shape, jnp.int32),
      'positions': columns,
      'until': jnp.full(shape, _LENGTH, jnp.int32),
      'row': reads,
      'column': reads,
      'target': reads,
    },
    sharding.replicated(mesh),
  )
  members = jax.tree.map(
    lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), member
  )
  along = sharding.population_sharding
  members = jax.device_put(
    forms.arrange(plan.form, members), along(mesh, forms.member_axis(plan.form))
  )
  active = jax.device_put(jnp.ones(size, bool), along(mesh))
  run = jax.jit(
    forms.group_program(likelihood.likelihood, plan.form, model, mesh)
  )
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    jax.block_until_ready(run(params, members, active, batch))
    seconds.append(time.perf_counter() - start)
  return size * columns.size / min(seconds)
