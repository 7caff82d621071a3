"""Has the devices answer a split for the members of a population.

Groups of members go through the programs of the split one after the other. One
call stays in flight while the host takes in the one before. Compiled programs
are kept for as long as the engine lives; a new one is compiled for new shapes
alone, and the ledger counts it.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from evojax_llm.engine import form_trial
from evojax_llm.engine import forms
from evojax_llm.engine import likelihood
from evojax_llm.engine import packed_split
from evojax_llm.engine import plan as planning
from evojax_llm.engine.answers import Answers
from evojax_llm.engine.decoder import Decoder
from evojax_llm.engine.decoder import Run
from evojax_llm.engine.groups import Groups
from evojax_llm.engine.groups import abstract_member
from evojax_llm.engine.groups import num_bytes
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes.space import Expressing
from evojax_llm.models.expression import Weights
from evojax_llm.models.transformer import Gemma
from evojax_llm.population import stack


class Engine:
  """Runs programs for groups of members.

  Args:
    runtime: devices, types and counts.
    tokenizer: of the models.

  Attributes:
    groups: expresses members.
    plan: how members are cut into groups; None before `prepare`. After an
      out-of-memory it has smaller groups.
  """

  def __init__(
    self,
    runtime: Runtime,
    tokenizer: Any,
  ):
    self.groups = Groups(runtime.mesh)
    self.plan: planning.Plan | None = None
    self._runtime, self._mesh = runtime, runtime.mesh
    self._tokenizer, self._ledger = tokenizer, runtime.ledger
    self._compiled: dict[tuple, Callable] = {}
    # By form and identity of the parameters, which a decoder keeps alive.
    self._decoders: dict[tuple, Decoder] = {}
    self._device_done = 0.0

  def prepare(
    self,
    space: Expressing,
    population: Any,
    lengths: Sequence[tuple[int, int]],
    *,
    members: int | None = None,
    form: str = 'auto',
    **options: Any,
  ) -> planning.Plan:
    """Fixes form, group and batch sizes.

    Where the form is left open and sizes do not tell, each is tried for a
    moment.

    Args:
      space: of the population.
      population: genomes (P, ...), or their shapes and types.
      lengths: (prompt tokens, new tokens) of the longest rows of each kind.
      members: most members that are answered for at a time; P by default.
      form: 'auto', 'batched' or 'folded' (see `forms`).
      **options: population_bytes, members_per_group, prompts_per_batch and
        budget of `plan.make_plan`.

    Returns:
      The plan, which is kept.

    Raises:
      MemoryPlanError: what is asked for cannot fit.
    """
    member = abstract_member(space, population)
    params = self._runtime.params(space)
    model = self._model(space)

    def plan(form: str) -> planning.Plan:
      return planning.make_plan(
        model.config,
        members=members or jax.tree.leaves(population)[0].shape[0],
        base_bytes=num_bytes(params),
        member_bytes=num_bytes(member),
        lengths=lengths,
        dtype=model.dtype,
        device=self._mesh.devices.flat[0],
        form=form,
        **options,
      )

    made = plan('folded' if isinstance(member, Weights) else form)
    if not made.form_is_clear:
      plans = [plan(form) for form in forms.FORMS]
      with self._ledger.time('compile'):
        made = form_trial.choose(plans, model, params, member, self._mesh)
    self.plan = made
    return made

  def answer(
    self,
    space: Expressing,
    population: Any,
    indices: np.ndarray,
    data: packed_split.Split,
    answers: Answers,
    progress: Callable[[float], None] | None = None,
    ids: np.ndarray | None = None,
  ) -> None:
    """Answers a split for some members of a population.

    Where a device runs out of memory, the group is halved, which is logged, and
    the work goes on at the first member that is not done.

    Args:
      space: of the population.
      population: genomes, leaves (P, ...).
      indices: (M,) members.
      data: what is to be answered.
      answers: where the answers of the M members go.
      progress: called with the share of the work that is done.
      ids: (M,) i32 names of the members, which address random draws; their
        indices by default.

    Raises:
      MemoryPlanError: a device is out of memory with the smallest group.
    """
    ids = indices if ids is None else ids
    start = 0
    while start < len(indices):
      self._device_done = time.perf_counter()
      try:
        done = self._pass(
          space, population, indices, ids, start, data, answers, progress
        )
        for finished in done:
          start = finished
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        self._halve(error)
        answers.forget(start)

  def group_size(self, slots: int) -> int:
    """Members of a program call: the plan's, a multiple of the devices."""
    devices = self._mesh.size
    return -(-min(self.plan.members_per_group, slots) // devices) * devices

  def _pass(
    self,
    space: Expressing,
    population: Any,
    indices: np.ndarray,
    ids: np.ndarray,
    start: int,
    data: packed_split.Split,
    answers: Answers,
    progress: Callable[[float], None] | None,
  ) -> Iterator[int]:
    """Yields how many members are done, as calls come in."""
    params = self._runtime.params(space)
    model = self._model(space)
    size = self.group_size(stack.size(population))
    per_group = max(1, len(data.jobs) + bool(data.queues))
    running: list[Callable[[Callable[[float], None]], None]] = []
    taken = 0

    def report(share: float) -> None:
      """So much of the call that is taken in is done."""
      if progress:
        groups = (taken + share) / per_group
        progress(min(1.0, (start + groups * size) / len(indices)))

    def take_in() -> int:
      nonlocal taken
      running.pop(0)(report)
      taken += 1
      report(0.0)
      return min(start + taken // per_group * size, len(indices))

    for first in range(start, len(indices), size):
      chosen = indices[first : first + size]
      members, active = self.groups.take(
        space, population, chosen, size, self.plan.form
      )
      span = slice(first, first + len(chosen))
      for job in data.jobs:
        result = self._read(model, params, members, active, job)
        running.append(
          functools.partial(self._take_options, job, result, span, answers)
        )
        if len(running) > 1:
          yield take_in()
      if data.queues:
        own = np.resize(ids[first : first + size], size)
        run = self._decoder(model, params).start(
          data.queues, members, active, own
        )
        running.append(
          functools.partial(self._take_texts, run, data.queues, span, answers)
        )
    while running:
      yield take_in()

  def _read(
    self,
    model: Gemma,
    params: Any,
    members: Any,
    active: jax.Array,
    job: packed_split.Job,
  ) -> tuple[jax.Array, float]:
    """Log-probabilities of a job's reads, and when they were asked for."""
    program = self._program(model, params, members, active, job)
    result = program(params, members, active, job.inputs)
    return result['logprobs'], time.perf_counter()

  def _take_options(
    self,
    job: packed_split.Job,
    result: tuple[jax.Array, float],
    span: slice,
    answers: Answers,
    _: Callable[[float], None],
  ) -> None:
    """Waits for log-probabilities and takes them in."""
    logprobs, asked = result
    ledger, count = self._ledger, span.stop - span.start
    with ledger.time('score'):
      logprobs = np.asarray(logprobs)[:count]
    now = time.perf_counter()
    ledger.add('idle', max(0.0, asked - self._device_done))
    ledger.add('prefill', now - max(asked, self._device_done))
    self._device_done = now
    ledger.prompt_tokens += job.prompt_tokens * count
    with ledger.time('host'):
      answers.add_options(job.batch.owner, span.start, logprobs)

  def _take_texts(
    self,
    run: Run,
    queues: list[Any],
    span: slice,
    answers: Answers,
    report: Callable[[float], None],
  ) -> None:
    """Waits for texts and takes them in; tells how far they are."""
    results = run.finish(report)
    self._device_done = time.perf_counter()
    count = span.stop - span.start
    with self._ledger.time('host'):
      for queue, result in zip(queues, results, strict=True):
        tokens, finite = result.tokens[:count], result.finite[:count]
        answers.add_texts(queue.owner, span.start, tokens, finite)

  def _halve(self, error: Exception) -> None:
    """Goes on with groups of half the members."""
    group, devices = self.plan.members_per_group, self._mesh.size
    if group <= devices:
      raise planning.MemoryPlanError(
        f'Out of memory on {self.plan.device} with one member a device: '
        f'{error}. Set a memory budget below {self.plan.budget >> 20} MiB, or '
        'lower prompts_per_batch or the length of the prompts.'
      ) from error
    self.plan = dataclasses.replace(self.plan, members_per_group=group // 2)
    # What they hold on the device is given back.
    self._decoders.clear()
    logging.warning(
      'Out of memory on %s with %d members a group; going on with %d.',
      self.plan.device,
      group,
      group // 2,
    )

  def _model(self, space: Expressing) -> Gemma:
    return Gemma(space.model().config, self._runtime.dtype)

  def _decoder(self, model: Gemma, params: Any) -> Decoder:
    key = (id(params), self.plan.form)
    if key not in self._decoders:
      self._decoders[key] = Decoder(
        model,
        params,
        self._mesh,
        self.plan.form,
        self._tokenizer,
        self._ledger,
        self._runtime.sampling,
      )
    return self._decoders[key]

  def _program(
    self,
    model: Gemma,
    params: Any,
    members: Any,
    active: jax.Array,
    job: packed_split.Job,
  ) -> Callable:
    """The compiled program for these shapes; compiled at first use."""
    arguments = (params, members, active, job.inputs)
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    key = (self.plan.form, model, structure, shapes)
    if key not in self._compiled:
      run = forms.group_program(
        likelihood.likelihood, self.plan.form, model, self._mesh
      )
      with self._ledger.time('compile'):
        self._compiled[key] = jax.jit(run).lower(*arguments).compile()
      self._ledger.programs += 1
      # A device that waits for the compiler is not idle.
      self._device_done = time.perf_counter()
    return self._compiled[key]
