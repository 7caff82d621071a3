"""Scores a population on tasks: the fitness engine.

`Evaluator` holds the base, the tokenizer and the tasks. It encodes and packs a
split once, compiles one program a length bucket, and then scores any number of
populations without compiling again.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
from typing import Any
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import forms
from evojax_llm.fitness import objectives
from evojax_llm.fitness import plan as planning
from evojax_llm.fitness import programs
from evojax_llm.fitness import prompts
from evojax_llm.fitness import splits
from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.ledger import Ledger
from evojax_llm.fitness.scorers.table import scorer_of
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
    objective: what makes fitness of the tasks' scores: a name of `objectives`.
    chat: put prompts through the chat template.
    limits: items of each task to use, by split: one number for all tasks, or
      one for each; None for all items.
    draw: seed of the choice of items where there is a limit.
    dtype: type of activations and cache.
    form: 'auto', 'batched' or 'folded' (see `forms`).
    members_per_group: members of one program call; chosen by default.
    prompts_per_batch: most prompts of a program call; chosen by default.
    memory_budget: bytes to use on a device; asked from it by default.
    max_length: longest prompt in tokens, new tokens included; by default the
      context that the model was made for.
    devices: devices to spread the members over; all by default.

  Raises:
    ValueError: no tasks, repeated names, bad weights, limits or objective.
  """

  def __init__(
    self,
    config: GemmaConfig,
    params: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    weights: Sequence[float] | None = None,
    objective: str = 'weighted_mean',
    chat: bool = False,
    limits: Mapping[str, int | None | Sequence[int | None]] | None = None,
    draw: int = 0,
    dtype: Any = jnp.float32,
    form: str = 'auto',
    members_per_group: int | None = None,
    prompts_per_batch: int | None = None,
    memory_budget: int | None = None,
    max_length: int | None = None,
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
    self.limits = {
      split: _limits(limit, len(tasks))
      for split, limit in (limits or {}).items()
    }
    self.max_length = max_length or config.max_position_embeddings
    self.ledger = Ledger()
    self.plan: planning.Plan | None = None
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
    metrics = [scorer_of(task) for task in self.tasks]
    self._matcher = Matcher(
      self.tasks,
      objectives.make_objective(objective, self.weights, metrics),
      tokenizer,
    )

  @property
  def objective(self) -> objectives.Objective:
    """What makes fitness of the tasks' scores."""
    return self._matcher.objective

  def normalise_by(self, experts: np.ndarray) -> None:
    """Gives the objective the experts' scores (N, K), where it needs them."""
    self._matcher.objective = self.objective.normalised_by(experts)

  def items(self, split: str) -> list[tuple[Item, ...]]:
    """The items of each task that are scored: its limit's choice of a split."""
    limits = self.limits.get(split, (None,) * len(self.tasks))
    return [
      task.subset(split, limit, self.draw)
      for task, limit in zip(self.tasks, limits, strict=True)
    ]

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
    steps = max(1, -(-len(indices) // group) * len(data.jobs))
    running, done = [], 0

    def finish(job: splits.Job, start: int, result: dict, count: int) -> None:
      nonlocal done
      with self.ledger.time('score'):
        result = {k: np.asarray(v)[:count] for k, v in result.items()}
      with self.ledger.time('host'):
        answers.add(job.kind, job.batch, start, result)
      self.ledger.prompt_tokens += job.prompt_tokens * count
      if job.kind == 'generate':
        self.ledger.new_tokens += int((result['tokens'] >= 0).sum())
      done += 1
      if progress:
        progress(done / steps)

    for start in range(0, len(indices), group):
      chosen = indices[start : start + group]
      lora, active = self._take(space, population, chosen, group)
      for job in data.jobs:
        program = self._program(job, lora, active)
        with self.ledger.time('score'):
          result = program(self._params, lora, active, job.inputs)
        running.append((job, start, result, len(chosen)))
        # One call stays in flight while the host takes in the one before.
        if len(running) > 1:
          finish(*running.pop(0))
    for step in running:
      finish(*step)
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
      if not any(self.limits.get(split, ())):
        other._items[split] = self._items[split]
        other._splits[split] = self._splits[split]
    return other

  def _encoded(self, split: str) -> list[list[prompts.EncodedItem]]:
    if split not in self._items:
      self._items[split] = [
        list(
          prompts.encode_items(
            task, items, self.tokenizer, self.chat, self.max_length
          )
        )
        for task, items in zip(self.tasks, self.items(split), strict=True)
      ]
      self.ledger.truncated += sum(
        item.truncated > 0 for task in self._items[split] for item in task
      )
    return self._items[split]

  def _split(self, split: str) -> splits.Split:
    if split not in self._splits:
      with self.ledger.time('host'):
        self._splits[split] = splits.pack(
          self._encoded(split),
          self.plan.rows,
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

  def _program(self, job: splits.Job, lora: Any, active: jax.Array) -> Callable:
    """The compiled program for these shapes; compiled at first use."""
    static = {}
    if job.kind == 'generate':
      static = {
        'max_new_tokens': job.batch.max_new_tokens,
        'stop_ids': tuple(self.tokenizer.stop_ids),
      }
    arguments = (self._params, lora, active, job.inputs)
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    key = (job.kind, structure, shapes, tuple(static.items()))
    if key not in self._compiled:
      run = forms.group_program(
        getattr(programs, job.kind),
        self.plan.form,
        self._model,
        self._mesh,
        **static,
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


def _limits(
  limit: int | None | Sequence[int | None], count: int
) -> tuple[int | None, ...]:
  """One limit for each task."""
  limits = limit if isinstance(limit, Sequence) else (limit,) * count
  if len(limits) != count or any(n is not None and n < 1 for n in limits):
    raise ValueError(
      f'limits are {limit}; expected a number of at least 1 for all {count} '
      'tasks, or one for each.'
    )
  return tuple(limits)


def _bytes(tree: Any) -> int:
  return sum(
    leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )
