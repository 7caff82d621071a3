"""Forms of execution: how a program is run for a group of members.

  batched: all members of the group in one batch. Mapping over the members with
    the base not mapped leaves ONE product of the base for all members and
    prompts, with each member's low rank added to it.
  folded: member after member inside one program, the member's low rank folded
    into the base. One more product a matrix, then nothing but the base's own
    work; the working set stays that of one member.

Both give the same results up to rounding. Which one is faster depends on sizes
and device (`plan.choose_form`).
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.gemma.cache import Cache
from evojax_llm.gemma.cache import init_cache
from evojax_llm.gemma.lora import fold
from evojax_llm.gemma.transformer import Gemma
from evojax_llm.population import sharding

FORMS = ('batched', 'folded')


def member_axis(form: str) -> int:
  """Where P stands in the leaves of expressed members."""
  return 1 if form == 'batched' else 0


def arrange(form: str, lora: Any) -> Any:
  """Moves the axes of expressed members (P, L, ...) to suit the form.

  Done once a generation: the batched form scans over L, and scanning leaves
  with P first would transpose the whole population in every call.
  """
  axis = member_axis(form)
  return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), lora)


def run_group(
  program: Callable,
  form: str,
  model: Gemma,
  params: Any,
  lora: Any,
  active: jax.Array,
  batch: dict[str, jax.Array],
  **static: Any,
) -> dict[str, jax.Array]:
  """Runs a program for a group of members.

  Args:
    program: `likelihood` or `generate`.
    form: 'batched' or 'folded'.
    model: the module.
    params: shared base parameters.
    lora: adapter trees of the group, as `arrange` left them.
    active: (P,) bool; the folded form spends nothing on the others, whose
      results mean nothing in either form.
    batch: arrays of the batch, the same prompts for all members.
    **static: static arguments of the program.

  Returns:
    The program's results with a leading P.
  """
  rows = batch['tokens'].shape[0]

  def apply(variables, *args):
    return model.apply(variables, *args)

  def unembed(hidden):
    return model.apply({'params': params}, hidden, method='unembed')

  def new_cache(slots: int) -> Cache:
    return init_cache(model.config, rows, slots, model.dtype)

  if form == 'folded':

    def one(member):
      lora, active = member

      def run(lora):
        folded = {'params': fold(params, lora)}
        return program(
          lambda *args: apply(folded, *args),
          unembed,
          batch,
          new_cache=new_cache,
          **static,
        )

      def skip(lora):
        return jax.tree.map(
          lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, lora)
        )

      return jax.lax.cond(active, run, skip, lora)

    return jax.lax.map(one, (lora, active))

  members = active.shape[0]
  forward = batched_forward(model, params, lora, members)

  def new_caches(slots: int) -> Cache:
    cache = new_cache(slots)
    stacked = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape)), cache
    )
    return stacked.replace(index=cache.index)

  return program(forward, unembed, batch, new_cache=new_caches, **static)


def batched_forward(
  model: Gemma, params: Any, lora: Any, members: int
) -> Callable:
  """The forward pass of a group in the batched form.

  Args:
    model: the module.
    params: shared base parameters.
    lora: adapter trees of the group, as `arrange` left them.
    members: P.

  Returns:
    forward(tokens, positions, cache, until, prefix) of `Gemma`, with a leading
    P but for `cache.index` and `until`; tokens without one are the same for all
    members.
  """
  # The slot index is the same for all members and stays a scalar: mapped, it
  # would turn each cache write into a scatter.
  cache_axes = Cache(k=0, v=0, positions=0, index=None)

  def forward(tokens, positions, cache, until=None, prefix=None):
    mapped = 0 if tokens.ndim == 3 else None
    axes = None if cache is None else cache_axes
    return jax.vmap(
      lambda lora, *args: model.apply({'params': params, 'lora': lora}, *args),
      in_axes=(1, mapped, mapped, axes, None, None if prefix is None else 0),
      out_axes=(0, axes),
      axis_size=members,
    )(lora, tokens, positions, cache, until, prefix)

  return forward


def group_program(
  program: Callable,
  form: str,
  model: Gemma,
  mesh: jax.sharding.Mesh,
  **static: Any,
) -> Callable:
  """`run_group` of (params, lora, active, batch), members spread over devices.

  Every device runs its own members; nothing is communicated.
  """
  run = functools.partial(run_group, program, form, model, **static)
  if mesh.size == 1:
    return run
  whole = jax.sharding.PartitionSpec()
  members = sharding.population_spec()
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(
      whole,
      sharding.population_spec(member_axis(form)),
      members,
      whole,
    ),
    out_specs=members,
    check_vma=False,
  )
