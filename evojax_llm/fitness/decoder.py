"""Continues prompts for groups of members, and watches for stop strings."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import decoding
from evojax_llm.fitness import forms
from evojax_llm.fitness import stops as stops_lib
from evojax_llm.fitness.decoding import Slots
from evojax_llm.fitness.ledger import Ledger
from evojax_llm.fitness.queues import Queue
from evojax_llm.fitness.sampling import Sampling
from evojax_llm.gemma.cache import as_prefix
from evojax_llm.gemma.cache import init_cache
from evojax_llm.gemma.lora import fold
from evojax_llm.gemma.transformer import Gemma
from evojax_llm.population import sharding

# Where texts may end at a stop string, the host looks at them this often.
_SECONDS_BETWEEN_LOOKS = 0.03
_FEWEST_STEPS, _MOST_STEPS = 4, 64
_NO_END = np.int32(1 << 30)


@dataclasses.dataclass(frozen=True)
class Generated:
  """What P members made of a queue of N prompts.

  Attributes:
    tokens: (P, N, new) i32, -1 behind the end.
    finite: (P,) bool, whether all logits that were read were finite.
  """

  tokens: np.ndarray
  finite: np.ndarray


class Decoder:
  """Continues the prompts of queues for a group of members at a time.

  Args:
    model: the module.
    params: its parameters, on all devices of the mesh.
    mesh: devices that the members are spread over.
    form: 'batched' or 'folded' (see `forms`).
    tokenizer: its `stop_ids` end an answer; its `decode` is asked where there
      are stop strings.
    ledger: counts.
    sampling: how tokens are chosen; greedy by default.
  """

  def __init__(
    self,
    model: Gemma,
    params: Any,
    mesh: jax.sharding.Mesh,
    form: str,
    tokenizer: Any,
    ledger: Ledger,
    sampling: Sampling | None = None,
  ):
    self._model, self._params, self._mesh = model, params, mesh
    self._form, self._ledger = form, ledger
    self._stop_ids = tuple(tokenizer.stop_ids)
    self._decode = tokenizer.decode
    self._sampling = jax.device_put(
      sampling and sampling.arrays(), sharding.replicated(mesh)
    )
    self._compiled: dict[tuple, Callable] = {}
    self._slots: tuple[tuple, Slots] | None = None
    self._open: Run | None = None
    self._refill_seconds: dict[tuple, float] = {}
    self._steps_per_look = _FEWEST_STEPS

  def start(
    self,
    queues: Sequence[Queue],
    lora: Any,
    active: jax.Array,
    ids: Sequence[int] | None = None,
  ) -> 'Run':
    """Begins to continue the prompts of some queues.

    Args:
      queues: the work of each member.
      lora: adapter trees of the group, as `forms.arrange` left them, placed.
      active: (P,) bool; the others' results mean nothing.
      ids: P ids of the members, which address random draws; their places in
        the group by default.

    Returns:
      The work under way; one is under way at a time.
    """
    if self._open is not None:
      self._open.finish()
    active = np.asarray(active)
    ids = np.arange(len(active)) if ids is None else np.asarray(ids)
    work = self._work(list(queues), lora, active, ids.astype(np.int32))
    self._open = Run(work)
    return self._open

  def _work(
    self,
    queues: list[Queue],
    lora: Any,
    active: np.ndarray,
    ids: np.ndarray,
  ) -> Iterator[list[Generated] | None]:
    """Does the work; yields None before each wait, and the results at last."""
    results = [
      Generated(
        np.full((len(active), len(queue.owner), queue.new), -1, np.int32),
        np.ones(len(active), bool),
      )
      for queue in queues
    ]
    pending: list[tuple] = []

    def collect(queue, wave, result, report):
      report = self._fetch(queue, report)
      result.tokens[wave] = report['out']
      result.finite[wave] = report['finite']
      self._count(queue, report, int(active[wave].sum()))

    for wave in self._waves(active):
      weights = self._weights(lora, wave)
      prefixes: dict[int, Any] = {}
      for queue, result in zip(queues, results, strict=True):
        call = self._call(queue, weights, prefixes, active[wave], ids[wave])
        if any(queue.stops):
          while pending:
            yield None
            collect(*pending.pop(0))
          report = yield from self._watch(queue, call)
        else:
          report = call(True, None, _NO_END)
        pending.append((queue, wave, result, report))
        # One call stays in flight while the host takes in the one before.
        if len(pending) > 1:
          yield None
          collect(*pending.pop(0))
    while pending:
      yield None
      collect(*pending.pop(0))
    for queue, result in zip(queues, results, strict=True):
      self._cut(queue, result)
    yield results

  def _waves(self, active: np.ndarray) -> list[np.ndarray]:
    """Indices of the members that are in work at a time; none is idle."""
    if self._form == 'batched':
      return [np.arange(len(active))]
    # A device holds members in a row, and works on one of them at a time.
    waves = np.arange(len(active)).reshape(self._mesh.size, -1).T
    return [wave for wave in waves if active[wave].any()]

  def _weights(self, lora: Any, wave: np.ndarray) -> Any:
    """What tells the members of a wave from the base."""
    if self._form == 'batched':
      return lora
    place = np.int32(wave[0])

    def folded(params, lora, place):
      member = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False),
        lora,
      )
      layers = fold(params, member)['layers']
      return jax.tree.map(lambda leaf: leaf[None], layers)

    along = sharding.population_spec()
    whole = jax.sharding.PartitionSpec()
    program = self._program(
      'fold', folded, (whole, along, whole), along, self._params, lora, place
    )
    return program(self._params, lora, place)

  def _call(
    self,
    queue: Queue,
    weights: Any,
    prefixes: dict[int, Any],
    active: np.ndarray,
    ids: np.ndarray,
  ) -> Callable:
    """call(restart, stopped, most_steps) -> report, of one queue and wave."""
    along = sharding.population_sharding(self._mesh)
    prefix = None
    if queue.prefix is not None:
      if id(queue.prefix) not in prefixes:
        prefixes[id(queue.prefix)] = self._read_prefix(queue, weights, active)
      prefix = prefixes[id(queue.prefix)]
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
      self._slots = (self._slots_key(queue, len(ids)), slots)
      return report

    return call

  def _forward(self, params: Any, weights: Any, prefix: Any) -> Callable:
    """forward(tokens, positions, cache) of the members of a wave."""
    if self._form == 'batched':
      members = jax.tree.leaves(weights)[0].shape[forms.member_axis('batched')]
      forward = forms.batched_forward(self._model, params, weights, members)
      return lambda *args: forward(*args, prefix)
    layers = jax.tree.map(lambda leaf: leaf[0], weights)
    variables = {'params': {**params, 'layers': layers}}

    def forward(tokens, positions, cache):
      one, index = _lead(cache, lambda leaf: leaf[0]), cache.index
      hidden, one = self._model.apply(
        variables,
        tokens.reshape(tokens.shape[-2:]),
        positions.reshape(positions.shape[-2:]),
        one.replace(index=index),
        jax.tree.map(lambda leaf: leaf[0], prefix),
      )
      return hidden[None], _lead(one, lambda leaf: leaf[None])

    return forward

  def _new_cache(self, members: int, rows: int, length: int):
    cache = init_cache(self._model.config, rows, length, self._model.dtype)
    return _lead(
      cache, lambda leaf: jnp.broadcast_to(leaf, (members, *leaf.shape))
    )

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
      fresh = decoding.restart(slots, active)
      slots = jax.tree.map(
        lambda new, old: jnp.where(again, new, old),
        fresh.replace(cache=None),
        slots.replace(cache=None),
      ).replace(cache=slots.cache)
      slots = decoding.stop_entries(slots, stopped)
      slots = decoding.advance(
        self._forward(params, weights, prefix),
        lambda hidden: self._model.apply(
          {'params': params}, hidden, method='unembed'
        ),
        lambda rows, length: self._new_cache(members, rows, length),
        inputs,
        slots,
        ids,
        sampling,
        most_steps,
        refill=refill,
        stop_ids=self._stop_ids,
      )
      more = decoding.working(slots)[None]
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

  def _read_prefix(self, queue: Queue, weights: Any, active: np.ndarray) -> Any:
    """Keys and values of a queue's common beginning, for each member."""
    members = len(active)
    self._ledger.prompt_tokens += queue.prefix_tokens * int(active.sum())

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

  def _slots_key(self, queue: Queue, members: int) -> tuple:
    return (members, queue.slots, queue.columns, len(queue.owner), queue.new)

  def _take_slots(self, queue: Queue, members: int) -> Slots:
    """The slots of the last call where they fit; else new ones."""
    key, held = self._slots_key(queue, members), self._slots
    self._slots = None
    if held is not None and held[0] == key:
      return held[1]
    del held  # before its successor is made

    def make():
      slots = decoding.empty_slots(
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

  def _watch(self, queue: Queue, call: Callable) -> Iterator:
    """Works on a queue whose texts may end at stop strings.

    One call is in flight while the host reads the texts of the one before; a
    slot is freed a call or two after its text has ended.
    """
    report = call(True, None, self._steps_per_look)
    stopped = None
    steps, since = 0, time.perf_counter()
    while True:
      ahead = call(False, stopped, self._steps_per_look)
      yield None
      seen = self._fetch(queue, report)
      if not seen['working'].any():
        return seen
      now = time.perf_counter()
      done = max(1, int(seen['steps'].max()) - steps)
      wanted = round(done * _SECONDS_BETWEEN_LOOKS / (now - since))
      self._steps_per_look = int(np.clip(wanted, _FEWEST_STEPS, _MOST_STEPS))
      steps, since = steps + done, now
      with self._ledger.time('host'):
        if stopped is None:
          stopped = np.zeros(seen['out'].shape[:2], bool)
        self._look(queue, seen, stopped)
      report = ahead

  def _look(
    self, queue: Queue, seen: dict[str, np.ndarray], stopped: np.ndarray
  ) -> None:
    """Marks the prompts in work whose text has come to a stop string."""
    for member, entries in enumerate(seen['entry']):
      for entry in entries[entries >= 0].tolist():
        if queue.stops[entry] and not stopped[member, entry]:
          ids = _made(seen['out'][member, entry])
          stops = queue.stops[entry]
          late = stops_lib.recent(ids, 3 * _MOST_STEPS, stops)
          if stops_lib.has_stop(self._decode(late), stops):
            stopped[member, entry] = stops_lib.has_stop(
              self._decode(ids), stops
            )

  def _cut(self, queue: Queue, result: Generated) -> None:
    """Drops what was made behind a stop string."""
    if not any(queue.stops):
      return
    with self._ledger.time('host'):
      for tokens in result.tokens:
        for row, stops in zip(tokens, queue.stops, strict=True):
          if stops:
            ids = stops_lib.cut_ids(_made(row), stops, self._decode)
            row[len(ids) :] = -1

  def _fetch(self, queue: Queue, report: dict) -> dict[str, np.ndarray]:
    with self._ledger.time('score'):
      return jax.device_get(report)

  def _count(self, queue: Queue, report: dict, members: int) -> None:
    ledger = self._ledger
    ledger.prompt_tokens += queue.prompt_tokens * members
    ledger.new_tokens += int((report['out'] >= 0).sum())


class Run:
  """Work of a `Decoder` under way."""

  def __init__(self, work: Iterator[list[Generated] | None]):
    self._work = work
    self._results = next(work)

  def finish(self) -> list[Generated]:
    """Waits for the results, one a queue."""
    while self._results is None:
      self._results = next(self._work)
    return self._results


def _made(row: np.ndarray) -> list[int]:
  """The tokens of a row up to its end."""
  return row[: int((row >= 0).sum())].tolist()


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
