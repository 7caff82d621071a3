"""From a configuration to what a run works with.

In three steps, so that a mistake shows as early as it can: `inputs.locate`
looks at names only, `load` reads the model, experts and tasks, `make_strategy`
makes the search. All of them end in an error for people before anything is
compiled.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from absl import logging
from ml_collections import config_dict

from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.errors import asked_for

_GIB = 1 << 30
# Below this many items one standard error is over 5.5 points.
_FEW_ITEMS = 80


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is evolved, and on what.

  Attributes:
    config: of the model.
    params: of the base.
    tokenizer: of the base.
    experts: the experts' own space; the baselines are made in it.
    space: genome space of the search; `experts` itself, or made of it.
    tasks: K tasks.
    weights: (K,) weights of the tasks; sum to one.
    heldout: tasks that the search does not see.
  """

  config: Any
  params: Any
  tokenizer: Any
  experts: Any
  space: Any
  tasks: tuple[Any, ...]
  weights: tuple[float, ...]
  heldout: tuple[Any, ...] = ()

  @property
  def task_names(self) -> list[str]:
    """Names of the K tasks."""
    return [task.name for task in self.tasks]


def load(config: Any, files: inputs_lib.Files) -> Problem:
  """Reads tasks, experts and the base, the quick ones first.

  Raises:
    UserError, TaskError, ModelError: something of it cannot be used.
  """
  from evojax_llm.tasks import task_files as tasks_lib

  rules = tasks_lib.Rules(
    allow_overlap=config.allow_overlap,
    allow_code=config.allow_code,
    shots=config.shots,
    shots_seed=config.shots_seed,
    system=config.system,
  )
  # Together: what the search sees may not be tested as held out.
  tasks = tasks_lib.load_tasks([*files.tasks, *files.heldout], rules)
  tasks, heldout = tasks[: len(files.tasks)], tasks[len(files.tasks) :]
  weights = _weights(config.weights, tasks)

  import jax.numpy as jnp

  from evojax_llm.models import hub
  from evojax_llm.models import peft
  from evojax_llm.models.tokenizer import Tokenizer

  tokenizer = Tokenizer.from_folder(files.model)
  dtype = jnp.dtype(config.execution.dtype)
  model, _ = hub.load_config(files.model)
  if files.experts:
    _check_models(files.experts, model)
    _, params = hub.load_checkpoint(files.model, dtype)
    experts = space = _of_models(files.experts, params, dtype)
  else:
    adapters = peft.load_adapters(files.adapters, model)
    _, params = hub.load_checkpoint(files.model, dtype)
    experts, space = make_space(config, adapters, params)
  return Problem(
    model, params, tokenizer, experts, space, tasks, weights, heldout
  )


def _check_models(folders: Sequence[pathlib.Path], expected: Any) -> None:
  """Refuses models that are not of the base's configuration."""
  from evojax_llm.models import hub

  for folder in folders:
    found, _ = hub.load_config(folder)
    for field in dataclasses.fields(expected):
      theirs = getattr(found, field.name)
      own = getattr(expected, field.name)
      if theirs != own:
        raise UserError(
          f'{folder}/config.json: {field.name} is {theirs}, and {own} in the '
          'base; expected a model that was tuned from it.'
        )


def _of_models(folders: Sequence[pathlib.Path], params: Any, dtype: Any) -> Any:
  """The space of whole models."""
  from evojax_llm.genomes.weights import WeightSpace
  from evojax_llm.models import folders as folders_lib
  from evojax_llm.models import hub

  experts = [
    hub.load_checkpoint(folder, dtype, place=lambda leaf: leaf)[1]
    for folder in folders
  ]
  return WeightSpace(folders_lib.expert_names(folders), experts, params)


def make_space(
  config: Any, adapters: Any, params: Any = None
) -> tuple[Any, Any]:
  """Spaces made of adapters.

  Args:
    config: says which space is searched.
    adapters: the experts.
    params: of their base; read for the space 'weights' alone.

  Returns:
    (the experts' own space, the space of the search).
  """
  from evojax_llm.genomes.adapters import AdapterSpace
  from evojax_llm.genomes.gates import GateSpace
  from evojax_llm.genomes.weights import WeightSpace

  if config.space == 'weights':
    space = WeightSpace.of_adapters(adapters, params)
    return space, space
  experts = AdapterSpace(adapters)
  if config.space == 'adapters':
    return experts, experts
  return experts, GateSpace(adapters)


def make_strategy(config: Any, problem: Problem) -> Any:
  """The strategy of a configuration, made for genomes of its space.

  Raises:
    UserError: its name or one of its options is unknown or out of range.
  """
  from evojax_llm.strategies import registry

  name, options = config.strategy.name, config.strategy.options.to_dict()
  with asked_for(TypeError, ValueError, what='config.strategy'):
    strategy = registry.make_strategy(
      name, config.strategy.population, problem.space, **options
    )
  if config.resample and not strategy.can_rescore:
    raise UserError(
      f"{name} is one of evosax's algorithms, which keep scores of their own "
      'that cannot be made anew on other items: leave config.resample off.'
    )
  return strategy


def make_evaluator(config: Any, problem: Problem) -> Any:
  """The fitness engine of a configuration.

  That the search scores few dev items is logged as a warning.
  """
  from evojax_llm.fitness import intervals

  evaluator = _evaluator(config, problem)
  scored = sum(len(items) for items in evaluator.items('dev'))
  if scored < _FEW_ITEMS:
    logging.warning(
      'The search scores only %d dev items: the standard error of an accuracy '
      'is up to %.1f points, and a search fits the luck of the draw.',
      scored,
      100 * intervals.standard_error(scored),
    )
  return evaluator


def _evaluator(config: Any, problem: Problem) -> Any:
  import jax.numpy as jnp

  from evojax_llm.fitness.evaluator import Evaluator

  execution = config.execution
  budget = execution.memory_budget_gib
  with asked_for(ValueError, what='config'):
    return Evaluator(
      problem.config,
      problem.params,
      problem.tokenizer,
      problem.tasks,
      weights=problem.weights,
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


def heldout_tasks(config: Any, problem: Problem) -> tuple[Any, ...]:
  """The held-out tasks with config.test_limit test items for their `dev`.

  Raises:
    TaskError: one has no test items.
  """
  return tuple(
    dataclasses.replace(
      task,
      dev=task.subset('test', config.test_limit, config.dev_draw),
      test=(),
    )
    for task in problem.heldout
  )


def make_heldout(config: Any, problem: Problem) -> Any:
  """An evaluator of the held-out tasks, or None where there are none.

  Their test items stand in its `dev`, by which the engine plans.
  """
  if not problem.heldout:
    return None
  tasks = heldout_tasks(config, problem)
  config = config_dict.ConfigDict(config.to_dict())
  config.objective = 'weighted_mean'
  config.dev_limit, config.dev_limits, config.test_limits = None, (), ()
  weights = (1 / len(tasks),) * len(tasks)
  return _evaluator(
    config, dataclasses.replace(problem, tasks=tasks, weights=weights)
  )


def make_racing(config: Any, problem: Problem) -> Any:
  """The rules of a race, or None where everybody is scored on everything.

  Raises:
    UserError: a value that cannot be, or tasks that cannot be raced for.
  """
  from evojax_llm.fitness import racing
  from evojax_llm.tasks.scorers.registry import scorer_of

  options = config.racing.to_dict()
  if not options['rule']:
    return None
  with asked_for(ValueError, what='config.racing'):
    racing.check([scorer_of(t) for t in problem.tasks], config.objective)
    return racing.Racing(**options)


def _weights(
  values: Sequence[float], tasks: Sequence[Any]
) -> tuple[float, ...]:
  with asked_for(TypeError, ValueError, what='config.weights'):
    weights = [float(v) for v in values] or [1.0] * len(tasks)
  if (
    len(weights) != len(tasks)
    or not all(math.isfinite(w) and w >= 0 for w in weights)
    or not sum(weights) > 0
  ):
    raise UserError(
      f'Got config.weights={tuple(values)} for the tasks '
      f'{", ".join(t.name for t in tasks)}; expected a weight of at least 0 '
      'for each, not all of them 0.'
    )
  return tuple(w / sum(weights) for w in weights)
