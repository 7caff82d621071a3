"""What a run works with: model, experts, tasks, strategy and evaluator.

A mistake shows as early as it can: `inputs.locate` looks at names only, `load`
reads the quick files first, and all of it ends in an error for the user before
anything is compiled.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import files as files_lib
from evojax_llm.engine import plan
from evojax_llm.engine.gradient_member import Settings
from evojax_llm.fitness import estimates
from evojax_llm.fitness import intervals
from evojax_llm.fitness import racing
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Space
from evojax_llm.genomes.space import make_space
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import host_memory
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import registry
from evojax_llm.tasks import task_files as tasks_lib
from evojax_llm.tasks.scorers.registry import scorer_of

_GIB = 1 << 30
# Of a device's memory, what the base may take before it is cut.
_BASE_SHARE = 0.7
# Below this many items one standard error is over 5.5 points.
_FEW_ITEMS = 80
# Of a fine-tuned adapter, where the experts are no adapters.
_RANK = 8


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

  @functools.cached_property
  def expressed(self) -> Expressed:
    """What members of both spaces are in, one object for its programs."""
    return Expressed(self.experts.model())


def load(
  config: RunConfig, files: inputs_lib.Files, tokenizer: Any = None
) -> Setup:
  """Reads tasks, experts and the base, the quick ones first.

  `tokenizer` is that of the base, where it has been read already.

  Raises:
    UserError, TaskError, ModelError: something of it cannot be used.
  """
  # Together: what the search sees may not be tested as held out.
  tasks = tasks_lib.load_tasks(
    [*files.tasks, *files.heldout], inputs_lib.rules(config)
  )
  tasks, heldout = tasks[: len(files.tasks)], tasks[len(files.tasks) :]

  _say_limits(config, tasks)
  tokenizer = tokenizer or Tokenizer.from_folder(files.model)
  space = load_space(config, files, jnp.dtype(config.execution.dtype))
  return Setup(tokenizer, space, tasks, heldout)


def _say_limits(config: RunConfig, tasks: Any) -> None:
  for split in ('dev', 'test'):
    each = getattr(config, f'{split}_limits')
    limits = each or (getattr(config, f'{split}_limit'),) * len(tasks)
    # How many limits there are is checked where they are used.
    for task, limit in zip(tasks, limits, strict=False):
      found = len(getattr(task, split))
      if split == 'test' and not found:
        errors.say(
          f'{task.name} has no test items: nothing unseen will be reported; '
          'put "split": "test" on rows, or rows under "test" in JSON.'
        )
      elif isinstance(limit, int) and limit > found:
        errors.say(
          f'{task.name} has {found} {split} item{"s" * (found != 1)}, fewer '
          f'than the {limit} of config.{split}_limit{"s" * bool(each)}: all '
          'are taken.'
        )


def load_space(config: RunConfig, files: inputs_lib.Files, dtype: Any) -> Space:
  """Makes the genome space of a configuration; without dtype it only exports.

  Raises:
    ModelError: a folder cannot be used.
    UserError: the options of the space do not suit the experts.
  """
  told = inputs_lib.space_options(config)
  given = str(files.model), files.adapters, files.experts, dtype
  try:
    return make_space(config.space, *given, **told)
  except ValueError as error:
    if not told or isinstance(error, ModelError):
      raise
    part = inputs_lib.space_part(config)
    raise errors.UserError(f'config.{part}: {error}') from error


def make_strategy(config: RunConfig, setup: Setup) -> Any:
  """Makes the strategy of a configuration, for genomes of its space.

  Raises:
    UserError: its name or one of its options is unknown or out of range.
  """
  search = config.strategy
  with errors.as_user_error(TypeError, ValueError, what='config.strategy'):
    strategy = registry.make_strategy(
      search.name, search.population, setup.space, **search.options
    )
  if config.resample and not strategy.can_rescore:
    raise errors.UserError(
      f'{search.name} keeps scores of its own that cannot be made anew on '
      'other items: leave config.resample off.'
    )
  if config.pick_items and strategy.ends_in_front:
    raise errors.UserError(
      f'{search.name} ends in a front, from which config.pareto chooses: leave '
      'config.pick_items off.'
    )
  if config.racing.rule and strategy.sees == 'items':
    raise errors.UserError(
      f'{search.name} compares members item by item, and config.racing leaves '
      'some items unasked: leave one off.'
    )
  return strategy


def _held_back(config: RunConfig, setup: Setup) -> tuple[Any, Any]:
  """Returns the tasks of the search, and those whose dev items it picks by.

  Raises:
    UserError: nothing is left for the search.
  """
  count = config.pick_items
  for task in setup.tasks:
    if len(task.dev) <= count:
      raise errors.UserError(
        f'config.pick_items={count} leaves the search nothing of the '
        f'{len(task.dev)} dev items of {task.name}: hold fewer back.'
      )
  return tuple(
    [dataclasses.replace(task, dev=task.dev[part]) for task in setup.tasks]
    for part in (slice(-count), slice(-count, None))
  )


def pick_evaluator(evaluator: Any, config: RunConfig, setup: Setup) -> Any:
  """Returns an evaluator on the dev items that the search does not see."""
  return evaluator.on(_held_back(config, setup)[1])


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


def memory_budget(config: RunConfig) -> int | None:
  """Returns bytes to use on a device; None to ask it."""
  budget = config.execution.memory_budget_gib
  return None if budget is None else int(budget * _GIB)


def model_devices(
  config: RunConfig, space: Space, devices: Sequence[jax.Device] | None = None
) -> int:
  """Returns how many devices hold the base together.

  What the configuration says, or the fewest on which it leaves a part of their
  memory free.
  """
  if config.execution.model_devices:
    return config.execution.model_devices
  devices = jax.devices() if devices is None else devices
  model = space.model()
  budget = memory_budget(config) or plan.device_budget(devices[0])
  return fewest_devices(len(devices), model.params, model.config, budget)


def fewest_devices(
  devices: int, params: Any, model: ModelConfig, budget: float
) -> int:
  """Returns on how many of the devices a base leaves memory free; 1 if none.

  Args:
    devices: there are, of which a divisor holds the base.
    params: of the base, or their shapes.
    model: its configuration.
    budget: bytes on one device.
  """
  counts = [n for n in range(1, devices + 1) if devices % n == 0]
  for count in counts:
    size = sharding.model_bytes(devices, count, params, model.key_heads)
    if size < _BASE_SHARE * budget:
      return count
  return 1


def _evaluator(config: RunConfig, setup: Setup) -> Any:
  execution = dataclasses.asdict(config.execution)
  del execution['memory_budget_gib']
  devices = host_memory.engine_devices(execution.pop('population'))
  execution['model_devices'] = model_devices(config, setup.space, devices)
  execution['dtype'] = jnp.dtype(execution['dtype'])
  with errors.as_user_error(ValueError, TypeError, what='config'):
    return Evaluator(
      setup.tokenizer,
      _held_back(config, setup)[0] if config.pick_items else setup.tasks,
      weights=config.weights or None,
      objective=config.objective,
      chat=config.chat,
      limits={
        'dev': tuple(config.dev_limits) or config.dev_limit,
        'test': tuple(config.test_limits) or config.test_limit,
      },
      draw=config.dev_draw,
      memory_budget=memory_budget(config),
      devices=devices,
      **execution,
    )


def of_experts(evaluator: Any, setup: Setup) -> Any:
  """Returns an evaluator for the space of the experts.

  It has a plan of its own where members are of another kind than experts.
  """
  return evaluator.apart() if setup.space.exports == 'path' else evaluator


def score_few(
  evaluator: Any,
  space: Any,
  population: Any,
  progress: Any = None,
  split: str = 'dev',
) -> Any:
  """Scores a small population, by the program of the search's groups."""
  count = stack.size(population)
  if evaluator.plan is None:
    evaluator.prepare(space, population)
  slots = max(count, evaluator.plan.members_per_group)
  population = stack.pad(population, slots)
  return evaluator.evaluate(
    space, population, np.arange(count), split=split, progress=progress
  )


def heldout_tasks(config: RunConfig, setup: Setup) -> tuple[Any, ...]:
  """Returns the held-out tasks with their test items as `dev`."""
  return tuple(
    dataclasses.replace(
      task,
      dev=task.subset('test', config.test_limit, config.dev_draw),
      test=(),
    )
    for task in setup.heldout
  )


def make_heldout(config: RunConfig, setup: Setup) -> Any:
  """Makes the evaluator of the held-out tasks; None without any."""
  if not setup.heldout:
    return None
  setup = dataclasses.replace(setup, tasks=heldout_tasks(config, setup))
  plain = {'weights': (), 'objective': 'weighted_mean', 'resample': False}
  plain |= {
    'pick_items': None,
    'dev_limit': None,
    'dev_limits': (),
    'test_limits': (),
  }
  return _evaluator(dataclasses.replace(config, **plain), setup)


def fine_tuning(config: RunConfig, rank: int | None = None) -> Settings:
  """Returns how the baseline of fine-tuning learns.

  Its adapter has the `rank` of the experts, where they have one, unless the
  configuration says another.

  Raises:
    UserError: it cannot be as the configuration says.
  """
  told = config.fine_tuning
  rank = told.rank or rank or _RANK
  with errors.as_user_error(ValueError, what='config.fine_tuning'):
    return Settings(
      steps=max(1, told.steps),
      batch=told.batch,
      optimizer=told.optimizer,
      schedule='linear',
      train='adapter',
      lr=told.lr,
      rank=rank,
      alpha=2.0 * rank if told.alpha is None else told.alpha,
    )


class Estimates(NamedTuple):
  """How fitness is estimated, and what the items of K tasks ask if known."""

  rules: estimates.Rules
  given: Sequence[Any] | None


def make_estimates(
  config: RunConfig, setup: Setup, evaluator: Any
) -> Estimates | None:
  """Makes the rules of estimates; None where all is asked.

  Raises:
    UserError: the tasks' scores cannot be estimated, or what the file of
      parameters holds is not of their dev items.
  """
  told = dataclasses.asdict(config.estimate)
  path = os.path.expanduser(told.pop('parameters'))
  del told['finalists']
  if not told['rule']:
    return None
  rules, given = estimates.Rules(**told), None
  with errors.as_user_error(ValueError, what='config.estimate'):
    scorers = [scorer_of(task) for task in setup.tasks]
    estimates.check(rules, scorers, len(setup.experts.names))
  if path:
    content = files_lib.read_object(path, errors.UserError)
    with errors.as_user_error(ValueError, what=path):
      given = [
        estimates.items_of(content, task.name, [item.id for item in items])
        for task, items in zip(setup.tasks, evaluator.items('dev'), strict=True)
      ]
  return Estimates(rules, given)


def make_racing(config: RunConfig, setup: Setup) -> Any:
  """Makes the rules of a race; None where all are scored on everything.

  Raises:
    UserError: a value is out of range, or the tasks cannot be raced for.
  """
  if not config.racing.rule:
    return None
  with errors.as_user_error(ValueError, what='config.racing'):
    racing.check([scorer_of(t) for t in setup.tasks], config.objective)
    return racing.Racing(**dataclasses.asdict(config.racing))
