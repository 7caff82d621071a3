"""Gradient steps of members between ask and score, of a configuration."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import gradient_losses
from evojax_llm.engine.gradient import GradientSteps
from evojax_llm.engine.gradient_member import Settings
from evojax_llm.options import declared
from evojax_llm.population import keys
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.runs import errors
from evojax_llm.runs.refine_options import DRAWN
from evojax_llm.tasks import training_data

_GIB = 1 << 30


class Refinement:
  """Refines members of an ask; `refine` of `evolution.evolve`.

  All draws are addressed by the key, which is of a generation, and by the slot
  of a member: a run that goes on draws what an unbroken one would.
  """

  def __init__(
    self,
    steps: GradientSteps,
    drawn: dict[str, tuple[float, ...]],
    place: jax.sharding.Sharding | None = None,
  ):
    """Makes it of steps, and of what each member draws one of, by name."""
    self._steps, self._drawn, self._place = steps, drawn, place
    self._notes: dict[int, dict[str, Any]] = {}

  def prepare(self, population: Any, members: int) -> str:
    """Plans the memory for M members of a population; returns the plan."""
    return self._steps.prepare(population, members).describe()

  def placed(self, population: Any) -> Any:
    """Returns a population where steps leave members: programs compile once."""
    return sharding.place(population, self._place)

  def __call__(self, members: Any, which: np.ndarray, key: jax.Array) -> Any:
    """Returns the members (M, ...) with those at `which` refined."""
    hyper = {
      name: np.asarray(choices)[self._draw(key, which, name, len(choices))]
      for name, choices in self._drawn.items()
    }
    steps = keys.key_for(key, 0, lineage.NO_MEMBER, 'steps')
    members = self._steps.steps(members, which, steps, hyper)
    for i, slot in enumerate(which):
      note = {name: values[i].item() for name, values in hyper.items()}
      losses = np.asarray(self._steps.losses)[i, [0, -1]]
      self._notes[int(slot)] = {'refined': {**note, 'losses': losses.tolist()}}
    return members

  def take(self) -> dict[int, dict[str, Any]]:
    """Returns what was drawn by slot since the last call."""
    notes, self._notes = self._notes, {}
    return notes

  def _draw(self, key, which, purpose, count):
    slots = jnp.asarray(which, jnp.int32)
    each = keys.keys_for(key, 0, slots, purpose)
    draw = jax.vmap(lambda k: jax.random.randint(k, (), 0, count, jnp.int32))
    return np.asarray(draw(each))


def make(config: Any, setup: Any, evaluator: Any) -> Refinement | None:
  """Makes what config.refine says; None where no members are refined.

  Raises:
    UserError: an option cannot be, or there is nothing to learn from.
    TaskError: the file of rows cannot be used.
  """
  options, space = config.refine, setup.space
  if not options.loss:
    return None
  given = dataclasses.asdict(options)
  choices = {name: given[name] for name in DRAWN}
  _check_choices(choices)
  train = options.train
  if train == 'auto':
    train = 'adapter' if space.exports == 'model' else 'member'
  settings = {
    name: value
    for name, value in given.items()
    if name in declared(Settings) and name not in DRAWN
  }
  rows, soft = _rows(config, setup, evaluator), None
  if setup.tokenizer.images is not None:
    (rows,), soft = evaluator.image_tables.take([rows])
  gib = config.execution.memory_budget_gib
  with errors.as_user_error(ValueError, what='config.refine'):
    steps = GradientSteps(
      evaluator.runtime,
      space,
      rows,
      Settings(
        **settings | {'train': train},
        rank=max(choices['rank']),
        **{name: choices[name][0] for name in DRAWN if name != 'rank'},
      ),
      budget=None if gib is None else int(gib * _GIB),
      members_per_group=options.members_per_group,
      soft=soft,
    )
  used = ['lr']
  used += ['beta'] if gradient_losses.is_of_pairs(options.loss) else []
  used += ['rank', 'alpha'] if train == 'adapter' else []
  return Refinement(
    steps,
    {name: choices[name] for name in used},
    sharding.replicated(evaluator.runtime.mesh),
  )


def check_strategy(config: Any, strategy: Any) -> None:
  """Refuses a strategy whose mutation is left to steps, where there are none.

  Raises:
    UserError: saying what to set.
  """
  if strategy.needs_refine and not config.refine.loss:
    raise errors.UserError(
      f"Got config.refine.loss '' for {config.strategy.name}, which mutates by "
      'gradient steps. Set --config.refine.loss=sft, or '
      '--config.strategy.options.mutation=gaussian.'
    )


def _check_choices(choices):
  for name, values in choices.items():
    whole = name == 'rank'
    fits = [
      isinstance(value, int if whole else (int, float))
      and not isinstance(value, bool)
      and np.isfinite(value)
      and value > 0
      for value in values
    ]
    if not values or not all(fits):
      raise errors.UserError(
        f'Got config.refine.{name} {values!r}; expected one or more '
        f'{"whole " * whole}numbers above 0, of which each member draws one.'
      )


def _rows(config, setup, evaluator):
  """The rows to learn from, encoded."""
  options, chat, tokenizer = config.refine, config.chat, setup.tokenizer
  longest = evaluator.max_length(setup.space)
  pairs = gradient_losses.is_of_pairs(options.loss)
  if options.data:
    wanted = training_data.PAIRS if pairs else training_data.TEXTS
    read = training_data.read(options.data, wanted)
    return training_data.encode(read, tokenizer, longest, chat)
  if pairs:
    raise errors.UserError(
      f'config.refine.loss={options.loss} learns from pairs, which tasks lack: '
      'name a JSONL file of {prompt, chosen, rejected} in config.refine.data.'
    )
  others = options.items == 'others'
  file = 'name a JSONL file of {prompt, completion} in config.refine.data'
  if others and config.resample:
    raise errors.UserError(
      'config.refine learns from dev items that are not scored, and '
      f'config.resample comes to score all of them: {file}, or set '
      'config.refine.items=scored, and fitness is of what was learnt.'
    )
  rows, left = [], 0
  for task, items in zip(setup.tasks, evaluator.items('dev'), strict=True):
    if others:
      scored = {item.id for item in items}
      items = [item for item in task.dev if item.id not in scored]
    left += len(items)
    rows += training_data.encode_task(task, items, tokenizer, chat, longest)
  if not left:
    raise errors.UserError(
      'config.refine learns from dev items that are not scored, and the search '
      f'scores all of them: set a lower config.dev_limit, {file}, or set '
      'config.refine.items=scored, and fitness is of what was learnt.'
    )
  if not rows:
    raise errors.UserError(
      'config.refine.loss=sft learns from dev items, and no task has a text as '
      f'its answer: {file}.'
    )
  return rows
