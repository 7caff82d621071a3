"""Plans the memory of a run: where its genomes are, and groups of members."""

import contextlib
import dataclasses
from typing import Any

import jax

from evojax_llm.engine import packed_split
from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import host_memory
from evojax_llm.runs import setup as setup_lib
from evojax_llm.tasks import prompts


def place(prepared: Any) -> tuple[jax.Device | None, Any]:
  """Chooses where genomes are (None: on the engine's devices), and the plan.

  Raises:
    MemoryPlanError: it fits nowhere.
  """

  def attempt(host):
    there = dataclasses.replace(prepared, host=host)
    check_population(there)
    return host, _plan(there)

  *others, last = host_memory.candidates(prepared.config.execution.population)
  for host in others:
    with contextlib.suppress(MemoryPlanError):
      return attempt(host)
  return attempt(last)


def check_population(prepared: Any) -> None:
  """Refuses a population that is too large; see `Evaluator`."""
  strategy, space = prepared.strategy, prepared.setup.space
  members = max(strategy.capacity, strategy.num_proposals)
  if strategy.shares_centre:  # Of an ask, the genome is there once.
    stack.check_size(members, MemoryPlanError)
    members = strategy.capacity
  if prepared.host is None:
    devices = 1 if prepared.mesh is None else prepared.mesh.size
    prepared.evaluator.check_population(space, members, devices)


def proposed_by(strategy: Any, state: Any, params: Any) -> Any:
  """Returns shapes of the members of an ask, of those of a search's state."""
  return jax.eval_shape(
    lambda state: strategy.ask(jax.random.key(0), state, params)[0], state
  )


def _plan(prepared: Any) -> Any:
  """Plans the memory of a run, for the longest prompts that it will read."""
  evaluator, setup = prepared.evaluator, prepared.setup
  strategy, abstract = prepared.strategy, prepared.abstract
  proposed = proposed_by(strategy, abstract.strategy, prepared.params)
  genomes = sum(
    sharding.bytes_per_device(
      tree if where is None else sharding.abstract(tree, where)
    )
    for tree, where in (
      (abstract, prepared.where(abstract, strategy.capacity)),
      (proposed, prepared.where(proposed, strategy.num_proposals)),
    )
  )
  if prepared.host is not None:
    host_memory.check(genomes, prepared.host)
  plan = evaluator.prepare(
    setup.space,
    proposed,
    members=min(strategy.population_size, stack.size(proposed)),
    population_bytes=genomes,
    on_host=prepared.host is not None,
  )
  # An item that does not fit must show now and not when all is done.
  heldout = setup_lib.heldout_tasks(prepared.config, setup)
  late: list[Any] = [(task, task.dev) for task in heldout]
  if prepared.config.pick_items:
    late += [(task, task.dev) for task in setup.tasks]
  if all(task.test for task in setup.tasks):
    late += zip(setup.tasks, evaluator.items('test'), strict=True)
  how = {
    'chat': evaluator.chat,
    'max_length': evaluator.max_length(setup.space),
  }
  encoded = [
    prompts.encode_items(task, items, setup.tokenizer, **how)
    for task, items in late
  ]
  for length, new_tokens in packed_split.longest_rows(encoded):
    plan.rows(length, new_tokens)
  return plan
