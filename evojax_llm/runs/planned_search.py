"""A search as shapes: its space, strategy, state and plan."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine import groups
from evojax_llm.engine import plan as planning
from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.models.expression import Weights
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import host_memory
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import memory
from evojax_llm.runs import planned_space
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import registry
from evojax_llm.tasks import task_files as tasks_lib
from evojax_llm.tasks.scorers.registry import scorer_of

# Of a sequence where config.execution.max_length does not say.
TOKENS = 512
# Dev items in all; what they take is next to nothing.
ITEMS = 256


@dataclasses.dataclass(frozen=True)
class Machine:
  """What a dry run is for.

  Attributes:
    devices: that members are spread over.
    platform: of them, 'cpu', 'gpu' or 'tpu'; None for that of jax here.
    rank: of adapters that are not there.
    host_bytes: memory of the host; None to leave what it holds unchecked.
  """

  devices: int = 1
  platform: str | None = None
  rank: int = 8
  host_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Arranged:
  """A search as shapes, and its plan."""

  space: planned_space.PlannedSpace
  strategy: Any
  params: Any
  state: Any
  proposed: Any
  lengths: list[tuple[int, int]]
  plan: planning.Plan
  cut_over: int  # devices that genomes are cut over

  @property
  def genomes(self) -> int:
    """Bytes of all genomes, those of an ask among them."""
    return groups.num_bytes(self.state) + groups.num_bytes(self.proposed)

  def bytes_of(self, tree: Any) -> int:
    """Returns what one device has of a tree of the search's state."""
    members = stack.size(self.state.strategy.population)
    return _held(tree, members, self.cut_over)


def _held(tree: Any, members: int, devices: int) -> int:
  """Returns bytes on a device of genomes cut over so many."""
  mesh = sharding.abstract_mesh(devices)
  where = sharding.cut(mesh, tree, members)
  return sharding.bytes_per_device(sharding.abstract(tree, where))


def arrange(config: RunConfig, machine: Machine) -> Arranged:
  """Plans genomes on the devices or on the host, as `memory.place` does."""
  choice = config.execution.population
  if choice != 'auto':
    return _arrange(config, machine, choice == 'host')
  try:
    return _arrange(config, machine, False)
  except MemoryPlanError:
    return _arrange(config, machine, True)


def _arrange(config: RunConfig, machine: Machine, on_host: bool) -> Arranged:
  space = planned_space.planned_space(config, machine.rank)
  search, execution = config.strategy, config.execution
  tasks = tasks_lib.load_tasks(
    inputs_lib.task_files(inputs_lib.names(config.tasks)),
    inputs_lib.rules(config),
  )
  with errors.as_user_error(TypeError, ValueError, what='config.strategy'):
    strategy = registry.make_strategy(
      search.name,
      search.population,
      space,
      genome=space.genome,
      **search.options,
    )
  params = strategy.default_params
  population = many(space.genome, search.population)
  state = run_state.abstract_state(
    strategy, params, population, len(tasks), ITEMS
  )
  proposed = memory.proposed_by(strategy, state.strategy, params)
  lengths = _lengths(config, space, tasks)
  platform = machine.platform or jax.default_backend()
  device = jax.devices()[0]
  if machine.platform not in (None, device.platform):
    device = types.SimpleNamespace(platform=platform)
  budget = setup_lib.memory_budget(config) or planning.device_budget(device)
  shards, base_bytes = _base(config, machine, space, budget)
  member = groups.num_bytes(space.member)
  whole = isinstance(space.member, Weights)
  if on_host and not whole:
    member += groups.num_bytes(space.genome)
  members = min(search.population, stack.size(proposed))
  is_cut = not on_host and host_memory.is_cut(
    execution.population, platform, machine.devices, space
  )
  cut_over = machine.devices if is_cut else 1
  genomes = _held(state, strategy.capacity, cut_over)
  genomes += _held(proposed, stack.size(proposed), cut_over)
  plan = planning.make_plan(
    space.config,
    members=-(-members // shards),
    base_bytes=base_bytes,
    member_bytes=member,
    population_bytes=genomes,
    on_host=on_host,
    lengths=lengths,
    dtype=jnp.dtype(execution.dtype),
    device=device,
    form='folded' if whole else execution.form,
    members_per_group=execution.members_per_group,
    prompts_per_batch=execution.prompts_per_batch,
    budget=budget,
  )
  search = space, strategy, params, state, proposed
  return Arranged(*search, lengths, plan, cut_over)


def _base(
  config: RunConfig, machine: Machine, space: Any, budget: int
) -> tuple[int, int]:
  """Returns parts that members are spread in, and bytes of the base in each.

  The base is cut over as few devices as a run would take.
  """
  devices, model = machine.devices, space.config
  count = config.execution.model_devices
  if count is None:
    count = setup_lib.fewest_devices(devices, space.params, model, budget)
  elif devices % count:
    raise errors.UserError(
      f'Got config.execution.model_devices={count} of --devices={devices}; '
      'expected a number that divides them.'
    )
  given = devices, count, space.params, model.key_heads
  return devices // count, sharding.model_bytes(*given)


def _lengths(config: RunConfig, space: Any, tasks: Any) -> list:
  """Returns (tokens, new tokens) of the longest rows of each kind."""
  context = space.config.max_position_embeddings
  most = config.execution.max_length or min(TOKENS, context)
  # Of those that generate, the one that keeps the most.
  new = [
    min(task.format.max_new_tokens, max(1, most // 2))
    for task in tasks
    if scorer_of(task).reads != 'options'
  ]
  new = max(new, default=0)
  return [(most, 0)] + [(most - new, new)] * bool(new)


def many(tree: Any, count: int) -> Any:
  """Returns shapes of so many members, of the shapes of one."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree
  )
