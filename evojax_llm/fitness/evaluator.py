"""Scores a population on tasks: the fitness engine.

`Evaluator` encodes and packs a split once, compiles one program a length
bucket, and then scores any number of populations without compiling again.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import forms
from evojax_llm.engine import groups
from evojax_llm.engine import packed_split
from evojax_llm.engine import plan as planning
from evojax_llm.engine.answers import Answers
from evojax_llm.engine.engine import Engine
from evojax_llm.engine.image_table import ImageTables
from evojax_llm.engine.ledger import Ledger
from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.sampling import Sampling
from evojax_llm.fitness import estimates
from evojax_llm.fitness import objectives
from evojax_llm.fitness import racing
from evojax_llm.fitness.evaluation import AnswerScorer
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.genomes.space import Expressing
from evojax_llm.population import sharding
from evojax_llm.tasks import prompts
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import SPLITS
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task

Limit = int | None | Sequence[int | None]
Encoded = tuple[prompts.EncodedItem, ...]


class Evaluator:
  """Scores populations on tasks.

  Args:
    tokenizer: of the models; encodes prompts and decodes answers.
    tasks: K tasks with distinct names.
    weights: (K,) of the tasks in the fitness; equal by default.
    objective: makes fitness of their scores: a name of `objectives`.
    chat: put prompts through the chat template.
    limits: items to use, by split or for both: one number for all tasks, or one
      for each; None for all items.
    draw: seed of that choice of items.
    dtype: type of activations and cache.
    base_dtype: see `Runtime`.
    form: 'auto', 'batched' or 'folded' (see `forms`).
    members_per_group: members of one program call; chosen by default.
    prompts_per_batch: most prompts of a program call; chosen by default.
    memory_budget: bytes to use on a device; asked from it by default.
    max_length: longest prompt in tokens, with new ones; the context by default.
    sampling: how tokens of generated answers are chosen; greedy by default.
    devices: to spread the members over; all by default.
    model_devices: see `Runtime`.

  Raises:
    ValueError: no tasks, repeated names, bad weights, limits or objective.
  """

  def __init__(
    self,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    weights: Sequence[float] | None = None,
    objective: str = 'weighted_mean',
    chat: bool = False,
    limits: Mapping[str, Limit] | Limit = None,
    draw: int = 0,
    dtype: Any = jnp.float32,
    base_dtype: str | None = None,
    form: str = 'auto',
    members_per_group: int | None = None,
    prompts_per_batch: int | None = None,
    memory_budget: int | None = None,
    max_length: int | None = None,
    sampling: Sampling | None = None,
    devices: Sequence[jax.Device] | None = None,
    model_devices: int = 1,
  ):
    if isinstance(tasks, Task):
      raise ValueError(
        f'Got the task {tasks.name!r}; expected a list of tasks.'
      )
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) != len(names):
      raise ValueError(f'tasks are {names}; expected some, named differently.')
    if form not in ('auto', *forms.FORMS):
      raise ValueError(
        f'form is {form!r}; expected auto, {", ".join(forms.FORMS)}.'
      )
    self.tokenizer, self.tasks = tokenizer, list(tasks)
    self.weights = objectives.task_weights(weights, len(tasks))
    self.chat, self.draw = chat, draw
    if not isinstance(limits, Mapping):
      limits = dict.fromkeys(SPLITS, limits)
    self.limits = {
      split: _limits(limit, len(tasks)) for split, limit in limits.items()
    }
    self._max_length = max_length
    kinds = {'dtype': dtype, 'base_dtype': base_dtype, 'sampling': sampling}
    where = {'devices': devices, 'model_devices': model_devices}
    self._runtime = Runtime(**kinds, **where)
    self._choices = dict(
      form=form,
      members_per_group=members_per_group,
      prompts_per_batch=prompts_per_batch,
      budget=memory_budget,
    )
    self._engine = Engine(self._runtime, tokenizer)
    self.image_tables = ImageTables(self._runtime, tokenizer)
    # By split and longest prompt, and of splits by the choice of items too.
    self._items: dict[tuple, tuple] = {}
    self._splits: dict[tuple, packed_split.PackedSplit] = {}
    metrics = [scorer_of(task) for task in self.tasks]
    made = objectives.make_objective(objective, self.weights, metrics)
    self._scorer = AnswerScorer(self.tasks, made, tokenizer)

  @property
  def runtime(self) -> Runtime:
    """Devices, shared parameters and compiled programs."""
    return self._runtime

  @property
  def ledger(self) -> Ledger:
    """Where tokens and seconds went."""
    return self._runtime.ledger

  def max_length(self, space: Expressing) -> int:
    """Returns the most tokens of a prompt of a space, new ones included."""
    context = space.model().config.max_position_embeddings
    return self._max_length or context

  @property
  def objective(self) -> objectives.Objective:
    """What makes fitness of the tasks' scores."""
    return self._scorer.objective

  def normalise_by(self, experts: np.ndarray) -> None:
    """Gives the objective, and those drawn from now on, the experts' (N, K)."""
    # A scorer of its own: other draws have other items, and scores on them.
    self._scorer = copy.copy(self._scorer)
    self._scorer.objective = self.objective.normalised_by(experts)

  def items(self, split: str) -> list[tuple[Item, ...]]:
    """The items of each task that are scored: its limit's choice of a split."""
    limits = self.limits.get(split, (None,) * len(self.tasks))
    return [
      task.subset(split, limit, self.draw)
      for task, limit in zip(self.tasks, limits, strict=True)
    ]

  def check_population(
    self, space: Expressing, members: int, devices: int = 1
  ) -> None:
    """Refuses a population that so many devices cannot hold, before it is made.

    Raises:
      MemoryPlanError: saying how large it would be.
    """
    genome_bytes = groups.num_bytes(jax.eval_shape(space.base))
    device = self._runtime.mesh.devices.flat[0]
    budget = self._choices['budget']
    planning.check_population(members, genome_bytes, budget, device, devices)

  def prepare(
    self,
    space: Expressing,
    population: Any,
    members: int | None = None,
    **sizes: Any,
  ) -> planning.Plan:
    """Fixes form, group and batch sizes for a run; see `Engine.prepare`.

    Called by the first `evaluate`, or earlier, to print the plan.
    """
    encoded, soft = self._encoded('dev', self.max_length(space))
    return self._engine.prepare(
      space,
      population,
      packed_split.longest_rows(encoded),
      members=members,
      soft=soft,
      **sizes,
      **self._choices,
    )

  @property
  def plan(self) -> planning.Plan | None:
    """How work is cut for the devices; None before it is prepared."""
    return self._engine.plan

  def models(self, space: Expressing, population: Any) -> list[str] | None:
    """Names the model of each member (P,); None if the space does not tell."""
    found = groups.models(self._runtime, space, population)
    return found and found.names

  def evaluate(
    self,
    space: Expressing,
    population: Any,
    members: Sequence[int] | None = None,
    split: str = 'dev',
    progress: Callable[[float], None] | None = None,
    items: Sequence[Sequence[int]] | None = None,
    ids: Sequence[int] | None = None,
  ) -> Evaluation:
    """Scores M members of a population, in the order of `members`.

    Args:
      space: expresses genomes (see `genomes.space`).
      population: genomes (P, ...). Where its leaves are numpy arrays it stays
        on the host, and a group at a time goes to the devices.
      members: M indices into that axis; all by default.
      split: 'dev' or 'test'.
      progress: called with the share of the work that is done.
      items: of each task, indices of the items to use; all by default.
      ids: M that address the draws of sampled answers; indices by default.

    Raises:
      ValueError: an index is of no member, or the population is not of the
        space.
      MemoryPlanError: the device is out of memory with a single member.
    """
    indices = groups.check_members(space, population, members)
    if self.plan is None:
      self.prepare(space, population)
    found = groups.models(self._runtime, space, population)
    same = groups.first_of_each(found, indices)
    if same is not None:
      indices = indices[same[0]]
      ids = None if ids is None else np.asarray(ids)[same[0]]
    data = self._split(split, self.max_length(space), items)
    answers = Answers(data, len(indices))
    asked = space, population, indices, data, answers, progress, ids
    # Texts are judged while the devices work on the next group.
    self._engine.answer(*asked, lambda at: self._scorer.read(data, answers, at))
    self.ledger.members += len(indices)
    with self.ledger.time('host'):
      found = self._scorer.score(data, answers)
    return found if same is None else found.spread(same[1])

  def distances(
    self, space: Expressing, population: Any, members: Sequence[int]
  ) -> np.ndarray:
    """Returns how far M members are from what all share; see `groups`."""
    indices = groups.check_members(space, population, members)
    return groups.distances(self._runtime, space, population, indices)

  def race(
    self,
    space: Expressing,
    population: Any,
    members: Sequence[int],
    rules: racing.Racing,
    seed_key: jax.Array,
    generation: int,
    progress: Callable[[float], None] | None = None,
  ) -> racing.Raced:
    """Scores M members on `dev` as long as they can matter; see `racing`.

    Raises:
      ValueError: fitness is no weighted mean over items to be maximised.
    """
    racing.check([scorer_of(task) for task in self.tasks], self.objective.name)
    members = np.asarray(members)
    lengths = [
      [sum(len(part.prompt) for part in item) for item in _by_item(task)]
      for task in self._encoded('dev', self.max_length(space))[0]
    ]
    blocks = racing.draw_blocks(lengths, 2 ** (rules.rounds - 1), seed_key)
    said = [np.full((len(members), len(task)), None) for task in lengths]
    asked = [np.zeros(texts.shape, bool) for texts in said]
    parts = []

    def score(running, items):
      scores = self.evaluate(space, population, members[running], items=items)
      parts.append(scores.tasks)
      for k, (result, chosen) in enumerate(zip(parts[-1], items, strict=True)):
        where = np.ix_(running, chosen)
        asked[k][where] = True
        texts = np.array(result.predictions, object)
        said[k][where] = texts.reshape(result.values.shape)
      if progress:
        progress(len(parts) / len(blocks))
      return [t.values.astype(np.float64) for t in parts[-1]], scores.reasons

    raced = racing.race(
      score, len(members), blocks, self.weights, rules, seed_key, generation
    )
    self.ledger.items_saved += raced.saved
    results = zip(parts[-1], self.items('dev'), strict=True)
    tasks = [
      dataclasses.replace(
        result,
        ids=[item.id for item in items],
        values=raced.values[k].astype(np.float32),
        predictions=said[k].tolist(),
        loglikelihoods=None,  # They are not kept.
        asked=asked[k],
      )
      for k, (result, items) in enumerate(results)
    ]
    return dataclasses.replace(raced, tasks=tasks)

  def on(self, tasks: Sequence[Task]) -> 'Evaluator':
    """The same engine on all items of other tasks with these names."""
    other = copy.copy(self)
    other.tasks, other.limits = list(tasks), {}
    other._items, other._splits = {}, {}
    other._scorer = AnswerScorer(tasks, self.objective, self.tokenizer)
    return other

  def apart(self) -> 'Evaluator':
    """The same scores with a plan of its own, for members of another kind."""
    other = copy.copy(self)
    other._engine, other._splits = Engine(self._runtime, self.tokenizer), {}
    return other

  def estimate(
    self,
    space: Expressing,
    population: Any,
    members: Sequence[int],
    estimator: estimates.Estimator,
    progress: Callable[[float], None] | None = None,
  ) -> Evaluation:
    """Scores M members on the anchors of `dev`; estimates the scores on all."""
    scores = self.evaluate(
      space, population, members, progress=progress, items=estimator.anchors
    )
    whole = sum(len(items) for items in self.items('dev'))
    whole -= sum(map(len, estimator.anchors))
    self.ledger.items_saved += (scores.distinct or len(members)) * whole
    return estimator.apply(scores, self.objective)

  def redraw(self, draw: int) -> 'Evaluator':
    """The same engine on another choice of items.

    Compiled programs, plan and ledger are shared; so is a split of which all
    items are used.
    """
    other = copy.copy(self)
    other.draw = draw
    limited = [split for split, limits in self.limits.items() if any(limits)]
    other._items, other._splits = (
      {key: value for key, value in kept.items() if key[0] not in limited}
      for kept in (self._items, self._splits)
    )
    return other

  def _encoded(self, split: str, max_length: int) -> tuple[list[Encoded], Any]:
    """The items of each task, and the soft tokens of their images."""
    key = (split, max_length)
    if key not in self._items:
      how = (self.tokenizer, self.chat, max_length)
      encoded = [
        prompts.encode_items(task, items, *how)
        for task, items in zip(self.tasks, self.items(split), strict=True)
      ]
      self._items[key] = self.image_tables.take(encoded)
      self.ledger.truncated += sum(
        item.truncated > 0 for task in encoded for item in task
      )
    return self._items[key]

  def _split(self, split, max_length, items=None):
    chosen = items and tuple(tuple(map(int, task)) for task in items)
    key = (split, max_length, chosen)
    if key not in self._splits:
      encoded, soft = self._encoded(split, max_length)
      with self.ledger.time('host'):
        if chosen:
          by_item = [_by_item(task) for task in encoded]
          encoded = [
            [part for i in picked for part in items[i]]
            for items, picked in zip(by_item, chosen, strict=True)
          ]
        self._splits[key] = packed_split.pack(
          encoded,
          self.plan,
          sharding.replicated(self._runtime.mesh),
          self.tokenizer.pad_id,
          soft,
        )
    return self._splits[key]


def _by_item(encoded: Encoded) -> list[Encoded]:
  """What one item has become, which stands in a row, together."""
  parts = itertools.groupby(encoded, key=lambda entry: id(entry.item))
  return [tuple(part) for _, part in parts]


def _limits(limit: Limit, count: int) -> tuple[int | None, ...]:
  """One limit for each task."""
  limits = limit if isinstance(limit, Sequence) else (limit,) * count
  if len(limits) != count or not all(
    n is None or (isinstance(n, int) and n > 0) for n in limits
  ):
    raise ValueError(
      f'limits are {limit}; expected a number of at least 1 for all {count} '
      'tasks, or one for each.'
    )
  return tuple(limits)
