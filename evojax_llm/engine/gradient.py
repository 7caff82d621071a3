"""Gradient steps of members: the engine's own forward pass, differentiated.

Layers are rematerialised, so that of each only its input is kept, and a long
vocabulary is unembedded in blocks, forward and back. Members of a group learn
side by side, each with its own draw of rows and its own hyperparameters; what
they share is read once.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import gradient_losses
from evojax_llm.engine import gradient_plan
from evojax_llm.engine import gradient_rows
from evojax_llm.engine import groups
from evojax_llm.engine.gradient_member import HYPER
from evojax_llm.engine.gradient_member import Learner
from evojax_llm.engine.gradient_member import Settings
from evojax_llm.engine.gradient_rows import Rows
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes.space import Expressing
from evojax_llm.models import expression
from evojax_llm.models import soft_tokens
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.tasks.training_data import EncodedRow


class GradientSteps:
  """Has members of a population learn.

  Attributes:
    plan: None before `prepare` or the first `steps`.
    losses: (M, steps) f32 of the last `steps`, before each step.
  """

  def __init__(
    self,
    runtime: Runtime,
    space: Expressing,
    batches: Rows | Sequence[EncodedRow],
    settings: Settings,
    *,
    budget: float | None = None,
    members_per_group: int | None = None,
    soft: jax.Array | None = None,
  ):
    """Makes the steps; nothing is compiled.

    Args:
      runtime: devices, programs and counts.
      space: of the population.
      batches: rows to learn from, of which each member draws its own.
      settings: how members learn.
      budget: bytes on one device, or None to ask the device.
      members_per_group: fixed by the user, or None.
      soft: soft tokens of images in the rows; see `engine.image_table`.

    Raises:
      ValueError: the rows are not of the kind that the loss needs, or members
        of the space cannot learn in this way.
    """
    rows = batches if isinstance(batches, Rows) else gradient_rows.pack(batches)
    pairs = gradient_losses.is_of_pairs(settings.loss)
    if rows.end.shape[1] != 1 + pairs:
      raise ValueError(
        f'Got rows of {rows.end.shape[1]} texts for the loss {settings.loss}; '
        f'expected {"pairs of a chosen and a rejected" if pairs else "one"}.'
      )
    longest = int(rows.end.max())
    context = space.model().config.max_position_embeddings
    if longest > context:
      raise ValueError(
        f'Got a text of {longest} tokens to learn from; expected at most '
        f'{context}, the context of the model. Leave out rows that are longer.'
      )
    if settings.train == 'adapter':
      _check_whole(space)
    self.plan: gradient_plan.GradientPlan | None = None
    self.losses: np.ndarray | None = None
    self._settings, self._pairs = settings, pairs
    self._runtime, self._space = runtime, space
    self._learner = Learner(space, settings, rows.reads, runtime.dtype)
    self._rows = sharding.place(rows, sharding.replicated(runtime.mesh))
    self._choices, self._soft = (budget, members_per_group), soft

  def prepare(
    self, population: Any, members: int | None = None
  ) -> gradient_plan.GradientPlan:
    """Fixes the size of groups, and keeps the plan.

    Args:
      population: genomes (P, ...), or their shapes and types.
      members: most that learn at a time; P by default.

    Raises:
      MemoryPlanError: not even one fits.
    """
    budget, asked = self._choices
    size = jax.tree.leaves(population)[0].shape[0]
    self.plan = gradient_plan.make_plan(
      self._learner,
      self._runtime,
      jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
        population,
      ),
      self._rows,
      fixed=groups.num_bytes(
        (self._space.model().params, self._soft, population)
      ),
      members=min(asked or size, members or size, size),
      fewer=not asked,
      budget=budget,
    )
    return self.plan

  def steps(
    self,
    members: Any,
    which: Sequence[int] | np.ndarray,
    key: jax.Array,
    hyper: Mapping[str, Any] | None = None,
  ) -> Any:
    """Returns a population in which some members have learnt.

    The ledger's gradient_tokens count three times the tokens that steps read,
    as a step forward and back costs three passes forward, and once what the
    reference of pairs reads.

    Args:
      members: genomes (P, ...), which are left alone. Where its leaves are
        numpy arrays it stays on the host.
      which: (M,) indices of those that learn; no two the same.
      key: () of all draws; those of a member depend on it and on its index.
      hyper: (M,) arrays by the names of HYPER, where members differ.

    Raises:
      ValueError: an index is of no member, or a hyperparameter is unknown or
        cannot be.
      MemoryPlanError: not even one member fits.
    """
    chosen = groups.check_members(self._space, members, which)
    values = self._hyper(hyper or {}, len(chosen))
    self.losses = np.zeros((len(chosen), self._settings.steps), np.float32)
    if not len(chosen):
      return members
    if self.plan is None:
      self.prepare(members, len(chosen))
    size, count = self.plan.members_per_group, stack.size(members)
    on_host = all(isinstance(x, np.ndarray) for x in jax.tree.leaves(members))
    if on_host:
      members = jax.tree.map(np.copy, members)
    for first in range(0, len(chosen), size):
      part = slice(first, first + size)
      # What is missing repeats the first one, and goes nowhere.
      index = np.full(size, chosen[first], np.int32)
      index[: len(chosen[part])] = chosen[part]
      into = np.full(size, count, np.int32)
      into[: len(chosen[part])] = chosen[part]
      own = {name: np.resize(v[part], size) for name, v in values.items()}
      members, found = self._group(members, index, into, own, key, on_host)
      losses, tokens = (leaf[: len(chosen[part])] for leaf in found)
      self.losses[part] = losses
      self._runtime.ledger.gradient_tokens += int(tokens.sum())
    return members

  def _group(self, members, index, into, hyper, key, on_host):
    """Has a group learn; returns the population, losses and tokens."""
    runtime, ledger = self._runtime, self._runtime.ledger
    along = sharding.population_sharding(runtime.mesh)
    if on_host:
      group = jax.tree.map(lambda leaf: leaf[index], members)
    else:
      program = runtime.compiled('take', _take, members, index)
      group = program(members, index)
    ids = index.astype(np.int32)
    group, ids, hyper = sharding.place((group, ids, hyper), along)
    key = sharding.place(key, sharding.replicated(runtime.mesh))
    params = soft_tokens.beside(runtime.params(self._space), self._soft)
    arguments = params, group, ids, hyper, key, self._rows
    whole, spec = jax.sharding.PartitionSpec(), sharding.population_spec()
    program = runtime.compiled(
      ('gradient', id(self._learner)),
      self._run,
      *arguments,
      in_specs=(whole, spec, spec, spec, whole, whole),
      out_specs=(spec, spec, spec),
      keep=self._learner,
    )
    with ledger.time('gradient'):
      learnt, *found = program(*arguments)
      found = sharding.to_host(found)
    if on_host:
      learnt = sharding.to_host(learnt)
      there = into < stack.size(members)
      for leaf, new in zip(
        jax.tree.leaves(members), jax.tree.leaves(learnt), strict=True
      ):
        leaf[into[there]] = new[there]
      return members, found
    learnt = jax.tree.map(_beside, learnt, members)
    program = runtime.compiled('put', _put, members, learnt, into)
    return program(members, learnt, into), found

  def _run(self, params, group, ids, hyper, key, rows):
    """Has the members of a group learn; (G, ...), (G, steps) and (G,)."""

    def one(genome, number, hyper):
      own = jax.random.fold_in(key, number.astype(jnp.uint32))
      return self._one(params, genome, own, hyper, rows)

    return jax.vmap(one)(group, ids, hyper)

  def _one(self, params, genome, key, hyper, rows):
    settings, learner = self._settings, self._learner
    keys = jax.random.split(key, 3)
    pool, order = self._draw(keys[0], keys[1], rows.end.shape[0])
    trained = learner.begin(genome, keys[2], hyper)
    own = rows.take(pool)
    reference, tokens = None, 3 * jnp.sum(own.end[order])
    if self._pairs:
      # Of the member as it is: an adapter that has learnt nothing is zero.
      batches = -(-len(pool) // settings.batch)
      padded = jnp.resize(jnp.arange(len(pool)), (batches, settings.batch))
      reference = jax.lax.map(
        lambda batch: learner.text_logprobs(
          params, genome, trained, hyper, own.take(batch)
        ),
        padded,
      )
      reference = reference.reshape(-1, 2)[: len(pool)][order]
      tokens += jnp.sum(own.end)
    trained, _, found = learner.learn(
      params,
      genome,
      trained,
      learner.start_state(trained, hyper),
      hyper,
      own.take(order),
      reference,
    )
    return learner.finish(genome, trained, hyper), found, tokens

  def _draw(self, first, second, count):
    """Rows (n,) of a member, and of these the rows (steps, batch) of steps."""
    settings = self._settings
    needed = settings.steps * settings.batch
    own = min(settings.rows or count, count, needed)
    pool = jax.random.permutation(first, count)[:own]
    epochs = jax.random.split(second, -(-needed // own))
    order = jax.vmap(lambda key: jax.random.permutation(key, own))(epochs)
    order = order.reshape(-1)[:needed]
    return pool, order.reshape(settings.steps, settings.batch)

  def _hyper(self, given, count):
    """(M,) f32 by name, checked."""
    if unknown := sorted(given.keys() - set(HYPER)):
      raise ValueError(
        f'Got hyperparameter {unknown[0]!r}; expected some of '
        f'{", ".join(HYPER)}.'
      )
    values = {}
    for name in HYPER:
      value = np.asarray(given.get(name, getattr(self._settings, name)))
      value = value.astype(np.float32)
      if value.shape not in ((), (count,)) or not np.isfinite(value).all():
        raise ValueError(
          f'Got {name} {given[name]!r} for {count} members; expected a finite '
          'number for each.'
        )
      values[name] = np.broadcast_to(value, (count,))
    rank = values['rank']
    if ((rank < 1) | (rank > self._settings.rank)).any():
      raise ValueError(
        f'Got rank {given["rank"]!r}; expected 1 to {self._settings.rank}, the '
        'rank of the settings.'
      )
    return values


def _check_whole(space: Expressing) -> None:
  """Refuses an adapter that could not be folded into members."""
  base = jax.eval_shape(space.base)
  made = None if base is None else jax.eval_shape(space.express, base)
  if made is not None and not isinstance(made, expression.Weights):
    raise ValueError(
      'Got an adapter to be trained for members that are no whole models, into '
      "which it cannot be folded; expected train='member'."
    )


def _take(members, index):
  return jax.tree.map(lambda leaf: leaf[index], members)


def _put(members, learnt, into):
  # Indices beyond the population are dropped.
  return jax.tree.map(
    lambda leaf, new: leaf.at[into].set(new, mode='drop'), members, learnt
  )


def _beside(learnt: jax.Array, member: jax.Array) -> jax.Array:
  """Moves what has learnt to where the population is."""
  target = getattr(member, 'sharding', None)
  if target is None:
    return learnt
  if len(target.device_set) > 1:
    target = sharding.replicated(target.mesh)
  return sharding.place(learnt, target)
