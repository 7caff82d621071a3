"""What is made of a configuration before a run: read, checked, and planned."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.genomes import initial
from evojax_llm.population import lineage
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import front
from evojax_llm.runs import host_memory
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import memory
from evojax_llm.runs import record
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs import refinement as refinement_lib
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.run_config import RunConfig

# What neither the baselines nor the data in memory depend on.
_OF_SEARCH = ('name', 'seed', 'seeds', 'initial', 'strategy', 'ensemble')
_OF_SEARCH += ('racing', 'resample', 'warm_start', 'test_experts')
_OF_SEARCH += ('merged', 'layer_path', 'seeded', 'pareto', 'require_signal')
_OF_SEARCH += ('checkpoint_every', 'estimate', 'stages', 'begin', 'refine')


class WarmStart(NamedTuple):
  """Members of an earlier run, the best of its last state first."""

  members: run_state.Members
  fingerprint: str  # of that run

  def before(self, made: initial.Initial) -> initial.Initial:
    """Puts these members in front of P others, of which as many go."""
    size = stack.size(made.population)
    count = min(len(self.members.ids), size)
    warm = stack.take(self.members.population, np.arange(count))
    if count < size:
      rest = stack.take(made.population, np.arange(size - count))
      warm = stack.concatenate(warm, rest)
    no_parents = np.full((count, 2), lineage.NO_MEMBER, np.int32)
    parents = made.parents[: size - count]
    # Parents within the initial population are numbered behind the experts, and
    # all of them have moved on.
    experts = len(made.rows[0].first)
    parents = np.where(parents >= experts, parents + count, parents)
    return initial.Initial(
      population=warm,
      operators=('warm_start',) * count + made.operators[: size - count],
      parents=np.concatenate([no_parents, parents]),
      rows=made.rows,
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a run works with."""

  config: RunConfig
  files: inputs_lib.Files
  cache: dict[Any, Any]  # see `prepare`
  setup: setup_lib.Setup
  inputs: dict[str, Any]  # fingerprints of what is read
  evaluator: Any
  strategy: Any
  params: Any  # of the strategy
  racing: Any  # rules of a race, or None
  estimate: Any  # `setup.Estimates`, or None
  warm: WarmStart | None
  goals: front.Goals
  # The device of the host that holds genomes; None where the engine's do.
  host: jax.Device | None = None
  abstract: Any = None  # shapes and types of the run's state
  refinement: Any = None  # of members before they are scored, or None

  @property
  def name(self) -> str:
    """Name of the run folder where none is given."""
    return f'{self.files.name}_{self.config.name or self.config.strategy.name}'

  @property
  def mesh(self) -> jax.sharding.Mesh | None:
    """Devices that genomes are cut over; None where each is whole."""
    runtime, choice = self.evaluator.runtime, self.config.execution.population
    where = runtime.platform, runtime.mesh.size
    whole = self.host is not None or self.config.refine.loss
    cut = not whole and host_memory.is_cut(choice, *where, self.setup.space)
    return runtime.mesh if cut else None

  def where(self, tree: Any, members: int) -> Any:
    """Returns shardings of a tree of (P, ...); None for the default device."""
    if self.mesh is not None:
      return sharding.cut(self.mesh, tree, members)
    if self.host is None:
      return None
    there = jax.sharding.SingleDeviceSharding(self.host)
    return jax.tree.map(lambda _: there, tree)

  def initial(self) -> Any:
    """Makes the initial population."""
    with self.at_home():
      with errors.as_user_error(ValueError, what='config.initial'):
        made = self.setup.space.initial(
          inputs_lib.recipe(self.config),
          self.config.strategy.population,
          jax.random.key(self.config.seed),
        )
      made = made if self.warm is None else self.warm.before(made)
    where = self.where(made.population, self.config.strategy.population)
    if where is not None:
      # What is computed from it is there too.
      placed = jax.tree.map(sharding.place, made.population, where)
    elif self.refinement is not None:
      placed = self.refinement.placed(made.population)
    else:
      return made
    return dataclasses.replace(made, population=placed)

  def at_home(self) -> Any:
    """Returns a context in which new arrays are where the genomes are."""
    if self.host is None:
      return contextlib.nullcontext()
    return jax.default_device(self.host)

  def heldout(self) -> Any:
    """Returns the evaluator of the held-out tasks, or None without any."""
    told = inputs_lib.space_options(self.config)
    return _kept(
      self.cache,
      ('heldout', data_key(self.config), told, self.files),
      lambda: setup_lib.make_heldout(self.config, self.setup),
    )


def prepare(
  config: Any,
  files: inputs_lib.Files | None = None,
  cache: dict[Any, Any] | None = None,
  warm: str | os.PathLike = '',
) -> Prepared:
  """Reads what one search works with and plans the memory; compiles nothing.

  Args:
    config: a `RunConfig`, or what `RunConfig.from_config` takes.
    files: of `inputs.locate`, which is called without them.
    cache: of several runs in one process. What earlier calls made, compiled
      programs included, is used again where the settings that it is made from
      are the same, but for the draw of dev items and array hyperparameters.
    warm: in place of config.warm_start, of a stage.

  Raises:
    UserError, TaskError, ModelError, MemoryPlanError: it cannot be done.
  """
  config = RunConfig.from_config(config)
  if config.stages:
    raise errors.UserError(
      f'Got {len(config.stages)} config.stages; expected one search. '
      'runs.launch.prepare takes them.'
    )
  files = files or inputs_lib.locate(config)
  cache = {} if cache is None else cache
  told = inputs_lib.space_options(config)
  key = data_key(config, 'dev_draw'), told, files
  setup, inputs = _kept(
    cache, ('setup', key), lambda: _read(config, files, cache)
  )
  with errors.as_user_error(ValueError, what='config.ensemble.rule'):
    ensembles.check_rule(config.ensemble.rule)
  setup_lib.fine_tuning(config)  # refuses what cannot be
  if warm := warm or config.warm_start:
    warm = _warm_start(warm, config, setup, inputs)
    inputs = {**inputs, 'warm_start': warm.fingerprint}
  strategy = setup_lib.make_strategy(config, setup)
  refinement_lib.check_strategy(config, strategy)
  goals = front.goals(config, setup, strategy)
  params = strategy.default_params
  strategy = _kept(
    cache, ('strategy', key, _static(config, params)), lambda: strategy
  )
  evaluator = _kept(
    cache,
    ('evaluator', key, config.strategy.population),
    lambda: setup_lib.make_evaluator(config, setup),
  )
  planned = evaluator.plan is not None
  if evaluator.draw != config.dev_draw:
    evaluator = evaluator.redraw(config.dev_draw)
  racing = setup_lib.make_racing(config, setup)
  refinement = _kept(
    cache,
    ('refinement', config.dev_draw, config.refine, key, strategy.capacity),
    lambda: refinement_lib.make(config, setup, evaluator),
  )
  if config.refine.data:
    data = os.path.expanduser(config.refine.data)
    inputs = {**inputs, 'refine': recorded_inputs.fingerprint(data)}
  estimate = setup_lib.make_estimates(config, setup, evaluator)
  counts = [len(items) for items in evaluator.items('dev')]
  if estimate:
    counts = map(estimate.rules.count, counts)
    if path := config.estimate.parameters:
      path = os.path.expanduser(path)
      inputs = {**inputs, 'estimate': recorded_inputs.fingerprint(path)}
  read = config, files, cache, setup, inputs
  found = estimate, warm or None, goals
  prepared = Prepared(*read, evaluator, strategy, params, racing, *found)
  sizes = len(goals.names), sum(counts)
  likely = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      (config.strategy.population, *leaf.shape[1:]), leaf.dtype
    ),
    jax.eval_shape(setup.space.experts),
  )
  abstract = run_state.abstract_state(strategy, params, likely, *sizes)
  prepared = dataclasses.replace(prepared, abstract=abstract)
  host, plan = _kept(
    cache,
    ('plan', key, config.strategy.population),
    lambda: memory.place(prepared),
  )
  prepared = dataclasses.replace(prepared, host=host)
  if prepared.mesh is not None:
    strategy = _kept(
      cache,
      ('cut', key, _static(config, params)),
      lambda: strategy.cut_over(prepared.mesh),
    )
    prepared = dataclasses.replace(prepared, strategy=strategy)
  memory.check_population(prepared)
  made = prepared.initial().population
  if _kinds(made) != _kinds(likely):
    abstract = run_state.abstract_state(strategy, params, made, *sizes)
  where = prepared.where(abstract, strategy.capacity)
  if where is not None:
    abstract = sharding.abstract(abstract, where)
  prepared = dataclasses.replace(
    prepared, abstract=abstract, refinement=refinement
  )
  if not planned:
    errors.say(plan.describe())
  if refinement is not None:
    asked = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        (strategy.num_proposals, *leaf.shape[1:]), leaf.dtype
      ),
      abstract.strategy.population,
    )
    errors.say(refinement.prepare(asked, strategy.num_proposals))
  return prepared


def _kinds(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def _read(
  config: RunConfig, files: inputs_lib.Files, cache: dict[Any, Any]
) -> Any:
  of_model = repr(('tokenizer', files.model))
  setup = setup_lib.load(config, files, cache.get(of_model))
  cache[of_model] = setup.tokenizer
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


def data_key(config: RunConfig, *more: str) -> str:
  """Returns what a configuration says of experts, items and their scores.

  Fields in `more` are left out as well.
  """
  kept = {
    name: value
    for name, value in config.to_dict().items()
    if name not in (*_OF_SEARCH, *more)
  }
  return json.dumps(kept, sort_keys=True)


def _static(config: RunConfig, params: Any) -> Any:
  """What a strategy's programs are made from: all but its hyperparameters."""
  arrays = {field.name for field in dataclasses.fields(params)}
  options = config.strategy.options
  static = sorted((k, v) for k, v in options.items() if k not in arrays)
  return config.strategy.name, config.strategy.population, static


def _warm_start(
  folder: str | os.PathLike,
  config: RunConfig,
  setup: setup_lib.Setup,
  inputs: Mapping[str, Any],
) -> WarmStart:
  """Reads the members of the run in a folder.

  Tasks, strategy and the size of the population may differ from that run's;
  genomes of another base, other experts or another space mean something else.

  Raises:
    UserError: there is no finished run, or one with which this cannot begin.
  """
  folder, flag = pathlib.Path(folder), f'config.warm_start={folder}'
  parts = folder / 'summary.json', folder / 'checkpoints'
  if not (parts[0].is_file() and parts[1].is_dir()):
    raise errors.UserError(
      f'{flag} is not the folder of a finished run, with summary.json and '
      'checkpoints. Finish that run first; of several seeds or stages, name '
      'the folder of one.'
    )
  known = record.read_config(folder)
  earlier = RunConfig.from_config(known['config'])
  of_run = {'model': '', 'adapters': [], 'experts': []} | known['inputs']
  _, state = checkpoint.Checkpoints(parts[1]).read()
  for what, there, here in (
    ('genomes', earlier.space, config.space),
    ('recipes', *map(inputs_lib.space_options, (earlier, config))),
    ('models', of_run['model'], inputs['model']),
    ('experts', of_run['adapters'], inputs['adapters']),
    ('experts', of_run['experts'], inputs['experts']),
  ):
    if there != here:
      raise errors.UserError(
        f'{flag} was over other {what}: {there} there, {here} here. Its '
        'members mean something else here; give the same model, adapters and '
        'space.'
      )
  # That of a front is the one that its rule chose.
  chosen = (record.read_json(parts[0]).get('pareto') or {}).get('chosen')
  members = run_state.best_members(
    state, config.strategy.population, chosen=chosen
  )
  wanted = jax.eval_shape(setup.space.experts)
  shapes = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], members.population)
  if shapes != jax.tree.map(lambda leaf: leaf.shape[1:], wanted):
    raise errors.UserError(
      f'{flag} has members of other shapes than {config.space} have here.'
    )
  return WarmStart(members, recorded_inputs.fingerprint(parts[0]))
