"""Members of a finished run with which another one begins."""

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
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import record
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig

OPERATOR = 'warm_start'


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """Members of an earlier run.

  Attributes:
    members: the best in its last state, the best first.
    fingerprint: of that run.
  """

  members: run_state.Members
  fingerprint: str

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
      operators=(OPERATOR,) * count + made.operators[: size - count],
      parents=np.concatenate([no_parents, parents]),
      rows=made.rows,
    )


def load(
  config: RunConfig, setup: setup_lib.Setup, inputs: Mapping[str, Any]
) -> WarmStart:
  """Reads the members of the run at config.warm_start.

  Tasks, strategy and the size of the population may differ from that run's;
  genomes of another base, other experts or another space mean something else.

  Raises:
    UserError: there is no finished run, or one with which this cannot begin.
  """
  folder = pathlib.Path(config.warm_start)
  flag = f'config.warm_start={config.warm_start}'
  finished = (folder / 'summary.json').is_file()
  if not finished or not (folder / 'checkpoints').is_dir():
    raise UserError(
      f'{flag} is not the folder of a finished run, with summary.json and '
      'checkpoints. Finish that run first; of several seeds, name the folder '
      'of one.'
    )
  known = record.read_config(folder)
  earlier = RunConfig.from_config(known['config'])
  of_run = {'model': '', 'adapters': [], 'experts': []} | known['inputs']
  _, state = checkpoint.Checkpoints(folder / 'checkpoints').read()
  for what, there, here in (
    ('genomes', earlier.space, config.space),
    ('recipes', *map(inputs_lib.space_options, (earlier, config))),
    ('models', of_run['model'], inputs['model']),
    ('experts', of_run['adapters'], inputs['adapters']),
    ('experts', of_run['experts'], inputs['experts']),
  ):
    if there != here:
      raise UserError(
        f'{flag} was over other {what}: {there} there, {here} here. Its '
        'members mean something else here; give the same model, adapters and '
        'space.'
      )
  members = run_state.best_members(state, config.strategy.population)
  wanted = jax.eval_shape(setup.space.experts)
  shapes = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], members.population)
  if shapes != jax.tree.map(lambda leaf: leaf.shape[1:], wanted):
    raise UserError(
      f'{flag} has members of other shapes than {config.space} have here.'
    )
  return WarmStart(
    members, recorded_inputs.fingerprint(folder / 'summary.json')
  )
