"""What is made of a configuration before a run: read, checked, and planned."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import jax

from evojax_llm.engine import groups
from evojax_llm.engine import packed_split
from evojax_llm.fitness import ensembles
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import record
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs import warm_start as warm_start_lib
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks import prompts


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a run works with.

  Attributes:
    config, cache: see `prepare`.
    files: where its inputs are.
    setup: what is evolved, and on what.
    evaluator: scores members on its tasks.
    strategy, params: propose them.
    racing: rules of a race, or None.
    abstract: shapes and types of a run's state.
    warm: members of an earlier run to begin with, or None.
    inputs: fingerprints of what is read.
  """

  config: RunConfig
  files: inputs_lib.Files
  setup: setup_lib.Setup
  evaluator: Any
  strategy: Any
  params: Any
  racing: Any
  abstract: run_state.RunState | None
  warm: warm_start_lib.WarmStart | None
  inputs: dict[str, Any]
  cache: dict[Any, Any]

  @property
  def name(self) -> str:
    """Name of the run folder where none is given."""
    return f'{self.files.name}_{self.config.name or self.config.strategy.name}'

  def initial(self) -> Any:
    """Makes the initial population."""
    with errors.as_user_error(ValueError, what='config.initial'):
      made = self.setup.space.initial(
        inputs_lib.recipe(self.config),
        self.config.strategy.population,
        jax.random.key(self.config.seed),
      )
    return made if self.warm is None else self.warm.before(made)

  def heldout(self) -> Any:
    """Returns the evaluator of the held-out tasks, or None without any."""
    config, key = self.config, _setup_key(self.config, self.files)
    return _kept(
      self.cache,
      ('heldout', key, _evaluator_key(config), config.dev_draw),
      lambda: setup_lib.make_heldout(config, self.setup),
    )

  def open_folder(self, workdir: str | os.PathLike) -> record.RunFolder:
    """Opens the folder of a run, new or to go on with; to be closed.

    Raises:
      UserError: it is in use, or of another run.
    """
    with errors.as_user_error(OSError, what=f'run folder {workdir}'):
      return record.RunFolder(
        workdir,
        self.config.to_dict(),
        self.inputs,
        recorded_inputs.paths(self.files),
      )


def prepare(
  config: Any,
  files: inputs_lib.Files | None = None,
  cache: dict[Any, Any] | None = None,
) -> Prepared:
  """Reads what a run works with and plans the memory; compiles nothing.

  Args:
    config: a `RunConfig`, or what `RunConfig.from_config` takes.
    files: of `inputs.locate`, which is called without them.
    cache: of several runs in one process. What earlier calls made, compiled
      programs included, is used again where the settings that it is made from
      are the same, but for the draw of dev items and array hyperparameters.

  Raises:
    UserError, TaskError, ModelError, MemoryPlanError: it cannot be done.
  """
  config = RunConfig.from_config(config)
  files = files or inputs_lib.locate(config)
  cache = {} if cache is None else cache
  key = _setup_key(config, files)
  setup, inputs = _kept(cache, ('setup', key), lambda: _read(config, files))
  with errors.as_user_error(ValueError, what='config.ensemble.rule'):
    ensembles.check_rule(config.ensemble.rule)
  warm = None
  if config.warm_start:
    warm = warm_start_lib.load(config, setup, inputs)
    inputs = {**inputs, 'warm_start': warm.fingerprint}
  strategy = setup_lib.make_strategy(config, setup)
  params = strategy.default_params
  strategy = _kept(
    cache, ('strategy', key, _static(config, params)), lambda: strategy
  )
  evaluator = _kept(
    cache,
    ('evaluator', key, config.strategy.population, _evaluator_key(config)),
    lambda: setup_lib.make_evaluator(config, setup),
  )
  planned = evaluator.plan is not None
  if evaluator.draw != config.dev_draw:
    evaluator = evaluator.redraw(config.dev_draw)
  prepared = Prepared(
    config=config,
    files=files,
    setup=setup,
    evaluator=evaluator,
    strategy=strategy,
    params=params,
    racing=setup_lib.make_racing(config, setup),
    abstract=None,
    warm=warm,
    inputs=inputs,
    cache=cache,
  )
  evaluator.check_population(
    setup.space, max(strategy.capacity, strategy.num_proposals)
  )
  first = prepared.initial()
  abstract = run_state.abstract_state(
    strategy,
    params,
    first.population,
    len(setup.tasks),
    sum(len(items) for items in evaluator.items('dev')),
  )
  prepared = dataclasses.replace(prepared, abstract=abstract)
  if not planned:
    errors.say(_plan(prepared).describe())
  return prepared


def _read(config: RunConfig, files: inputs_lib.Files) -> Any:
  """What is evolved and on what, and fingerprints of what was read."""
  setup = setup_lib.load(config, files)
  inputs = recorded_inputs.of_folders(files)
  inputs['tasks'] = [task.fingerprint() for task in setup.tasks]
  if setup.heldout:
    inputs['heldout'] = [task.fingerprint() for task in setup.heldout]
  return setup, inputs


def _kept(cache: dict[Any, Any], key: Any, make: Callable[[], Any]) -> Any:
  key = repr(key)
  if key not in cache:
    cache[key] = make()
  return cache[key]


def _setup_key(config: RunConfig, files: inputs_lib.Files) -> Any:
  """What a `Setup` is made from."""
  names = (
    'space merged allow_overlap allow_code shots shots_seed system'.split()
  )
  return files, config.execution.dtype, [getattr(config, n) for n in names]


def _evaluator_key(config: RunConfig) -> Any:
  """What else an evaluator is made from, but for the draw of its items."""
  names = 'weights objective chat execution'.split()
  names += 'dev_limit dev_limits test_limit test_limits'.split()
  return [getattr(config, name) for name in names]


def _static(config: RunConfig, params: Any) -> Any:
  """What a strategy's programs are made from: all but its hyperparameters."""
  arrays = {field.name for field in dataclasses.fields(params)}
  options = config.strategy.options
  static = sorted((k, v) for k, v in options.items() if k not in arrays)
  return config.strategy.name, config.strategy.population, static


def _plan(prepared: Prepared) -> Any:
  """Plans the memory of a run, for the longest prompts that it will read.

  Raises:
    MemoryPlanError: it cannot fit.
    TaskError: an item cannot be put to the model.
  """
  evaluator, setup = prepared.evaluator, prepared.setup
  strategy, abstract = prepared.strategy, prepared.abstract
  proposed = jax.eval_shape(
    lambda state: strategy.ask(jax.random.key(0), state, prepared.params)[0],
    abstract.strategy,
  )
  plan = evaluator.prepare(
    setup.space,
    proposed,
    members=min(strategy.population_size, stack.size(proposed)),
    population_bytes=groups.num_bytes(abstract) + groups.num_bytes(proposed),
  )
  # An item that does not fit must show now and not when all is done.
  late: list[tuple[Any, Sequence[Any]]] = [
    (task, task.dev) for task in setup_lib.heldout_tasks(prepared.config, setup)
  ]
  if all(task.test for task in setup.tasks):
    late += zip(setup.tasks, evaluator.items('test'), strict=True)
  encoded = [
    prompts.encode_items(
      task,
      items,
      setup.tokenizer,
      chat=evaluator.chat,
      max_length=evaluator.max_length(setup.space),
    )
    for task, items in late
  ]
  for length, new_tokens in packed_split.longest_rows(encoded):
    plan.rows(length, new_tokens)
  return plan
