"""The base and others as one population, for programs that compare them.

The base comes first, as the adapter that changes nothing; a member for each
adapter folder, or of a row of a run's table, follows. An eight-bit base is
compared with the whole one.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import files as files_lib
from evojax_llm.fitness import ensembles
from evojax_llm.genomes.adapters import scaled
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.genomes.space import load_base
from evojax_llm.genomes.space import make_space
from evojax_llm.models import hub
from evojax_llm.models import path_files
from evojax_llm.models import peft
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.expression import LowRank
from evojax_llm.models.folders import model_name
from evojax_llm.models.model_files import put
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.population import stack
from evojax_llm.runs import errors
from evojax_llm.runs import record
from evojax_llm.runs import rows
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.preparation import Prepared

BASE = 'base'
_INT8_FILE = 'base_dtype.json'


@dataclasses.dataclass(frozen=True)
class Members:
  """The base and its adapters."""

  space: Expressed  # of members that are expressed, over the base
  tokenizer: Tokenizer
  # 'base', then what tells P - 1 adapter folders apart; without adapters the
  # name of the model folder.
  names: tuple[str, ...]
  population: Any  # genomes of the space, with a leading P


def load(
  model: str, adapters: Sequence[str] = (), dtype: Any = jnp.float32
) -> Members:
  """Loads a model folder and adapter folders; `dtype` is that of the base.

  Raises:
    ModelError: a folder cannot be used.
    UserError: an adapter folder is called 'base'.
  """
  # The small files first: what is wrong with them shows at once.
  tokenizer = Tokenizer.from_folder(model)
  if path_files.is_path(model):
    if adapters:
      raise errors.UserError(
        f'{model} is a path through layers, of which there are no adapters: '
        f'leave {adapters[0]} out.'
      )
    shared, path = path_files.load_path(model, dtype)
    population = stack.stack([path])
    names = (model_name(model),)
    return Members(Expressed(shared), tokenizer, names, population)
  config, _ = hub.load_config(model)
  names, population = (model_name(model),), alone(config)
  if adapters:
    loaded = peft.load_adapters(adapters, config)
    if BASE in loaded.names:
      folder = adapters[loaded.names.index(BASE)]
      raise errors.UserError(
        f"The adapter folder {folder} is called '{BASE}', as the model without "
        'an adapter is in the results. Rename it.'
      )
    population = jax.tree.map(
      lambda leaf: jnp.concatenate([jnp.zeros_like(leaf[:1]), leaf]),
      LowRank(scaled(loaded.factors, loaded.scale)),
    )
    names = (BASE, *loaded.names)
  space = Expressed(load_base(model, dtype))
  return Members(space, tokenizer, names, population)


def of_row(
  source: rows.Run | str, name: str, dtype: Any = jnp.float32
) -> tuple[Members, rows.Vote | None]:
  """Loads the base and the members of a row, as one population.

  `source` is a run, or the folder of an exported vote.

  Raises:
    UserError: there is no such row, or the vote is not as it was written.
    ModelError: a folder cannot be used.
  """
  if not isinstance(source, rows.Run):
    return _exported_vote(pathlib.Path(os.path.expanduser(source)), dtype)
  row = source.row(name, dtype)
  # Of paths the first one is A's, which is the base unless it is named.
  first = getattr(row.space, 'sources', (BASE,))[0]
  names, population = (first,), stack.stack([row.space.base()])
  if row.name != BASE:
    # As the space has them: a run of another type may have kept them.
    genomes = jax.tree.map(
      lambda leaf, like: jnp.asarray(leaf, like.dtype), row.genomes, population
    )
    names = (first, *row.members)
    population = stack.concatenate(population, genomes)
  tokenizer = Tokenizer.from_folder(source.files.model)
  return Members(row.space, tokenizer, names, population), row.vote


def _exported_vote(path: pathlib.Path, dtype: Any) -> tuple[Members, rows.Vote]:
  """What `export` has written of a vote."""
  known = files_lib.read_object(path / rows.VOTE_FILE, errors.UserError)
  try:
    base, rule = str(known['base']), known['rule']
    inner = [pathlib.PurePath(member['folder']) for member in known['members']]
    if not inner or any(len(name.parts) != 1 for name in inner):
      raise ValueError('members are not folders in it')
    folders = [path / name for name in inner]
    names = tuple(member['name'] for member in known['members'])
    fitness = np.asarray([m['fitness'] for m in known['members']], np.float32)
    ensembles.check_rule(rule)
  except (LookupError, TypeError, ValueError) as error:
    raise errors.UserError(
      f'{path / rows.VOTE_FILE}: not as export writes it ({error!r}); export '
      'the vote again.'
    ) from None
  names = (BASE, *names)
  if (folders[0] / 'adapter_config.json').is_file():
    members = load(base, folders, dtype)
    members = dataclasses.replace(members, names=names)
  else:
    space = make_space('weights', base, models=folders, dtype=dtype)
    population = stack.concatenate(stack.stack([space.base()]), space.experts())
    members = Members(space, Tokenizer.from_folder(base), names, population)
  return members, rows.Vote(rule, fitness)


def alone(config: ModelConfig) -> LowRank:
  """Returns the base as a population of one, with an adapter of zeros."""
  factors: dict[str, Any] = {}
  for keys, layers, part in config.parts():
    zero = {
      'a': jnp.zeros((1, len(layers), config.embed_dim, 1)),
      'b': jnp.zeros((1, len(layers), 1, part.ffn_dim)),
    }
    put(factors, ('layers', *keys, 'mlp', 'up_proj'), zero)
  return LowRank(factors)


def int8_difference(whole: Any, eight: Any, model: Model) -> dict[str, dict]:
  """Scores the base on `dev`, in its own type and in eight bits.

  Takes an evaluator for either, and returns by task the scores `whole` and
  `eight`, and `agree`, the share of items with the same verdict.
  """
  base = alone(model.config)
  first, second = (
    evaluator.evaluate(Expressed(model), base) for evaluator in (whole, eight)
  )
  return {
    a.task: {
      'whole': float(first.task_scores[0, k]),
      'eight': float(second.task_scores[0, k]),
      'agree': float((a.values[0] == b.values[0]).mean()),
    }
    for k, (a, b) in enumerate(zip(first.tasks, second.tasks, strict=True))
  }


def describe_int8(changed: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the difference in a line a task."""
  return '\n'.join(
    f'int8 base, {task}: {100 * v["eight"]:.1f} % after '
    f'{100 * v["whole"]:.1f} %, the same on {100 * v["agree"]:.1f} % of items'
    for task, v in changed.items()
  )


def report_int8(run: record.RunFolder, prepared: Prepared) -> None:
  """Measures the difference once a run, prints it, and keeps it."""
  config, setup = prepared.config, prepared.setup
  execution = dataclasses.replace(config.execution, base_dtype=None)

  def make():
    plain = dataclasses.replace(config, execution=execution)
    both = (setup_lib.make_evaluator(c, setup) for c in (plain, config))
    return int8_difference(*both, setup.experts.model())

  errors.say(record.kept(run.path / _INT8_FILE, describe_int8, make))


def read_int8(run: record.RunFolder) -> dict | None:
  """Returns the difference that was kept; None where the base is whole."""
  path = run.path / _INT8_FILE
  return record.read_json(path) if path.exists() else None
