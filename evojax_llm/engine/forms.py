"""Forms of execution: how a program is run for a group of members.

  batched: all members of the group in one batch. Mapping over the members with
    the base not mapped leaves ONE product of the base for all members and
    prompts, with each member's low rank added to it.
  folded: member after member inside one program, the member's low rank folded
    into the base. One more product a matrix, then nothing but the base's own
    work; the working set stays that of one member. Members that are whole
    parameters have this form alone.

Members that are paths have nothing to fold and no product to share. In the
folded form, theirs unless another is asked for, each costs its own hops; in the
batched form each has a copy of the layer it is at, and costs the hops of the
longest one of its group.

Both give the same results up to rounding. Which one is faster depends on sizes
and device (`plan.choose_form`).
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.unembedding import Unembedding
from evojax_llm.models.cache import Cache
from evojax_llm.models.expression import alone
from evojax_llm.models.expression import longest
from evojax_llm.models.expression import variables
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import sharding

FORMS = ('batched', 'folded')


def member_axis(form: str) -> int:
  """Where P stands in the leaves of expressed members."""
  return 1 if form == 'batched' else 0


def lay_out(form: str, expressed: Any) -> Any:
  """Moves the axes of expressed members (P, L, ...) to suit the form.

  Done once a generation: the batched form scans over L, and scanning leaves
  with P first would transpose the whole population in every call.
  """
  axis = member_axis(form)
  return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), expressed)


def run_group(
  program: Callable,
  form: str,
  model: Transformer,
  params: Any,
  members: Any,
  active: jax.Array,
  batch: dict[str, jax.Array],
  *,
  platform: str,
  model_devices: int = 1,
) -> dict[str, jax.Array]:
  """Runs a program of (forward, unembed, batch) for a group of P members.

  Members are as `lay_out` left them, the batch is the same for all. The folded
  form spends nothing on those that are not `active` (P,), whose results mean
  nothing in either form.
  """

  def unembed_with(params):
    return Unembedding.of(model.config, params, platform, model_devices)

  if form == 'batched':
    forward = batched_forward(model, params, members, active.shape[0])
    return program(forward, unembed_with(params), batch)

  def run(member):
    own = alone(params, member)
    return program(
      lambda *args: model.apply(own, *args),
      unembed_with(own['params']),
      batch,
    )

  def skip(member):
    return jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(run, member)
    )

  return jax.lax.map(
    lambda member: jax.lax.cond(member[1], run, skip, member[0]),
    (members, active),
  )


def batched_forward(
  model: Transformer, params: Any, expressed: Any, members: int
) -> Callable:
  """The forward pass of a group of P members in the batched form.

  Returns:
    forward(tokens, positions, cache, until, prefix) of `Transformer`, with a
      leading P but for `cache.index` and `until`; tokens without one are the
      same for all members.
  """
  # The slot index is the same for all members and stays a scalar: mapped, it
  # would turn each cache write into a scatter.
  cache_axes = Cache(k=0, v=0, positions=0, index=None)
  count = longest(expressed)

  def forward(tokens, positions, cache, until=None, prefix=None):
    mapped = 0 if tokens.ndim == 3 else None
    axes = None if cache is None else cache_axes
    return jax.vmap(
      lambda member, *args: model.apply(
        variables(params, member, count), *args
      ),
      in_axes=(1, mapped, mapped, axes, None, None if prefix is None else 0),
      out_axes=(0, axes),
      axis_size=members,
    )(expressed, tokens, positions, cache, until, prefix)

  return forward


def group_program(
  runtime: Runtime,
  program: Callable,
  form: str,
  model: Transformer,
  *arguments: Any,
) -> Callable:
  """Returns the compiled `run_group` of (params, members, active, batch).

  Every device runs its own members; nothing is communicated.
  """
  return _compile(runtime.compiled, runtime, program, form, model, arguments)


def begin_group_program(
  runtime: Runtime,
  program: Callable,
  form: str,
  model: Transformer,
  *arguments: Any,
) -> None:
  """Begins to compile a `group_program`, and does not wait for it."""
  _compile(runtime.ahead, runtime, program, form, model, arguments)


def _compile(compile_, runtime, program, form, model, arguments):
  whole, along = jax.sharding.PartitionSpec(), sharding.population_spec()
  members = sharding.population_spec(member_axis(form))
  return compile_(
    (program.__name__, form, model),
    functools.partial(
      run_group,
      program,
      form,
      model,
      platform=runtime.platform,
      model_devices=runtime.model_devices,
    ),
    *arguments,
    in_specs=(whole, members, along, whole),
    out_specs=along,
  )
