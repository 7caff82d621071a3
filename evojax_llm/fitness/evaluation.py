"""Scores a population on tasks: the fitness engine.

`Evaluator` holds the base, the tokenizer and the tasks. It encodes and packs a
split once, compiles one program a length bucket, and then scores any number of
populations without compiling again.
"""

from collections.abc import Callable
from collections.abc import Sequence
import copy
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import forms
from evojax_llm.fitness import plan as planning
from evojax_llm.fitness import programs
from evojax_llm.fitness import prompts
from evojax_llm.fitness import splits
from evojax_llm.fitness.decoder import Decoder
from evojax_llm.fitness.decoder import Run
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.ledger import Ledger
from evojax_llm.fitness.sampling import Sampling
from evojax_llm.fitness.scores import Answers
from evojax_llm.fitness.scores import Matcher
from evojax_llm.fitness.scores import Scores
from evojax_llm.gemma.config import GemmaConfig
from evojax_llm.gemma.transformer import Gemma
from evojax_llm.population import sharding
from evojax_llm.population import stack


class Space(Protocol):
  """What the engine asks of a genome space."""

  def express(self, genome: Any) -> Any:
    """The adapter tree of one genome, `b` scaled."""


class Evaluator:
  """Scores populations on tasks.

  Args:
    config: the model.
    params: its parameters, shared by all members.
    tokenizer: encodes prompts and decodes answers.
    tasks: K tasks with distinct names.
    weights: (K,) weights of the tasks in the fitness; equal by default.
    chat: put prompts through the chat template.
    limits: items of a split and task to use, by split; all by default.
    draw: seed of the choice of items where there is a limit.
    dtype: type of activations and cache.
    form: 'auto', 'batched' or 'folded' (see `forms`).
    members_per_group: members of one program call; chosen by default.
    prompts_per_batch: most prompts of a program call; chosen by default.
    memory_budget: bytes to use on a device; asked from it by default.
    max_length: longest prompt in tokens, new tokens included; by default the
      context that the model was made for.
    sampling: how tokens of generated answers are chosen; greedy by default.
    devices: devices to spread the members over; all by default.

  Raises:
    ValueError: no tasks, repeated names, or bad weights.
  """

  def __init__(
    self,
    config: GemmaConfig,
    params: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    weights: Sequence[float] | None = None,
    chat: bool = False,
    limits: dict[str, int | None] | None = None,
    draw: int = 0,
    dtype: Any = jnp.float32,
    form: str = 'auto',
    members_per_group: int | None = None,
    prompts_per_batch: int | None = None,
    memory_budget: int | None = None,
    max_length: int | None = None,
    sampling: Sampling | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) != len(names):
      raise ValueError(f'tasks are {names}; expected some, named differently.')
    if form not in ('auto', *forms.FORMS):
      raise ValueError(
        f'form is {form!r}; expected auto, {", ".join(forms.FORMS)}.'
      )
    self.config, self.tokenizer, self.tasks = config, tokenizer, list(tasks)
    self.weights = _weights(weights, len(tasks))
    self.chat, self.draw = chat, draw
    self.limits = limits or {}
    self.max_length = max_length or config.max_position_embeddings
    self.ledger = Ledger()
    self.plan: planning.Plan | None = None
    self._sampling = sampling
    self._decoder: Decoder | None = None
    self._choices = dict(
      form=form,
      members_per_group=members_per_group,
      prompts_per_batch=prompts_per_batch,
      budget=memory_budget,
      dtype=dtype,
    )
    self._mesh = sharding.population_mesh(devices)
    self._model = Gemma(config, dtype)
    self._params = jax.device_put(params, sharding.replicated(self._mesh))
    self._items: dict[str, list] = {}
    self._splits: dict[str, splits.Split] = {}
    self._compiled: dict[tuple, Callable] = {}
    self._express: dict[int, tuple[Space, Callable]] = {}
    self._matcher = Matcher(self.tasks, self.weights, tokenizer)

  def prepare(
    self, members: int, member_bytes: int, population_bytes: int | None = None
  ) -> planning.Plan:
    """Fixes form, group and batch sizes for a run; see `plan.make_plan`.

    Called by the first `evaluate`, or earlier to print the plan.

    Raises:
      MemoryPlanError: what is asked for cannot fit.
    """
    self.plan = planning.make_plan(
      self.config,
      members=members,
      base_bytes=_bytes(self._params),
      member_bytes=member_bytes,
      population_bytes=population_bytes,
      lengths=splits.longest_rows(self._encoded('dev')),
      device=self._mesh.devices.flat[0],
      **self._choices,
    )
    self._decoder = Decoder(
      self._model,
      self._params,
      self._mesh,
      self.plan.form,
      self.tokenizer,
      self.ledger,
      self._sampling,
    )
    return self.plan

  def evaluate(
    self,
    space: Space,
    population: Any,
    members: Sequence[int] | None = None,
    split: str = 'dev',
    progress: Callable[[float], None] | None = None,
  ) -> Scores:
    """Scores members of a population.

    Args:
      space: expresses a genome as an adapter.
      population: genomes stacked on a leading axis; only the chosen members
        are scored.
      members: M indices into that axis; all by default.
      split: 'dev' or 'test'.
      progress: called with the share of the work that is done.

    Returns:
      The scores of the M members, in the order of `members`.
    """
    slots = stack.size(population)
    indices = np.arange(slots) if members is None else np.asarray(members)
    if self.plan is None:
      member = jax.eval_shape(_express_one(space), population)
      self.prepare(slots, _bytes(member))
    data = self._split(split)
    answers = Answers(data, len(indices))
    group = self._group_size(slots)
    calls = len(data.jobs) + bool(data.queues)
    steps = max(1, -(-len(indices) // group) * calls)
    running, done = [], 0

    def finish_job(job: splits.Job, start: int, result: dict, count: int):
      with self.ledger.time('score'):
        logprobs = np.asarray(result['logprobs'])[:count]
      with self.ledger.time('host'):
        answers.add_options(job.batch.owner, start, logprobs)
      self.ledger.prompt_tokens += job.prompt_tokens * count

    def finish_texts(run: Run, start: int, count: int):
      results = run.finish()
      with self.ledger.time('host'):
        for queue, result in zip(data.queues, results, strict=True):
          tokens, finite = result.tokens[:count], result.finite[:count]
          answers.add_texts(queue.owner, start, tokens, finite)

    def finish() -> None:
      nonlocal done
      take_in, *arguments = running.pop(0)
      take_in(*arguments)
      done += 1
      if progress:
        progress(done / steps)

    for start in range(0, len(indices), group):
      chosen = indices[start : start + group]
      lora, active = self._take(space, population, chosen, group)
      for job in data.jobs:
        program = self._program(lora, active, job)
        with self.ledger.time('score'):
          result = program(self._params, lora, active, job.inputs)
        running.append((finish_job, job, start, result, len(chosen)))
        # One call stays in flight while the host takes in the one before.
        if len(running) > 1:
          finish()
      if data.queues:
        ids = np.resize(chosen, group)
        run = self._decoder.start(data.queues, lora, active, ids)
        running.append((finish_texts, run, start, len(chosen)))
    while running:
      finish()
    self.ledger.members += len(indices)
    with self.ledger.time('host'):
      return self._matcher.score(data, answers)

  def redraw(self, draw: int) -> 'Evaluator':
    """The same engine on another choice of items.

    Base, compiled programs, plan and ledger are shared; so is a split of which
    all items are used.
    """
    other = copy.copy(self)
    other.draw = draw
    other._items, other._splits = {}, {}
    for split in self._splits:
      if self.limits.get(split) is None:
        other._items[split] = self._items[split]
        other._splits[split] = self._splits[split]
    return other

  def _encoded(self, split: str) -> list[list[prompts.EncodedItem]]:
    if split not in self._items:
      limit = self.limits.get(split)
      self._items[split] = [
        list(
          prompts.encode_items(
            task,
            task.subset(split, limit, self.draw),
            self.tokenizer,
            self.chat,
            self.max_length,
          )
        )
        for task in self.tasks
      ]
    return self._items[split]

  def _split(self, split: str) -> splits.Split:
    if split not in self._splits:
      with self.ledger.time('host'):
        self._splits[split] = splits.pack(
          self._encoded(split),
          self.plan.rows,
          self.plan.slots,
          sharding.replicated(self._mesh),
          self.tokenizer.pad_id,
        )
    return self._splits[split]

  def _group_size(self, slots: int) -> int:
    """Members of a program call: the plan's, a multiple of the devices."""
    devices = self._mesh.size
    return -(-min(self.plan.members_per_group, slots) // devices) * devices

  def _take(
    self, space: Space, population: Any, chosen: np.ndarray, group: int
  ) -> tuple[Any, jax.Array]:
    """The chosen members expressed, laid out and placed for the programs."""
    form = self.plan.form
    if id(space) not in self._express:

      @jax.jit
      def express(population, index):
        taken = stack.take(population, index)
        return forms.arrange(form, jax.vmap(space.express)(taken))

      self._express[id(space)] = (space, express)
    index = np.full(group, chosen[0], np.int32)
    index[: len(chosen)] = chosen
    lora = self._express[id(space)][1](population, index)
    active = np.arange(group) < len(chosen)
    along = sharding.population_sharding
    return (
      jax.device_put(lora, along(self._mesh, forms.member_axis(form))),
      jax.device_put(active, along(self._mesh)),
    )

  def _program(self, lora: Any, active: jax.Array, job: splits.Job) -> Callable:
    """The compiled program for these shapes; compiled at first use."""
    arguments = (self._params, lora, active, job.inputs)
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    key = (structure, shapes)
    if key not in self._compiled:
      run = forms.group_program(
        programs.likelihood, self.plan.form, self._model, self._mesh
      )
      with self.ledger.time('compile'):
        self._compiled[key] = jax.jit(run).lower(*arguments).compile()
      self.ledger.programs += 1
    return self._compiled[key]


def _express_one(space: Space) -> Callable:
  """Expresses the first member of a population."""
  return lambda population: space.express(
    jax.tree.map(lambda leaf: leaf[0], population)
  )


def _weights(weights: Sequence[float] | None, count: int) -> np.ndarray:
  """Weights (K,) f32 that sum to one."""
  w = np.ones(count) if weights is None else np.asarray(weights, np.float64)
  if w.shape != (count,) or not (w >= 0).all() or not w.sum() > 0:
    raise ValueError(
      f'weights are {weights}; expected {count} numbers of at least 0, not '
      'all 0.'
    )
  return (w / w.sum()).astype(np.float32)


def _bytes(tree: Any) -> int:
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
