"""Answers of a population's members to a packed split.

Groups of members go through the programs of the split one after the other. One
call stays in flight while the host works on the results of the one before.
"""

from collections.abc import Callable
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
from evojax_llm.engine import groups
from evojax_llm.engine import likelihood
from evojax_llm.engine import plan as planning
from evojax_llm.engine.answers import Answers
from evojax_llm.engine.decoder import Decoder
from evojax_llm.engine.packed_split import PackedSplit
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes.space import Expressing
from evojax_llm.models import soft_tokens
from evojax_llm.models.expression import Path
from evojax_llm.models.expression import Weights
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import hosts
from evojax_llm.population import sharding
from evojax_llm.population import stack


class Engine:
  """Runs programs for groups of members.

  Args:
    runtime: devices, programs and counts.
    tokenizer: of the models.

  Attributes:
    plan: how members are cut into groups; None before `prepare`. After an
      out-of-memory it has smaller groups.
  """

  def __init__(self, runtime: Runtime, tokenizer: Any):
    self.plan: planning.Plan | None = None
    self._runtime, self._tokenizer = runtime, tokenizer
    # By form and identity of the parameters, which a decoder keeps alive.
    self._decoders: dict[tuple, Decoder] = {}
    # The last parameters, soft tokens of images, and both together.
    self._with_images: tuple = (None, None, None)

  def prepare(
    self,
    space: Expressing,
    population: Any,
    lengths: Sequence[tuple[int, int]],
    *,
    members: int | None = None,
    form: str = 'auto',
    soft: jax.Array | None = None,
    **options: Any,
  ) -> planning.Plan:
    """Fixes form, group and batch sizes, and keeps the plan.

    Where the form is left open and sizes do not tell, each is tried for a
    moment.

    Args:
      space: of the population.
      population: genomes (P, ...), or their shapes and types.
      lengths: (prompt tokens, new tokens) of the longest rows of each kind.
      members: most members that are answered for at a time; P by default.
      form: 'auto', 'batched' or 'folded' (see `forms`).
      soft: soft tokens of images, which are kept beside the parameters.
      **options: population_bytes, on_host, members_per_group,
        prompts_per_batch, budget, walk and attention of `plan.make_plan`.

    Raises:
      MemoryPlanError: what is asked for cannot fit.
    """
    member = groups.abstract_member(space, population)
    member_bytes = groups.num_bytes(member)
    if options.get('on_host') and not isinstance(member, Weights):
      # Models are the genomes themselves; of others there is a copy.
      member_bytes += groups.num_bytes(population) // stack.size(population)
    model, params = self._model(space), self._runtime.params(space)
    if self._runtime.model_devices > 1:  # A kernel does not cut heads.
      options['attention'] = options.get('attention') or 'plain'

    def plan(form: str) -> planning.Plan:
      return planning.make_plan(
        model.config,
        members=members or stack.size(population),
        base_bytes=sharding.bytes_per_device((params, soft)),
        member_bytes=member_bytes,
        lengths=lengths,
        dtype=model.dtype,
        device=self._runtime.mesh.devices.flat[0],
        hops=model.hops,
        form=form,
        **options,
      )

    # No product of a base is shared by paths: one by one, each costs its own.
    by_itself = form == 'auto' and isinstance(member, Path)
    if by_itself or isinstance(member, Weights):
      form = 'folded'
    made = plan(form)
    if not made.form_is_clear:
      plans = [plan(form) for form in forms.FORMS]
      made = form_trial.choose(plans, self._runtime, model, params, member)
    self.plan = made
    return made

  def answer(
    self,
    space: Expressing,
    population: Any,
    indices: np.ndarray,
    split: PackedSplit,
    answers: Answers,
    progress: Callable[[float], None] | None = None,
    ids: np.ndarray | None = None,
    added: Callable[[slice], None] = lambda span: None,
  ) -> None:
    """Answers a split for M members (indices) of a population (P, ...).

    Where a device runs out of memory, the group is halved, which is logged, and
    the work goes on at the first member that is not done. `ids` (M,) address
    random draws; the indices by default. `added` is called when the texts of
    some of the M members are there, while devices work on those of the next.

    Raises:
      MemoryPlanError: a device is out of memory with the smallest group.
    """
    ids = indices if ids is None else ids
    asked = space, population, indices, ids, split, answers, progress, added
    start = 0
    while start < len(indices):
      self._runtime.idle_since = time.perf_counter()
      try:
        for done in self._pass(start, *asked):
          start = done
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
          raise
        self._halve(error)
        answers.forget(start)

  @property
  def group_size(self) -> int:
    """Members of a program call, a multiple of the devices.

    Of a smaller population too, so that one of another size compiles nothing.
    """
    devices = self._runtime.shards
    return -(-self.plan.members_per_group // devices) * devices

  def _pass(
    self,
    start,
    space,
    population,
    indices,
    ids,
    split,
    answers,
    progress,
    added,
  ):
    """Yields how many members are done, as calls come in."""
    model, params = self._model(space), self._params(space, split.soft)
    size = self.group_size
    per_group = max(1, len(split.jobs) + bool(split.queues))
    to_do = len(indices) - start
    calls = per_group * -(-to_do // size)
    running: list[Callable[[Callable[[float], None]], None]] = []
    collected = 0

    def report(share: float) -> None:
      """Reports progress with a share of the call in hand."""
      if progress:
        done = (collected + share) / calls
        progress(min(1.0, (start + done * to_do) / len(indices)))

    def collect() -> int:
      nonlocal collected
      running.pop(0)(report)
      collected += 1
      report(0.0)
      return min(start + collected // per_group * size, len(indices))

    for first in range(start, len(indices), size):
      chosen, slots = indices[first : first + size], size
      if self.plan.form == 'batched':  # It computes a slot that is idle.
        slots = groups.size_for(len(chosen), size, self._runtime.shards)
      members, active = groups.express(
        self._runtime, space, population, chosen, slots, self.plan.form
      )
      span = slice(first, first + len(chosen))
      for job in split.jobs:
        given = params, members, active, job.inputs
        forms.begin_group_program(*self._likelihood(model), *given)
      for job in split.jobs:
        result = self._read(model, params, members, active, job)
        running.append(
          functools.partial(self._add_options, job, result, span, answers)
        )
        if len(running) > 1:
          yield collect()
      if split.queues:
        own = np.resize(ids[first : first + size], slots)
        work = self._decoder(model, params).start(
          split.queues, members, active, own
        )
        running.append(
          functools.partial(
            self._add_texts, work, split.queues, span, answers, added
          )
        )
        if len(running) > 1:
          yield collect()
    while running:
      yield collect()

  def _read(self, model, params, members, active, job):
    """Returns log-probabilities of a job's reads, and when they were asked."""
    given = params, members, active, job.inputs
    program = forms.group_program(*self._likelihood(model), *given)
    # Before the call: a device may hold the host up until a loop has ended.
    asked = time.perf_counter()
    return program(*given)['logprobs'], asked

  def _likelihood(self, model):
    return self._runtime, likelihood.likelihood, self.plan.form, model

  def _add_options(self, job, result, span, answers, _):
    """Waits for log-probabilities and adds them to the answers."""
    logprobs, asked = result
    ledger, count = self._runtime.ledger, span.stop - span.start
    with ledger.time('score'):
      logprobs = sharding.to_host(logprobs)[:count]
    ledger.add('prefill', self._runtime.waited(asked))
    ledger.prompt_tokens += job.prompt_tokens * count
    with ledger.time('host'):
      answers.add_options(job.batch.owner, span.start, logprobs)

  def _add_texts(self, work, queues, span, answers, added, report):
    """Waits for texts, reporting progress, and adds them to the answers."""
    results = work.finish(report)
    self._runtime.idle_since = time.perf_counter()
    count = span.stop - span.start
    with self._runtime.ledger.time('host'):
      for queue, result in zip(queues, results, strict=True):
        tokens, finite = result.tokens[:count], result.finite[:count]
        answers.add_texts(queue.owner, span.start, tokens, finite)
      added(span)

  def _halve(self, error: Exception) -> None:
    """Goes on with groups of half the members."""
    group, devices = self.plan.members_per_group, self._runtime.shards
    if group <= devices or hosts.several():  # Others may have had room.
      raise planning.MemoryPlanError(
        f'Out of memory on {self.plan.device} with {group} members on '
        f'{devices} devices: {error}. Set a memory budget below '
        f'{self.plan.budget >> 20} MiB, or '
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

  def _model(self, space: Expressing) -> Transformer:
    shared = space.model()
    return Transformer(shared.config, self._runtime.dtype, hops=shared.hops)

  def _params(self, space: Expressing, soft: jax.Array | None) -> Any:
    """The shared parameters, and the soft tokens of a split's images."""
    params = self._runtime.params(space)
    if soft is None:
      return params
    before = self._with_images
    if not (before[0] is params and before[1] is soft):
      # Decoders hold those that came before.
      self._decoders.clear()
      self._with_images = params, soft, soft_tokens.beside(params, soft)
    return self._with_images[2]

  def _decoder(self, model: Transformer, params: Any) -> Decoder:
    how = self.plan.form, self._tokenizer, self.plan.walk, self.plan.attention
    key = (id(params), self.plan.form)
    if key not in self._decoders:
      self._decoders[key] = Decoder(self._runtime, model, params, *how)
    return self._decoders[key]
