"""The compiled programs that continue prompts, for a part of a group.

A part is the members that are in work at a time: the whole group in the batched
form, one member a device in the folded form. All arrays of a part have a
leading P and are spread over the devices.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import continuous_batching
from evojax_llm.engine import decode_step
from evojax_llm.engine import forms
from evojax_llm.engine.continuous_batching import Slots
from evojax_llm.engine.queues import Queue
from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.unembedding import Unembedding
from evojax_llm.models.cache import Cache
from evojax_llm.models.cache import Prefix
from evojax_llm.models.cache import as_prefix
from evojax_llm.models.cache import init_cache
from evojax_llm.models.cache import init_ring
from evojax_llm.models.expression import Expression
from evojax_llm.models.expression import alone
from evojax_llm.models.expression import variables
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import sharding

_WHOLE = jax.sharding.PartitionSpec()
_ALONG = sharding.population_spec()


class DecodePrograms:
  """Programs for the parts of a group.

  Args:
    runtime: devices, programs and how tokens are chosen.
    model: the module.
    params: its parameters, on all devices.
    form: 'batched' or 'folded' (see `forms`).
    stop_ids: tokens that end an answer.
    walk: 'scan' or 'unrolled' (see `plan.Plan`).
    attention: implementation of `decode_attention`, of the unrolled walk.
  """

  def __init__(
    self,
    runtime: Runtime,
    model: Transformer,
    params: Any,
    form: str,
    stop_ids: tuple[int, ...],
    walk: str = 'scan',
    attention: str = 'plain',
  ):
    self._runtime, self._mesh = runtime, runtime.mesh
    self._model, self._params, self._form = model, params, form
    self._stop_ids, self._attention = stop_ids, attention
    self._unembeds = runtime.platform, runtime.model_devices
    # Every hop of a path goes through another layer.
    self._unrolled = walk == 'unrolled' and not model.hops
    self._slots: tuple[tuple, Slots] | None = None
    # Queues, by shape, of which the program has been begun.
    self._ahead: set[tuple] = set()

  def parts(self, active: np.ndarray) -> list[np.ndarray]:
    """Returns indices of the members of each part of a group; none is idle."""
    if self._form == 'batched':
      return [np.arange(len(active))]
    # A device holds members in a row, and works on one of them at a time.
    parts = np.arange(len(active)).reshape(self._runtime.shards, -1).T
    return [part for part in parts if active[part].any()]

  def weights(self, members: Expression, part: np.ndarray) -> Any:
    """Returns the members of a part as laid out, or folded into parameters."""
    if self._form == 'batched':
      return members

    def folded(params, members, index):
      member = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False),
        members,
      )
      own = alone(params, member)
      own['params'] = {
        name: node
        for name, node in own['params'].items()
        if node is not params[name]
      }
      return jax.tree.map(lambda leaf: leaf[None], own)

    return self._run(
      'fold',
      folded,
      (self._params, members, np.int32(part[0])),
      (_WHOLE, _ALONG, _WHOLE),
      cut=True,
    )

  def layers(self, weights: Any) -> tuple[Any, Any]:
    """Returns separate layers for steps: shared, and (P, ...) of the members.

    Empty where steps go through the stacks.
    """
    if not self._unrolled:
      return [], []

    def run(params, weights):
      if self._form == 'folded':
        own = self._folded(params, weights)
        layers = decode_step.separate_layers(self._model, own)
        return [], jax.tree.map(lambda leaf: leaf[None], layers)
      layers = decode_step.separate_layers(
        self._model, variables(params, weights)
      )
      shared = [{'params': layer.pop('params')} for layer in layers]
      return shared, layers

    program = self._runtime.compiled(
      ('layers', self._form, self._model),
      run,
      self._params,
      weights,
      in_specs=(_WHOLE, self._members_spec),
      out_specs=(_WHOLE, _ALONG),
      cut=True,
    )
    return program(self._params, weights)

  def read_prefix(self, queue: Queue, weights: Any, members: int) -> Any:
    """Returns keys and values of a queue's common beginning, by member."""

    def read(params, weights, inputs):
      local = members // self._runtime.shards
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

    return self._run(
      ('prefix', members),
      read,
      (self._params, weights, queue.prefix),
      (_WHOLE, self._members_spec, _WHOLE),
      cut=True,
    )

  def calls(
    self,
    queue: Queue,
    weights: Any,
    layers: tuple[Any, Any],
    prefix: Any,
    active: np.ndarray,
    ids: np.ndarray,
  ) -> Callable:
    """Returns the program of a queue, for the members of a part.

    `layers` and `prefix` are what `layers` and `read_prefix` returned for them,
    or None; active and ids are (P,).

    Returns:
      call(again, stopped, most_steps) -> report: starts again or goes on, with
        (P, N) bool prompts that have ended or None, for so many steps. The
        report has `out`, `finite`, `entry`, `refills`, `steps`, `busy` of
        `Slots`, and `working`; scalars are there for each device.
    """
    along = sharding.population_sharding(self._mesh)
    own = sharding.place(
      {
        'active': active,
        'ids': ids,
        'stopped': np.zeros((len(ids), len(queue.owner)), bool),
      },
      along,
    )
    own |= {'prefix': prefix, 'layers': layers[1]}
    shared = {
      'params': self._params,
      'layers': layers[0],
      'inputs': queue.inputs,
      'sampling': self._runtime.sampling,
    }

    run = functools.partial(
      self._run,
      ('advance', queue.refill, self._stop_ids),
      functools.partial(self._advance, queue.refill),
      in_specs=(_ALONG, self._members_spec, _ALONG, _WHOLE),
      donate=(0,),
    )

    def call(again: bool, stopped: np.ndarray | None, most_steps: int):
      slots = self._take_slots(queue, len(ids))
      inputs = own
      if stopped is not None:
        inputs = own | {'stopped': sharding.place(stopped, along)}
      orders = {'again': np.bool_(again), 'most_steps': np.int32(most_steps)}
      slots, report = run((slots, weights, inputs, shared | orders))
      self._slots = (_slots_key(queue, len(ids)), slots)
      return report

    if (ahead := (queue.shape, len(queue.owner), len(ids))) not in self._ahead:
      self._ahead.add(ahead)
      slots = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=along
        ),
        jax.eval_shape(self._new_slots(queue, len(ids))),
      )
      orders = {'again': np.bool_(True), 'most_steps': np.int32(0)}
      run((slots, weights, own, shared | orders), ahead=True)
    return call

  def _advance(self, refill, slots, weights, own, shared):
    """Works on the slots of a part; see `continuous_batching.advance`."""
    slots = _scalars(slots, lambda leaf: leaf[0])
    cache = slots.cache
    if self._unrolled:
      cache = continuous_batching.clean(slots, shared['again'])
    fresh = continuous_batching.restart(slots, own['active'])
    slots = jax.tree.map(
      lambda new, old: jnp.where(shared['again'], new, old),
      fresh.replace(cache=None),
      slots.replace(cache=None),
    ).replace(cache=cache)
    slots = continuous_batching.stop_entries(slots, own['stopped'])
    forward = self._forward(shared['params'], weights, own['prefix'])
    slots = continuous_batching.advance(
      forward,
      self._step(shared, weights, own) if self._unrolled else _one(forward),
      self._unembed(shared['params'], weights),
      functools.partial(self._new_cache, len(own['ids'])),
      shared['inputs'],
      slots,
      own['ids'],
      shared['sampling'],
      shared['most_steps'],
      refill=refill,
      stop_ids=self._stop_ids,
    )
    more = continuous_batching.working(slots)[None]
    slots = _scalars(slots, lambda leaf: leaf[None])
    names = ('out', 'finite', 'entry', 'refills', 'steps', 'busy')
    report = {name: getattr(slots, name) for name in names}
    return slots, {**report, 'working': more}

  @property
  def _members_spec(self) -> jax.sharding.PartitionSpec:
    return sharding.population_spec(forms.member_axis(self._form))

  def _forward(self, params: Any, weights: Any, prefix: Any) -> Callable:
    """Returns forward(tokens, positions, cache) of the members of a part."""
    if self._form == 'batched':
      members = jax.tree.leaves(weights)[0].shape[forms.member_axis('batched')]
      forward = forms.batched_forward(self._model, params, weights, members)
      return functools.partial(forward, prefix=prefix)
    variables = self._folded(params, weights)

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

  def _step(self, shared: Any, weights: Any, own: Any) -> Callable:
    """Returns step(tokens, positions, cache) of the members of a part."""
    params = shared['params']
    prefix = own['prefix']
    if prefix is not None:
      # Arrays (P, Kv, T, h).
      k, v = jax.tree.map(
        lambda leaf: tuple(
          leaf[:, i].swapaxes(1, 2) for i in range(leaf.shape[1])
        ),
        (prefix.k, prefix.v),
      )
      prefix = Prefix(k, v, prefix.positions)
    run = functools.partial(decode_step.step, self._model, self._attention)
    if self._form == 'folded':
      params = self._folded(params, weights)['params']
      layers, prefix = jax.tree.map(
        lambda leaf: leaf[0], (own['layers'], prefix)
      )

      def alone(tokens, positions, cache):
        cache = _lead(cache, lambda leaf: leaf[0])
        hidden, cache = run(
          params, layers, tokens[0], positions[0], cache, prefix
        )
        return hidden[None], _lead(cache, lambda leaf: leaf[None])

      return alone

    def together(layers, *arguments):
      both = [a | b for a, b in zip(shared['layers'], layers, strict=True)]
      return run(params, both, *arguments)

    axes = Cache(k=0, v=0, positions=0, index=None)
    mapped = jax.vmap(
      together,
      in_axes=(0, 0, 0, axes, None if prefix is None else 0),
      out_axes=(0, axes),
    )
    return lambda *arguments: mapped(own['layers'], *arguments, prefix)

  def _unembed(self, params: Any, weights: Any) -> Unembedding:
    """Returns what makes tokens of hidden states of a part."""
    if self._form == 'folded':
      params = self._folded(params, weights)['params']
    return Unembedding.of(self._model.config, params, *self._unembeds)

  def _folded(self, params: Any, weights: Any) -> Any:
    """Returns the variables of the one member of a part on this device."""
    own = jax.tree.map(lambda leaf: leaf[0], weights)
    return {**own, 'params': {**params, **own['params']}}

  def _new_cache(self, members: int, rows: int, length: int):
    model = self._model
    cache = init_cache(model.config, rows, length, model.dtype, model.hops)
    return _lead(
      cache, lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape))
    )

  def _take_slots(self, queue: Queue, members: int) -> Slots:
    """Returns the slots of the last call where they fit; else new ones."""
    key, held = _slots_key(queue, members), self._slots
    self._slots = None
    if held is not None and held[0] == key:
      return held[1]
    del held  # before its successor is made
    return self._run(('slots', key), self._new_slots(queue, members), ())

  def _new_slots(self, queue: Queue, members: int) -> Callable[[], Slots]:
    """Returns what makes the slots of a queue."""

    def make():
      c, dtype = self._model.config, self._model.dtype
      cache = self._new_cache(members, queue.slots, queue.columns)
      if self._unrolled:
        cache = _lead(
          init_ring(c, queue.slots, queue.columns, dtype),
          lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape)),
        )
      slots = continuous_batching.empty_slots(
        cache,
        queue.slots,
        len(queue.owner),
        queue.new,
      )
      devices = self._runtime.shards
      return _scalars(slots, lambda leaf: jnp.broadcast_to(leaf, (devices,)))

    return make

  def _run(
    self, name, function, arguments, in_specs=None, ahead=False, **options
  ):
    """Runs the compiled program of a function; results go along P.

    With `ahead` it is begun to be compiled for arguments of these shapes.
    """
    compile_ = self._runtime.ahead if ahead else self._runtime.compiled
    program = compile_(
      (name, self._form, self._model, self._unrolled, self._attention),
      function,
      *arguments,
      in_specs=in_specs,
      out_specs=_ALONG,
      **options,
    )
    return None if ahead else program(*arguments)


def _slots_key(queue: Queue, members: int) -> tuple:
  return (members, queue.slots, queue.columns, len(queue.owner), queue.new)


def _one(forward: Callable) -> Callable:
  """Returns the step that reads (P, B) tokens by a forward pass."""

  def step(tokens, positions, cache):
    hidden, cache = forward(tokens[..., None], positions[..., None], cache)
    return hidden[..., -1, :], cache

  return step


def _lead(cache: Cache, move: Callable) -> Cache:
  """Changes the leading axis of all of a cache but its scalars."""
  k, v, positions = jax.tree.map(move, (cache.k, cache.v, cache.positions))
  return cache.replace(k=k, v=v, positions=positions)


def _scalars(slots: Slots, move: Callable) -> Slots:
  """Gives the scalars of slots an axis for the devices, or takes it away."""
  return slots.replace(
    cache=slots.cache.replace(index=move(slots.cache.index)),
    refills=move(slots.refills),
    steps=move(slots.steps),
    busy=move(slots.busy),
  )
