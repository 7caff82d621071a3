"""What a run would take of the memory of each device, without its weights.

Shapes come from config.json and adapter_config.json, or from a published
model's name; the plan is that of a run; and the programs of the engine and of
the strategy are compiled for these shapes, so that the compiler says what they
take. Nothing of the size of a model is made.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine import forms
from evojax_llm.engine import groups
from evojax_llm.engine import program_memory
from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.engine.plan import Plan
from evojax_llm.models.expression import Weights
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import stages
from evojax_llm.runs.planned_search import ITEMS
from evojax_llm.runs.planned_search import TOKENS
from evojax_llm.runs.planned_search import Arranged
from evojax_llm.runs.planned_search import Machine
from evojax_llm.runs.planned_search import arrange
from evojax_llm.runs.planned_search import many
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import base
from evojax_llm.strategies import lowered

_MIB = 1 << 20
# Plans of smaller budgets.
_TRIES = 3


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
    arranged, rows, told = _fitted(config, machine)
  except MemoryPlanError as error:
    lines = [f'not possible: {error}', *_changes(config, machine)]
    return '\n'.join(lines), False
  total, budget = sum(rows.values()), told['budget']
  lines = [arranged.plan.describe(), _what(arranged, machine), '']
  shown = rows | {'in all': total, 'budget': budget}
  held = arranged.genomes if arranged.plan.on_host else 0
  if held:
    shown['genomes on the host'] = held
  width = max(map(len, shown))
  for name, size in shown.items():
    lines.append(f'{name:{width}}  {size / _MIB:12,.1f} MiB')
  wrong = ''
  if total > budget:
    wrong = f'{(total - budget) / _MIB:,.0f} MiB are missing on each device'
  elif machine.host_bytes is not None and 2 * held > machine.host_bytes:
    wrong = (
      f'genomes take {2 * held / _MIB:,.0f} MiB of the host while a checkpoint '
      f'is written, and it has {machine.host_bytes / _MIB:,.0f} MiB'
    )
  if wrong:
    lines += [f'not possible: {wrong}', *_changes(config, machine)]
    return '\n'.join(lines), False
  how = f' with {told["how"]}' if told['how'] else ''
  lines.append(f'possible{how}: {(budget - total) / _MIB:,.0f} MiB are left')
  return '\n'.join(lines), True


def _fitted(
  config: RunConfig, machine: Machine
) -> tuple[Arranged, dict[str, int], dict[str, Any]]:
  """Returns a plan whose programs fit, if there is one, and what they take.

  Where the compiler takes more than the plan reckoned with, a run is to be told
  of a smaller budget.
  """
  arranged = first = arrange(config, machine)
  budget, how = first.plan.budget, ''
  rows = first_rows = _rows(arranged)
  for _ in range(_TRIES):
    missing = sum(rows.values()) - budget
    if missing <= 0:
      return arranged, rows, {'budget': budget, 'how': how}
    smaller = _smaller(config, machine, arranged.plan, missing)
    if smaller is None:
      break
    how, arranged = smaller
    rows = _rows(arranged)
  if sum(rows.values()) <= budget:
    return arranged, rows, {'budget': budget, 'how': how}
  return first, first_rows, {'budget': budget, 'how': ''}


def _smaller(
  config: RunConfig, machine: Machine, plan: Plan, missing: int
) -> tuple[str, Arranged] | None:
  """Returns the setting of a smaller budget and its plan, if there is one."""
  for share in (1, 2, 4, 8, 16):
    less = round((plan.budget - missing / share) / (1 << 30), 2)
    if less <= 0:
      continue
    execution = dataclasses.replace(config.execution, memory_budget_gib=less)
    told = dataclasses.replace(config, execution=execution)
    with contextlib.suppress(MemoryPlanError):
      how = f'--config.execution.memory_budget_gib={less}'
      return how, arrange(told, machine)
  return None


def _rows(arranged: Arranged) -> dict[str, int]:
  """Returns bytes on each device, by what they hold."""
  state, plan = arranged.state.strategy, arranged.plan
  population = arranged.bytes_of(state.population)
  remembered = arranged.bytes_of(state.memory)
  rest = plan.population - population - remembered
  size = groups.num_bytes(arranged.space.genome)
  held = {
    f'population, {stack.size(state.population)} members of '
    f'{size / _MIB:,.2f} MiB': population,
    'memory: best, worst and personal best particles': remembered,
    'proposed members, velocities and the like': rest,
  }
  held = {name: size * (not plan.on_host) for name, size in held.items()}
  found = _at_depth(arranged, arranged.space.config.num_layers)
  work = found['work'] | {'express': _expressing(arranged)}
  if not plan.on_host:
    for name, size in _operators(arranged).items():
      work[name] = -(-size // arranged.cut_over)
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


def _at_depth(arranged: Arranged, depth: int) -> dict[str, Any]:
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
    # Likewise of kernels in eight bits.
    known = here or leaf.dtype == jnp.int32
    dtype = leaf.dtype if known else jnp.float32
    return jax.ShapeDtypeStruct(shape, dtype)

  params, member = jax.tree.map_with_path(cut, (space.params, space.member))
  dtype = jnp.dtype(plan.dtype) if here else jnp.dtype(jnp.float32)
  members = jax.eval_shape(
    lambda group: forms.lay_out(plan.form, group),
    many(member, plan.members_per_group),
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
  return {
    'work': work,
    'cache': cache,  # of all layers, in the plan's type
    'apart': apart if here else int(apart * jnp.dtype(plan.dtype).itemsize / 4),
  }


def _operators(arranged: Arranged) -> dict[str, int]:
  """Returns the workspace of the strategy's programs."""
  state, proposed = arranged.state.strategy, arranged.proposed
  count = stack.size(proposed)

  def f32(*shape):
    return jax.ShapeDtypeStruct((count, *shape), jnp.float32)

  scores = base.Scores(f32(), f32(1), f32(ITEMS))
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


def _expressing(arranged: Arranged) -> int:
  """Returns the workspace of the program that expresses a group."""
  space, plan = arranged.space, arranged.plan
  group = jax.tree.map(
    lambda leaf, of_all: jax.ShapeDtypeStruct(
      (min(plan.members_per_group, of_all.shape[0]), *leaf.shape), leaf.dtype
    ),
    space.genome,
    arranged.proposed,
  )

  def run(group):
    return forms.lay_out(plan.form, stack.mapped(space.express, group))

  program = jax.jit(run).lower(group).compile()
  return program.memory_analysis().temp_size_in_bytes


def _what(arranged: Arranged, machine: Machine) -> str:
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
  yield [execution(max_length=max(1, (own.max_length or TOKENS) // 2))]
  halves = [size >> i for i in range(1, size.bit_length())]
  yield map(population, halves)
  yield map(devices, (n * machine.devices for n in (2, 4, 8)))
