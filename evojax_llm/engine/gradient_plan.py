"""Decides how many members learn side by side, before anything is compiled."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine import groups
from evojax_llm.engine import plan as planning
from evojax_llm.engine import unembedding
from evojax_llm.engine.gradient_member import HYPER
from evojax_llm.engine.gradient_member import Learner
from evojax_llm.engine.gradient_rows import Rows
from evojax_llm.engine.runtime import Runtime

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class GradientPlan:
  """How many members learn side by side.

  Attributes:
    members_per_group: of all devices together.
    device: platform.
    budget: bytes that may be used on one device.
    fixed: bytes of the shared parameters and of the population.
    member: bytes that one member takes while it learns.
  """

  members_per_group: int
  device: str
  budget: int
  fixed: int
  member: int

  def describe(self) -> str:
    """Returns the plan in a line, for people."""
    return (
      f'gradient steps: groups of {self.members_per_group} members on '
      f'{self.device}, {self.member / _MIB:,.0f} MiB each beside '
      f'{self.fixed / _MIB:,.0f} MiB of {self.budget / _MIB:,.0f} MiB'
    )


def make_plan(
  learner: Learner,
  runtime: Runtime,
  genome: Any,
  rows: Rows,
  *,
  fixed: int,
  members: int,
  fewer: bool = True,
  budget: float | None = None,
) -> GradientPlan:
  """Chooses the size of groups.

  Args:
    learner: of the members.
    runtime: its devices and type of activations.
    genome: of a member, or shapes and types.
    rows: to learn from, of any number.
    fixed: bytes of what is there beside the members that learn.
    members: most that learn at a time.
    fewer: whether groups may be smaller.
    budget: bytes on one device, or None to ask the device.

  Raises:
    MemoryPlanError: they do not fit.
  """
  config = learner.config
  device, devices = runtime.mesh.devices.flat[0], runtime.shards
  budget = planning.budget_of(budget, device)
  hyper = {name: jnp.float32(1) for name in HYPER}
  trained = jax.eval_shape(learner.begin, genome, jax.random.key(0), hyper)
  state = jax.eval_shape(learner.start_state, trained, hyper)
  length = rows.tokens.shape[-1]
  texts = learner.settings.batch * rows.end.shape[1]
  kept = config.num_layers * config.embed_dim
  # The inputs of all layers, and one layer that is computed again and walked
  # back.
  token = kept * jnp.dtype(runtime.dtype).itemsize
  token += 3 * planning.layer_bytes(config)
  pair = 3 * 4 * config.num_heads * length
  logits = min(
    texts * learner.reads * config.vocab_size, unembedding.LOGITS_AT_ONCE
  )
  member = (
    2 * groups.num_bytes(genome)
    + 3 * groups.num_bytes(trained)  # values, gradient and update
    + groups.num_bytes(state)
    + texts * length * (token + pair)
    + 3 * 4 * logits
  )
  wanted = -(-members // devices)
  fit = min(wanted, max(0, budget - fixed) // member)
  if fit < (1 if fewer else wanted):
    raise planning.MemoryPlanError(
      f'Gradient steps take {member / _MIB:,.0f} MiB for a member, in batches '
      f'of {texts} texts of {length} tokens, beside {fixed / _MIB:,.0f} MiB '
      f'that are fixed; the budget is {budget / _MIB:,.0f} MiB. Use a smaller '
      'batch, shorter rows, fewer members_per_group, an adapter in place of '
      'all weights, or a larger memory budget.'
    )
  return GradientPlan(fit * devices, device.platform, budget, fixed, member)
