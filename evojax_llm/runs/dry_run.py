"""What a run would take of the memory of each device, without its weights.

Shapes come from config.json and adapter_config.json, or from a published
model's name; the plan is that of a run; and the programs of the engine and of
the strategy are compiled for these shapes, so that the compiler says what they
take. Nothing of the size of a model is made.
"""

from collections.abc import Iterator
import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine import forms
from evojax_llm.engine import groups
from evojax_llm.engine import plan as planning
from evojax_llm.engine import program_memory
from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.models.expression import Weights
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import memory
from evojax_llm.runs import planned_space
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs import stages
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import base
from evojax_llm.strategies import lowered
from evojax_llm.strategies import registry
from evojax_llm.tasks import task_files as tasks_lib
from evojax_llm.tasks.scorers.registry import scorer_of

_MIB = 1 << 20
# Of a sequence where config.execution.max_length does not say.
_TOKENS = 512
# Programs of separate layers are compiled for so many, and grow by a layer.
_DEPTHS = 2, 3
_ITEMS = 256


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
class _Arranged:
  """A search as shapes, and its plan."""

  space: planned_space.PlannedSpace
  strategy: Any
  params: Any
  state: Any
  proposed: Any
  lengths: list[tuple[int, int]]
  plan: planning.Plan

  @property
  def genomes(self) -> int:
    return groups.num_bytes(self.state) + groups.num_bytes(self.proposed)


def dry_run(config: Any, machine: Machine) -> tuple[str, bool]:
  """Returns the memory of a search as text, and whether it fits.

  Raises:
    UserError, ModelError, TaskError: what is asked for cannot be.
  """
  config = stages.split(RunConfig.from_config(config))[0].config
  if config.execution.memory_budget_gib is None and (
    machine.platform not in (None, jax.default_backend())
  ):
    raise errors.UserError(
      f'Got --platform={machine.platform}, and jax finds '
      f'{jax.default_backend()} here: say how much memory a device has with '
      '--config.execution.memory_budget_gib.'
    )
  try:
    arranged = arrange(config, machine)
  except MemoryPlanError as error:
    lines = [f'not possible: {error}', *_changes(config, machine)]
    return '\n'.join(lines), False
  rows = _rows(arranged, machine)
  total, budget = sum(rows.values()), arranged.plan.budget
  lines = [arranged.plan.describe(), _what(config, arranged, machine), '']
  width = max(map(len, rows))
  for name, size in (rows | {'in all': total, 'budget': budget}).items():
    lines.append(f'{name:{width}}  {size / _MIB:12,.1f} MiB')
  if arranged.plan.on_host:
    held = arranged.genomes
    lines.append(f'{"host: genomes":{width}}  {held / _MIB:12,.1f} MiB')
    if machine.host_bytes is not None and 2 * held > machine.host_bytes:
      lines.append(
        f'not possible: genomes take {2 * held / _MIB:,.0f} MiB of the host '
        f'while a checkpoint is written; it has '
        f'{machine.host_bytes / _MIB:,.0f} MiB.'
      )
      return '\n'.join([*lines, *_changes(config, machine)]), False
  if total > budget:
    lines.append(
      f'not possible: {(total - budget) / _MIB:,.0f} MiB are missing.'
    )
    return '\n'.join([*lines, *_changes(config, machine)]), False
  lines.append(f'possible: {(budget - total) / _MIB:,.0f} MiB are left.')
  return '\n'.join(lines), True


def arrange(config: RunConfig, machine: Machine) -> _Arranged:
  """Plans genomes on the devices or on the host, as `memory.place` does."""
  choice = config.execution.population
  if choice != 'auto':
    return _arrange(config, machine, choice == 'host')
  try:
    return _arrange(config, machine, False)
  except MemoryPlanError:
    return _arrange(config, machine, True)


def _arrange(config: RunConfig, machine: Machine, on_host: bool) -> _Arranged:
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
  population = _many(space.genome, search.population)
  state = run_state.abstract_state(
    strategy, params, population, len(tasks), _ITEMS
  )
  proposed = memory.proposed_by(strategy, state.strategy, params)
  lengths = _lengths(config, space, tasks)
  platform = machine.platform or jax.default_backend()
  device = jax.devices()[0]
  if machine.platform not in (None, device.platform):
    device = types.SimpleNamespace(platform=platform)
  member = groups.num_bytes(space.member)
  whole = isinstance(space.member, Weights)
  if on_host and not whole:
    member += groups.num_bytes(space.genome)
  members = min(search.population, stack.size(proposed))
  genomes = groups.num_bytes(state) + groups.num_bytes(proposed)
  plan = planning.make_plan(
    space.config,
    members=-(-members // machine.devices),
    base_bytes=groups.num_bytes(space.params),
    member_bytes=member,
    population_bytes=-(-genomes // machine.devices),
    on_host=on_host,
    lengths=lengths,
    dtype=jnp.dtype(execution.dtype),
    device=device,
    form='folded' if whole else execution.form,
    members_per_group=execution.members_per_group,
    prompts_per_batch=execution.prompts_per_batch,
    budget=setup_lib.memory_budget(config),
  )
  return _Arranged(space, strategy, params, state, proposed, lengths, plan)


def _lengths(config: RunConfig, space: Any, tasks: Any) -> list:
  """Returns (tokens, new tokens) of the longest rows of each kind."""
  context = space.config.max_position_embeddings
  most = config.execution.max_length or min(_TOKENS, context)
  # Of those that generate, the one that keeps the most.
  new = [
    min(task.format.max_new_tokens, max(1, most // 2))
    for task in tasks
    if scorer_of(task).reads != 'options'
  ]
  new = max(new, default=0)
  return [(most, 0)] + [(most - new, new)] * bool(new)


def _rows(arranged: _Arranged, machine: Machine) -> dict[str, int]:
  """Returns bytes on each device, by what they hold."""
  state, plan, devices = arranged.state.strategy, arranged.plan, machine.devices
  population = groups.num_bytes(state.population)
  remembered = groups.num_bytes(state.memory)
  rest = arranged.genomes - population - remembered
  size = groups.num_bytes(arranged.space.genome)
  held = {
    f'population, {stack.size(state.population)} members of '
    f'{size / _MIB:,.2f} MiB': population,
    'memory: best, worst and personal best particles': remembered,
    'proposed members, velocities and the like': rest,
  }
  held = {k: -(-v // devices) * (not plan.on_host) for k, v in held.items()}
  found = _measured(arranged)
  work = dict(found['work'])
  if not plan.on_host:
    for name, size in _operators(arranged).items():
      work[name] = -(-size // devices)
  largest = max(work, key=work.get)
  copied = groups.num_bytes(arranged.space.genome) * plan.members_per_group
  if not plan.on_host or isinstance(arranged.space.member, Weights):
    copied = 0
  group = plan.members_per_group * groups.num_bytes(arranged.space.member)
  return {
    f'base{" in int8" * _is_int8(arranged.space.params)}': plan.base,
    **held,
    f'a group of {plan.members_per_group} expressed members': group + copied,
    'KV cache': found['cache'],
    'layers apart': found['apart'],
    f'workspace of the largest program, {largest}': work[largest],
  }


def _is_int8(params: Any) -> bool:
  return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def _measured(arranged: _Arranged) -> dict[str, Any]:
  """Returns what the engine's programs take: work, cache, layers apart."""
  config, plan = arranged.space.config, arranged.plan
  if plan.walk == 'scan' or config.stacks:
    return _at_depth(arranged, config.num_layers)
  # Programs of separate layers grow with them; scanned ones do not.
  few, more = (_at_depth(arranged, depth) for depth in _DEPTHS)
  steps = config.num_layers - _DEPTHS[0]

  def extended(low: int, high: int) -> int:
    return low + steps * (high - low) // (_DEPTHS[1] - _DEPTHS[0])

  return jax.tree.map(extended, few, more)


def _at_depth(arranged: _Arranged, depth: int) -> dict[str, Any]:
  """Compiles the engine's programs for the first `depth` layers."""
  space, plan = arranged.space, arranged.plan
  config = dataclasses.replace(
    space.config, num_layers=depth, layer_types=space.config.layer_types[:depth]
  )
  here = jax.default_backend() == plan.device
  whole = space.config.num_layers

  def cut(path, leaf):
    layered = any(getattr(key, 'key', None) == 'layers' for key in path)
    stacked = layered and not config.stacks
    shape = (depth, *leaf.shape[1:]) if stacked else leaf.shape
    assert not stacked or leaf.shape[0] == whole
    # A CPU's compiler keeps copies of what is bfloat16 in f32, which others
    # have no need of; in f32 it says an upper bound of theirs.
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    dtype = leaf.dtype if here or not floating else jnp.float32
    return jax.ShapeDtypeStruct(shape, dtype)

  params, member = jax.tree.map_with_path(cut, (space.params, space.member))
  dtype = jnp.dtype(plan.dtype) if here else jnp.dtype(jnp.float32)
  members = jax.eval_shape(
    lambda group: forms.lay_out(plan.form, group),
    _many(member, plan.members_per_group),
  )
  runtime = program_memory.MeasuringRuntime(dtype, plan.device)
  model = Transformer(config, dtype)
  given = runtime, model, params, members, plan
  cache = apart = 0
  for length, new in arranged.lengths:
    if not new:
      program_memory.read(*given, length)
      continue
    slots, beside = program_memory.make(*given, length, new)
    cache, apart = max(cache, slots), max(apart, beside)
  work: dict[str, int] = {}
  for program in runtime.sizes:
    if program.name in ('likelihood', 'advance', 'fold', 'layers'):
      work[program.name] = max(work.get(program.name, 0), program.workspace)
  share = depth / whole
  return {
    'work': work,
    # Its bytes are those of the plan's type.
    'cache': int(cache * share),
    'apart': apart if here else int(apart * jnp.dtype(plan.dtype).itemsize / 4),
  }


def _operators(arranged: _Arranged) -> dict[str, int]:
  """Returns the workspace of the strategy's programs."""
  state, proposed = arranged.state.strategy, arranged.proposed
  count = stack.size(proposed)

  def f32(*shape):
    return jax.ShapeDtypeStruct((count, *shape), jnp.float32)

  scores = base.Scores(f32(), f32(1), f32(_ITEMS))
  if state.tasks is not None:
    scores = scores.replace(tasks=f32(state.tasks.shape[1]))
  given = arranged.strategy, state, proposed, scores, arranged.params
  sizes = {}
  known = {'ask': groups.num_bytes(proposed), 'tell': 0}
  for name, program in lowered.lowered(*given).items():
    found = program.compile().memory_analysis()
    more = found.output_size_in_bytes - found.alias_size_in_bytes
    sizes[name] = found.temp_size_in_bytes + max(0, more - known[name])
  return sizes


def _many(tree: Any, count: int) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree
  )


def _what(config: RunConfig, arranged: _Arranged, machine: Machine) -> str:
  """What was compiled, and by what."""
  rows = ', '.join(
    f'{length} + {new} tokens' if new else f'{length} tokens'
    for length, new in arranged.lengths
  )
  here, plan = jax.default_backend(), arranged.plan
  by = f'compiled for {here}'
  if here != plan.device:
    by += f', in float32, an upper bound of {plan.device} in {plan.dtype}'
  return (
    f'bytes on each of {machine.devices} {plan.device} device'
    f'{"s" * (machine.devices > 1)}, rows of {rows}, {by}:'
  )


def _changes(config: RunConfig, machine: Machine) -> Iterator[str]:
  """Yields changes that a plan would fit with, one of each kind."""
  found = False
  for kind in _candidates(config, machine):
    for text, other, where in kind:
      try:
        arrange(other, where)
      except (MemoryPlanError, errors.UserError):
        continue
      found = True
      yield f'  it fits by plan with {text}'
      break
  if not found:
    yield '  no single change makes it fit: take a smaller model'


def _candidates(config: RunConfig, machine: Machine) -> Iterator[Any]:
  """Yields kinds of changes, least first: (what to say, config, machine)."""
  own, size = config.execution, config.strategy.population

  def execution(**changes):
    text = ' '.join(f'--config.execution.{k}={v}' for k, v in changes.items())
    changed = dataclasses.replace(own, **changes)
    return text, dataclasses.replace(config, execution=changed), machine

  def population(size):
    search = dataclasses.replace(config.strategy, population=size)
    changed = dataclasses.replace(config, strategy=search)
    return f'--config.strategy.population={size}', changed, machine

  def devices(count):
    more = dataclasses.replace(machine, devices=count)
    return f'--devices={count}', config, more

  if own.population == 'device':
    yield [execution(population='host')]
  if own.dtype == 'float32':
    yield [execution(dtype='bfloat16')]
  if config.space in ('adapters', 'gates') and own.base_dtype is None:
    yield [execution(base_dtype='int8')]
  if (own.members_per_group or 2) > 1:
    yield [execution(members_per_group=1)]
  yield [execution(max_length=max(1, (own.max_length or _TOKENS) // 2))]
  halves = [size >> i for i in range(1, size.bit_length())]
  yield map(population, halves)
  yield map(devices, (n * machine.devices for n in (2, 4, 8)))
