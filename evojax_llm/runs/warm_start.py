"""Beginning a run with the members of one that is finished."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import initial
from evojax_llm.population import lineage
from evojax_llm.population import stack
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import record
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.errors import UserError

OPERATOR = 'warm_start'


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """Members of an earlier run.

  Attributes:
    members: the best that its last state holds, the best first.
    fingerprint: of the run that they are from.
  """

  members: run_state.Members
  fingerprint: str

  def before(self, made: initial.Initial) -> initial.Initial:
    """An initial population that begins with these members.

    Args:
      made: P members; the first of them fill up what these leave.
    """
    size = stack.size(made.population)
    count = min(len(self.members.ids), size)
    warm = stack.take(self.members.population, np.arange(count))
    if count < size:
      rest = stack.take(made.population, np.arange(size - count))
      warm = stack.concatenate(warm, rest)
    no_parents = np.full((count, 2), lineage.NO_MEMBER, np.int32)
    parents = made.parents[: size - count]
    # Parents of the initial population are numbered by their place behind the
    # experts, and all of them have moved on.
    experts = len(made.rows[0].first)
    parents = np.where(parents >= experts, parents + count, parents)
    return initial.Initial(
      population=warm,
      operators=(OPERATOR,) * count + made.operators[: size - count],
      parents=np.concatenate([no_parents, parents]),
      rows=made.rows,
    )


def load(
  config: Any, setup: setup_lib.Setup, inputs: Mapping[str, Any]
) -> WarmStart:
  """Reads the members of the run at config.warm_start.

  Genomes only mean the same over the same base, experts and space. Tasks,
  strategy and the size of the population may differ.

  Raises:
    UserError: there is no finished run, or one with which this cannot begin.
  """
  folder = pathlib.Path(config.warm_start)
  told = f'config.warm_start={config.warm_start}'
  if (
    not (folder / 'summary.json').is_file()
    or not (folder / 'checkpoints').is_dir()
  ):
    raise UserError(
      f'{told} is not the folder of a finished run, with summary.json and '
      'checkpoints. Finish that run first; of several seeds, name the folder '
      'of one.'
    )
  with errors.as_user_error(checkpoint.CheckpointError, what=told):
    known = record.read_json(folder / 'config.json')
    _, state = checkpoint.Checkpoints(folder / 'checkpoints').read()
  for what, there, here in (
    ('genomes', known['config']['space'], config.space),
    ('models', known['inputs']['model'], inputs['model']),
    ('experts', known['inputs']['adapters'], inputs['adapters']),
    ('experts', known['inputs']['experts'], inputs['experts']),
  ):
    if there != here:
      raise UserError(
        f'{told} was over other {what}: {there} there, {here} here. Its '
        'members mean something else here; give the same model, adapters and '
        'space.'
      )
  members = run_state.best_members(state, config.strategy.population)
  wanted = jax.eval_shape(setup.space.experts)
  found = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], members.population)
  if found != jax.tree.map(lambda leaf: leaf.shape[1:], wanted):
    raise UserError(
      f'{told} has members of other shapes than {config.space} have here.'
    )
  return WarmStart(members, record.fingerprint(folder / 'summary.json'))
