"""What a run works with: model, experts, tasks, strategy and evaluator.

A mistake shows as early as it can: `inputs.locate` looks at names only, `load`
reads the quick files first, and all of it ends in an error for the user before
anything is compiled.
"""

import dataclasses
from typing import Any

from absl import logging
import jax.numpy as jnp

from evojax_llm.fitness import intervals
from evojax_llm.fitness import racing
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import Space
from evojax_llm.genomes.space import make_space
from evojax_llm.models.errors import ModelError
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.errors import as_user_error
from evojax_llm.runs.errors import say
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import registry
from evojax_llm.tasks import task_files as tasks_lib
from evojax_llm.tasks.scorers.registry import scorer_of

_GIB = 1 << 30
# Below this many items one standard error is over 5.5 points.
_FEW_ITEMS = 80


@dataclasses.dataclass(frozen=True)
class Setup:
  """The base's tokenizer, what is evolved, and K tasks; some held out."""

  tokenizer: Any
  space: Space
  tasks: tuple[Any, ...]
  heldout: tuple[Any, ...] = ()

  @property
  def experts(self) -> Space:
    """The space in which the baselines are made of the experts."""
    return self.space.plain


def load(config: RunConfig, files: inputs_lib.Files) -> Setup:
  """Reads tasks, experts and the base, the quick ones first.

  Raises:
    UserError, TaskError, ModelError: something of it cannot be used.
  """
  # Together: what the search sees may not be tested as held out.
  tasks = tasks_lib.load_tasks(
    [*files.tasks, *files.heldout], inputs_lib.rules(config)
  )
  tasks, heldout = tasks[: len(files.tasks)], tasks[len(files.tasks) :]

  _say_limits(config, tasks)
  tokenizer = Tokenizer.from_folder(files.model)
  return Setup(tokenizer, load_space(config, files), tasks, heldout)


def _say_limits(config: RunConfig, tasks: Any) -> None:
  for split in ('dev', 'test'):
    one, each = (getattr(config, f'{split}_{n}') for n in ('limit', 'limits'))
    # How many limits there are is checked where they are used.
    for task, limit in zip(tasks, each or (one,) * len(tasks), strict=False):
      found = len(getattr(task, split))
      if split == 'test' and not found:
        say(
          f'{task.name} has no test items: nothing unseen will be reported; '
          'put "split": "test" on rows, or rows under "test" in JSON.'
        )
      elif isinstance(limit, int) and limit > found:
        say(
          f'{task.name} has {found} {split} item{"s" * (found != 1)}, fewer '
          f'than the {limit} of config.{split}_limit{"s" * bool(each)}: all '
          'are taken.'
        )


def load_space(
  config: RunConfig, files: inputs_lib.Files, with_params: bool = True
) -> Space:
  """Makes the genome space of a configuration; may be one that only exports.

  Raises:
    ModelError: a folder cannot be used.
    UserError: the options of the space do not suit the experts.
  """
  told = inputs_lib.space_options(config)
  try:
    return make_space(
      config.space,
      str(files.model),
      files.adapters,
      files.experts,
      jnp.dtype(config.execution.dtype) if with_params else None,
      **told,
    )
  except ValueError as error:
    if not told or isinstance(error, ModelError):
      raise
    raise UserError(f'config.merged: {error}') from error


def make_strategy(config: RunConfig, setup: Setup) -> Any:
  """Makes the strategy of a configuration, for genomes of its space.

  Raises:
    UserError: its name or one of its options is unknown or out of range.
  """
  search = config.strategy
  with as_user_error(TypeError, ValueError, what='config.strategy'):
    strategy = registry.make_strategy(
      search.name, search.population, setup.space, **search.options
    )
  if config.resample and not strategy.can_rescore:
    raise UserError(
      f'{search.name} keeps scores of its own that cannot be made anew on '
      'other items: leave config.resample off.'
    )
  return strategy


def make_evaluator(config: RunConfig, setup: Setup) -> Any:
  """Makes the evaluator of a configuration; warns where dev items are few."""
  evaluator = _evaluator(config, setup)
  scored = sum(len(items) for items in evaluator.items('dev'))
  if scored < _FEW_ITEMS:
    logging.warning(
      'The search scores only %d dev items: the standard error of an accuracy '
      'is up to %.1f points, and a search fits the luck of the draw.',
      scored,
      100 * intervals.standard_error(scored),
    )
  return evaluator


def _evaluator(config: RunConfig, setup: Setup) -> Any:
  execution = config.execution
  budget = execution.memory_budget_gib
  with as_user_error(ValueError, TypeError, what='config'):
    return Evaluator(
      setup.tokenizer,
      setup.tasks,
      weights=config.weights or None,
      objective=config.objective,
      chat=config.chat,
      limits={
        'dev': tuple(config.dev_limits) or config.dev_limit,
        'test': tuple(config.test_limits) or config.test_limit,
      },
      draw=config.dev_draw,
      dtype=jnp.dtype(execution.dtype),
      base_dtype=execution.base_dtype,
      form=execution.form,
      members_per_group=execution.members_per_group,
      prompts_per_batch=execution.prompts_per_batch,
      memory_budget=None if budget is None else int(budget * _GIB),
      max_length=execution.max_length,
    )


def heldout_tasks(config: RunConfig, setup: Setup) -> tuple[Any, ...]:
  """Returns the held-out tasks with their test items as `dev`.

  Raises:
    TaskError: one has no test items.
  """
  return tuple(
    dataclasses.replace(
      task,
      dev=task.subset('test', config.test_limit, config.dev_draw),
      test=(),
    )
    for task in setup.heldout
  )


def make_heldout(config: RunConfig, setup: Setup) -> Any:
  """Makes the evaluator of the held-out tasks; None without any.

  Their test items stand in its `dev`, by which the engine plans.
  """
  if not setup.heldout:
    return None
  tasks = heldout_tasks(config, setup)
  config = dataclasses.replace(
    config,
    weights=(),
    objective='weighted_mean',
    dev_limit=None,
    dev_limits=(),
    test_limits=(),
    resample=False,
  )
  return _evaluator(config, dataclasses.replace(setup, tasks=tasks))


def make_racing(config: RunConfig, setup: Setup) -> Any:
  """Makes the rules of a race; None where all are scored on everything.

  Raises:
    UserError: a value is out of range, or the tasks cannot be raced for.
  """
  options = dataclasses.asdict(config.racing)
  if not options['rule']:
    return None
  with as_user_error(ValueError, what='config.racing'):
    racing.check([scorer_of(t) for t in setup.tasks], config.objective)
    return racing.Racing(**options)
