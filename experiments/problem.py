"""From a configuration to what a run works with.

In three steps, so that a mistake shows as early as it can: `locate` looks at
names only, `load` reads the model, experts and tasks, `make_strategy` makes the
search. All of them end in an error for people before anything is compiled.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import math
import pathlib
from typing import Any

from evojax_llm import pocket
from experiments.command import CommandError

SPACES = ('adapters', 'coefficients', 'weights')
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Files:
  """Where the inputs of a run are.

  Attributes:
    name: of the model, for the run folder.
    model: its folder.
    adapters: folders of the experts that are adapters.
    experts: folders of the experts that are models.
    tasks: K files, or names of tasks that are no files.
  """

  name: str
  model: pathlib.Path
  adapters: tuple[pathlib.Path, ...]
  experts: tuple[pathlib.Path, ...]
  tasks: tuple[pathlib.Path | str, ...]


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
  """

  config: Any
  params: Any
  tokenizer: Any
  experts: Any
  space: Any
  tasks: tuple[Any, ...]
  weights: tuple[float, ...]

  @property
  def task_names(self) -> list[str]:
    return [task.name for task in self.tasks]


def names(value: str | Sequence[str]) -> list[str]:
  """The names in 'a,b' or ('a', 'b')."""
  values = [value] if isinstance(value, str) else value
  return [name.strip() for v in values for name in v.split(',') if name.strip()]


def recipe(config: Any) -> list[Any]:
  """config.initial, of which an override may be 'experts,pairs'."""
  entries = []
  for entry in config.initial:
    entries += names(entry) if isinstance(entry, str) else [entry]
  return entries


def locate(config: Any) -> Files:
  """Finds the inputs; loads nothing.

  Raises:
    CommandError: a name stands for nothing.
  """
  _check(config)
  adapters = [pathlib.Path(name) for name in names(config.adapters)]
  experts = [pathlib.Path(name) for name in names(config.experts)]
  if experts and config.space != 'weights':
    raise CommandError(
      f'config.experts are whole models, and config.space={config.space} is '
      'made of adapters: set config.space=weights.'
    )
  if experts and adapters:
    raise CommandError(
      'Got config.adapters and config.experts; expected one of them.'
    )
  if config.model in ('', 'pocket'):
    name, model = 'pocket', pocket.base_folder()
    if not experts:
      adapters = adapters or list(pocket.expert_folders())
  else:
    model = pathlib.Path(config.model)
    name = model.resolve().name
  if not adapters and not experts:
    raise CommandError(
      f'No experts for {config.model}: name PEFT adapter folders of it, as in '
      '--config.adapters=experts/code,experts/cot, or models tuned from it, as '
      'in --config.space=weights --config.experts=models/code,models/cot'
    )
  for folder in (model, *adapters, *experts):
    if not folder.is_dir():
      raise CommandError(f'{folder} is not a folder.')
  return Files(
    name, model, tuple(adapters), tuple(experts), tuple(_task_files(config))
  )


def _task_files(config: Any) -> list[pathlib.Path | str]:
  files = []
  for name in names(config.tasks):
    if pathlib.Path(name).is_file():
      files.append(pathlib.Path(name))
    elif name.startswith('lm_eval:') or '.py:' in name:
      files.append(name)
    elif name in pocket.stage_names():
      files += [pocket.task_file(task) for task in pocket.stage(name)]
    elif name in pocket.task_names():
      files.append(pocket.task_file(name))
    else:
      raise CommandError(
        f'Got task {name!r}; expected a file, a pocket stage '
        f'({", ".join(pocket.stage_names())}) or a pocket task '
        f'({", ".join(pocket.task_names())}).'
      )
  if not files:
    raise CommandError('No tasks: name one at least with --config.tasks.')
  return files


def _check(config: Any) -> None:
  """Values that can be judged without loading anything."""
  strategy, execution = config.strategy, config.execution
  for name, value, least in (
    ('strategy.population', strategy.population, 1),
    ('strategy.generations', strategy.generations, 0),
    ('strategy.patience', strategy.patience, 1),
    ('seed', config.seed, 0),
    ('dev_limit', config.dev_limit, 1),
    ('test_limit', config.test_limit, 1),
    ('shots', config.shots, 0),
    ('execution.members_per_group', execution.members_per_group, 1),
    ('execution.prompts_per_batch', execution.prompts_per_batch, 1),
    ('execution.max_length', execution.max_length, 1),
  ):
    if value is not None and value < least:
      raise CommandError(
        f'Got config.{name}={value}; expected {least} or more.'
      )
  if config.space == 'weights' and execution.base_dtype:
    raise CommandError(
      'config.execution.base_dtype is of a base that members share; members of '
      'config.space=weights share nothing: leave it off.'
    )
  if config.resample and not (config.dev_limit or any(config.dev_limits)):
    raise CommandError(
      'config.resample chooses other dev items in every generation: say how '
      'many with config.dev_limit.'
    )
  if config.resample and config.racing.rule:
    raise CommandError(
      'config.resample and config.racing both choose dev items: leave one off.'
    )
  if config.seed >= 1 << 32:
    raise CommandError(f'Got config.seed={config.seed}; expected 32 bits.')
  for name, value, known in (
    ('space', config.space, SPACES),
    ('execution.dtype', execution.dtype, ('float32', 'bfloat16')),
    ('execution.base_dtype', execution.base_dtype, (None, 'int8')),
    ('racing.rule', config.racing.rule, ('', 'paired', 'halving')),
    ('execution.form', execution.form, ('auto', 'batched', 'folded')),
  ):
    if value not in known:
      raise CommandError(
        f'Got config.{name}={value!r}; expected one of '
        f'{", ".join(map(repr, known))}.'
      )


def load(config: Any, files: Files) -> Problem:
  """Reads tasks, experts and the base, the quick ones first.

  Raises:
    CommandError, TaskError, GemmaError: something of it cannot be used.
  """
  from evojax_llm.fitness import tasks as tasks_lib

  rules = tasks_lib.Rules(
    allow_overlap=config.allow_overlap,
    allow_code=config.allow_code,
    shots=config.shots,
    shots_seed=config.shots_seed,
    system=config.system,
  )
  tasks = tasks_lib.load_tasks(files.tasks, rules)
  weights = _weights(config.weights, tasks)

  import jax.numpy as jnp

  from evojax_llm.gemma import hub
  from evojax_llm.gemma import peft
  from evojax_llm.gemma.tokenizer import Tokenizer

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
  return Problem(model, params, tokenizer, experts, space, tasks, weights)


def _check_models(folders: Sequence[pathlib.Path], expected: Any) -> None:
  """Refuses models that are not of the base's configuration."""
  from evojax_llm.gemma import hub

  for folder in folders:
    found, _ = hub.load_config(folder)
    for field in dataclasses.fields(expected):
      theirs = getattr(found, field.name)
      own = getattr(expected, field.name)
      if theirs != own:
        raise CommandError(
          f'{folder}/config.json: {field.name} is {theirs}, and {own} in the '
          'base; expected a model that was tuned from it.'
        )


def _of_models(folders: Sequence[pathlib.Path], params: Any, dtype: Any) -> Any:
  """The space of whole models."""
  from evojax_llm.gemma import hub
  from evojax_llm.gemma import peft
  from evojax_llm.genomes.weights import WeightSpace

  experts = [
    hub.load_checkpoint(folder, dtype, place=lambda leaf: leaf)[1]
    for folder in folders
  ]
  return WeightSpace(peft.expert_names(folders), experts, params)


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
  from evojax_llm.genomes.coefficients import CoefficientSpace
  from evojax_llm.genomes.weights import WeightSpace

  if config.space == 'weights':
    space = WeightSpace.of_adapters(adapters, params)
    return space, space
  experts = AdapterSpace(adapters)
  if config.space == 'adapters':
    return experts, experts
  return experts, CoefficientSpace(adapters)


def make_strategy(config: Any, problem: Problem) -> Any:
  """The strategy of a configuration, made for genomes of its space.

  Raises:
    CommandError: its name or one of its options is unknown or out of range.
  """
  import jax

  from evojax_llm.strategies import coefficient_search
  from evojax_llm.strategies import registry
  from evojax_llm.strategies.stock import Stock

  name, size = config.strategy.name, config.strategy.population
  options = dict(config.strategy.options)
  searches = {
    'random_search': coefficient_search.random_search,
    'cma_es': coefficient_search.cma_es,
  }
  with asked_for(TypeError, ValueError, what='config.strategy'):
    if name in searches:
      if config.space != 'coefficients':
        raise CommandError(
          f'{name} searches coefficients: set config.space=coefficients.'
        )
      num_experts = len(problem.space.names)
      strategy = searches[name](size, num_experts, **options)
    else:
      genome = jax.eval_shape(
        lambda: jax.tree.map(lambda leaf: leaf[0], problem.space.experts())
      )
      strategy = registry.make_strategy(name, size, genome, **options)
  if config.resample and isinstance(strategy, Stock):
    raise CommandError(
      f"{name} is one of evosax's algorithms, which keep scores of their own "
      'that cannot be made anew on other items: leave config.resample off.'
    )
  return strategy


def make_evaluator(config: Any, problem: Problem) -> Any:
  """The fitness engine of a configuration."""
  import jax.numpy as jnp

  from evojax_llm.fitness.evaluation import Evaluator

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


def make_racing(config: Any) -> Any:
  """The rules of a race, or None where everybody is scored on everything.

  Raises:
    CommandError: a value that cannot be.
  """
  from evojax_llm.fitness.racing import Racing

  options = config.racing.to_dict()
  if not options['rule']:
    return None
  with asked_for(ValueError, what='config.racing'):
    return Racing(**options)


@contextlib.contextmanager
def asked_for(*kinds: type[Exception], what: str = ''):
  """Turns errors about what the user asked for into ones without traceback."""
  try:
    yield
  except kinds as error:
    if isinstance(error, CommandError):
      raise
    raise CommandError(f'{what}: {error}' if what else str(error)) from error


def _weights(
  values: Sequence[float], tasks: Sequence[Any]
) -> tuple[float, ...]:
  weights = [float(v) for v in values] or [1.0] * len(tasks)
  if (
    len(weights) != len(tasks)
    or not all(math.isfinite(w) and w >= 0 for w in weights)
    or not sum(weights) > 0
  ):
    raise CommandError(
      f'Got config.weights={tuple(values)} for the tasks '
      f'{", ".join(t.name for t in tasks)}; expected a weight of at least 0 '
      'for each, not all of them 0.'
    )
  return tuple(w / sum(weights) for w in weights)
