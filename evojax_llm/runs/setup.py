"""From a configuration to what a run works with.

In three steps, so that a mistake shows as early as it can: `inputs.locate`
looks at names only, `load` reads the model, experts and tasks, `make_strategy`
makes the search. All of them end in an error for people before anything is
compiled.
"""

from collections.abc import Sequence
import dataclasses
import math
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
    tokenizer: of the base.
    space: genome space of the search.
    tasks: K tasks.
    weights: (K,) weights of the tasks; sum to one.
    heldout: tasks that the search does not see.
  """

  tokenizer: Any
  space: Any
  tasks: tuple[Any, ...]
  weights: tuple[float, ...]
  heldout: tuple[Any, ...] = ()

  @property
  def experts(self) -> Any:
    """The space in which baselines are made."""
    return self.space.plain

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

  from evojax_llm.models.tokenizer import Tokenizer

  tokenizer = Tokenizer.from_folder(files.model)
  space = load_space(config, files)
  return Problem(tokenizer, space, tasks, weights, heldout)


def load_space(
  config: Any,
  files: inputs_lib.Files,
  base: Any = None,
  with_params: bool = True,
) -> Any:
  """Makes the genome space of a configuration.

  Args:
    config: says which.
    files: base and experts.
    base: a `space.Model` that is loaded already; the one of the files if None.
    with_params: False for a space that only exports.

  Raises:
    ModelError: a folder cannot be used.
    UserError: the space does not take such experts.
  """
  import jax.numpy as jnp

  from evojax_llm.genomes import space as space_lib

  with asked_for(ValueError, what='config.space'):
    return space_lib.make_space(
      config.space,
      str(files.model) if base is None else base,
      files.adapters,
      files.experts,
      jnp.dtype(config.execution.dtype) if with_params else None,
    )


def make_strategy(config: Any, problem: Problem) -> Any:
  """The strategy of a configuration, made for genomes of its space.

  Raises:
    UserError: its name or one of its options is unknown or out of range.
  """
  import jax

  from evojax_llm.genomes import gates
  from evojax_llm.strategies import coefficient_search
  from evojax_llm.strategies import registry
  from evojax_llm.strategies.evosax import Stock

  name, size = config.strategy.name, config.strategy.population
  options = dict(config.strategy.options)
  searches = {
    'random_search': coefficient_search.random_search,
    'cma_es': coefficient_search.cma_es,
  }
  with asked_for(TypeError, ValueError, what='config.strategy'):
    if name in searches:
      if not isinstance(problem.space, gates.GateSpace):
        raise UserError(f'{name} searches gates: set config.space=gates.')
      num_experts = len(problem.space.names)
      strategy = searches[name](size, num_experts, **options)
    else:
      genome = jax.eval_shape(
        lambda: jax.tree.map(lambda leaf: leaf[0], problem.space.experts())
      )
      strategy = registry.make_strategy(
        name, size, genome, base=problem.space.base(), **options
      )
  if config.resample and isinstance(strategy, Stock):
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
