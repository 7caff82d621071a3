"""The compiled programs that continue prompts, for the members of a wave.

A wave is what is in work at a time: a whole group in the batched form, one
member a device in the folded form. All arrays of a wave have a leading P and
are spread over the devices.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import continuous_batching
from evojax_llm.engine import forms
from evojax_llm.engine.continuous_batching import Slots
from evojax_llm.engine.ledger import Ledger
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.sampling import Sampling
from evojax_llm.models.cache import as_prefix
from evojax_llm.models.cache import init_cache
from evojax_llm.models.expression import fold
from evojax_llm.models.transformer import Gemma
from evojax_llm.population import sharding


class Waves:
  """Programs for the members of a wave; each is compiled once.

  Args:
    model: the module.
    params: its parameters, on all devices of the mesh.
    mesh: devices that the members are spread over.
    form: 'batched' or 'folded' (see `forms`).
    stop_ids: tokens that end an answer.
    ledger: counts programs and the time to compile them.
    sampling: how tokens are chosen; greedy by default.
  """

  def __init__(
    self,
    model: Gemma,
    params: Any,
    mesh: jax.sharding.Mesh,
    form: str,
    stop_ids: tuple[int, ...],
    ledger: Ledger,
    sampling: Sampling | None = None,
  ):
    self._model, self._params, self._mesh = model, params, mesh
    self._form, self._stop_ids, self._ledger = form, stop_ids, ledger
    self._sampling = jax.device_put(
      sampling and sampling.arrays(), sharding.replicated(mesh)
    )
    self._compiled: dict[tuple, Callable] = {}
    self._slots: tuple[tuple, Slots] | None = None

  def split(self, active: np.ndarray) -> list[np.ndarray]:
    """Indices of the members of each wave of a group; none is idle.

    Args:
      active: (P,) bool members of the group that have work.
    """
    if self._form == 'batched':
      return [np.arange(len(active))]
    # A device holds members in a row, and works on one of them at a time.
    waves = np.arange(len(active)).reshape(self._mesh.size, -1).T
    return [wave for wave in waves if active[wave].any()]

  def weights(self, lora: Any, wave: np.ndarray) -> Any:
    """What tells the members of a wave from the base.

    Args:
      lora: adapter trees of the group, as `forms.arrange` left them, placed.
      wave: indices of the members.
    """
    if self._form == 'batched':
      return lora
    place = np.int32(wave[0])

    def folded(params, lora, place):
      member = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False),
        lora,
      )
      own = {
        name: node
        for name, node in fold(params, member).items()
        if node is not params[name]
      }
      return jax.tree.map(lambda leaf: leaf[None], own)

    along = sharding.population_spec()
    whole = jax.sharding.PartitionSpec()
    program = self._program(
      'fold', folded, (whole, along, whole), along, self._params, lora, place
    )
    return program(self._params, lora, place)

  def read_prefix(self, queue: Queue, weights: Any, members: int) -> Any:
    """Keys and values of a queue's common beginning, for each member."""

    def read(params, weights, inputs):
      local = members // self._mesh.size
      tokens, positions = inputs['tokens'], inputs['positions']
      shape = (local, *tokens.shape)
      _, cache = self._forward(params, weights, None)(
        jnp.broadcast_to(tokens, shape),
        jnp.broadcast_to(positions, shape),
        self._new_cache(local, *tokens.shape),
      )
      return jax.vmap(as_prefix)(
        cache.replace(index=jnp.broadcast_to(cache.index, local))
      )

    whole = jax.sharding.PartitionSpec()
    along = sharding.population_spec()
    member = sharding.population_spec(forms.member_axis(self._form))
    arguments = (self._params, weights, queue.prefix)
    return self._program(
      'prefix', read, (whole, member, whole), along, *arguments
    )(*arguments)

  def calls(
    self,
    queue: Queue,
    weights: Any,
    prefix: Any,
    active: np.ndarray,
    ids: np.ndarray,
  ) -> Callable:
    """The program of a queue, for the members of a wave.

    Args:
      queue: of which the slots are.
      weights: of the members (`weights`).
      prefix: what `read_prefix` returned for them, or None.
      active: (P,) bool.
      ids: (P,) i32.

    Returns:
      call(again, stopped, most_steps) -> report: starts again or goes on, with
      (P, N) bool prompts that have ended or None, for so many steps. The report
      has `out`, `finite`, `entry`, `refills`, `steps`, `busy` of `Slots`, and
      `working`; scalars are there for each device.
    """
    along = sharding.population_sharding(self._mesh)
    active, ids = jax.device_put((active, ids), along)
    nothing = jax.device_put(
      np.zeros((len(ids), len(queue.owner)), bool), along
    )

    def call(again: bool, stopped: np.ndarray | None, most_steps: int):
      slots = self._take_slots(queue, len(ids))
      stopped = nothing if stopped is None else jax.device_put(stopped, along)
      arguments = (
        self._params,
        weights,
        queue.inputs,
        prefix,
        slots,
        active,
        ids,
        self._sampling,
        np.bool_(again),
        stopped,
        np.int32(most_steps),
      )
      key = ('advance', queue.refill)
      program = self._program(
        key,
        self._advance(queue.refill),
        self._advance_specs(),
        sharding.population_spec(),
        *arguments,
        donate=4,
      )
      slots, report = program(*arguments)
      self._slots = (_slots_key(queue, len(ids)), slots)
      return report

    return call

  def _advance(self, refill: int) -> Callable:
    def advance(
      params,
      weights,
      inputs,
      prefix,
      slots,
      active,
      ids,
      sampling,
      again,
      stopped,
      most_steps,
    ):
      slots = _scalars(slots, lambda leaf: leaf[0])
      members = ids.shape[0]
      fresh = continuous_batching.restart(slots, active)
      slots = jax.tree.map(
        lambda new, old: jnp.where(again, new, old),
        fresh.replace(cache=None),
        slots.replace(cache=None),
      ).replace(cache=slots.cache)
      slots = continuous_batching.stop_entries(slots, stopped)
      slots = continuous_batching.advance(
        self._forward(params, weights, prefix),
        self._unembed(params, weights),
        lambda rows, length: self._new_cache(members, rows, length),
        inputs,
        slots,
        ids,
        sampling,
        most_steps,
        refill=refill,
        stop_ids=self._stop_ids,
      )
      more = continuous_batching.working(slots)[None]
      slots = _scalars(slots, lambda leaf: leaf[None])
      names = ('out', 'finite', 'entry', 'refills', 'steps', 'busy')
      report = {name: getattr(slots, name) for name in names}
      return slots, {**report, 'working': more}

    return advance

  def _advance_specs(self) -> tuple:
    whole = jax.sharding.PartitionSpec()
    along = sharding.population_spec()
    weights = sharding.population_spec(forms.member_axis(self._form))
    return (
      whole,
      weights,
      whole,
      along,
      along,
      along,
      along,
      whole,
      whole,
      along,
      whole,
    )

  def _forward(self, params: Any, weights: Any, prefix: Any) -> Callable:
    """forward(tokens, positions, cache) of the members of a wave."""
    if self._form == 'batched':
      members = jax.tree.leaves(weights)[0].shape[forms.member_axis('batched')]
      forward = forms.batched_forward(self._model, params, weights, members)
      return functools.partial(forward, prefix=prefix)
    variables = {'params': self._folded(params, weights)}

    def forward(tokens, positions, cache):
      one = _lead(cache, lambda leaf: leaf[0])
      hidden, one = self._model.apply(
        variables,
        tokens.reshape(tokens.shape[-2:]),
        positions.reshape(positions.shape[-2:]),
        one,
        prefix=jax.tree.map(lambda leaf: leaf[0], prefix),
      )
      return hidden[None], _lead(one, lambda leaf: leaf[None])

    return forward

  def _unembed(self, params: Any, weights: Any) -> Callable:
    """Logits of hidden states of the members of a wave."""
    if self._form == 'folded':
      params = self._folded(params, weights)
    return lambda hidden: self._model.apply(
      {'params': params}, hidden, method='unembed'
    )

  def _folded(self, params: Any, weights: Any) -> Any:
    """The parameters of the one member of a wave on this device."""
    return {**params, **jax.tree.map(lambda leaf: leaf[0], weights)}

  def _new_cache(self, members: int, rows: int, length: int):
    cache = init_cache(self._model.config, rows, length, self._model.dtype)
    return _lead(
      cache, lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape))
    )

  def _take_slots(self, queue: Queue, members: int) -> Slots:
    """The slots of the last call where they fit; else new ones."""
    key, held = _slots_key(queue, members), self._slots
    self._slots = None
    if held is not None and held[0] == key:
      return held[1]
    del held  # before its successor is made

    def make():
      slots = continuous_batching.empty_slots(
        self._new_cache(members, queue.slots, queue.columns),
        queue.slots,
        len(queue.owner),
        queue.new,
      )
      devices = self._mesh.size
      return _scalars(slots, lambda leaf: jnp.broadcast_to(leaf, (devices,)))

    along = sharding.population_sharding(self._mesh)
    with jax.default_device(self._mesh.devices.flat[0]):
      return jax.jit(make, out_shardings=along)()

  def _program(
    self,
    name: Any,
    run: Callable,
    in_specs: tuple,
    out_specs: Any,
    *arguments: Any,
    donate: int | None = None,
  ) -> Callable:
    """The compiled program for these shapes; compiled at first use."""
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    key = (name, structure, shapes)
    if key not in self._compiled:
      if self._mesh.size > 1:
        run = jax.shard_map(
          run,
          mesh=self._mesh,
          in_specs=in_specs,
          out_specs=out_specs,
          check_vma=False,
        )
      donated = () if donate is None else (donate,)
      with self._ledger.time('compile'):
        jitted = jax.jit(run, donate_argnums=donated)
        self._compiled[key] = jitted.lower(*arguments).compile()
      self._ledger.programs += 1
    return self._compiled[key]


def _slots_key(queue: Queue, members: int) -> tuple:
  return (members, queue.slots, queue.columns, len(queue.owner), queue.new)


def _lead(cache: Any, move: Callable) -> Any:
  """Changes the leading axis of all of a cache but its index."""
  return cache.replace(
    k=move(cache.k), v=move(cache.v), positions=move(cache.positions)
  )


def _scalars(slots: Slots, move: Callable) -> Slots:
  """Gives the scalars of slots an axis for the devices, or takes it away."""
  return slots.replace(
    cache=slots.cache.replace(index=move(slots.cache.index)),
    refills=move(slots.refills),
    steps=move(slots.steps),
    busy=move(slots.busy),
  )
