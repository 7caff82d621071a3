"""Exports rows of a run's table: as adapters, as models, or as a vote."""

import dataclasses
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes.space import make_space
from evojax_llm.models import expression
from evojax_llm.models import folders
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.operators import lora_algebra
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.recipes import yaml_out
from evojax_llm.runs import errors
from evojax_llm.runs import model_card
from evojax_llm.runs import outputs
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import rows

# Less of the change than this is worth a word on another type.
_ENOUGH = 0.99


@dataclasses.dataclass(frozen=True)
class Options:
  """How a row is written."""

  # As a model: with an adapter folded into its weights, or a layer for each hop
  # of a path.
  merged: bool = False
  dtype: str | None = None  # of a model's tensors; None for those of the base
  max_rank: int | None = None  # of an adapter; wider ones are brought to it


def export(
  run: str | os.PathLike,
  out: str | os.PathLike,
  row: str = report.EVOLVED,
  allow_unfinished: bool = False,
  allow_changed: bool = False,
  allow_code: bool = False,
  options: Options = Options(),
) -> str:
  """Exports a row of a run's table, with a model card, to a new folder.

  For the run, the row and what is allowed see `rows.find`.

  Returns:
    What was written: 'adapter', 'model', 'path' or 'vote'.

  Raises:
    UserError: `out` is not new, or `run` not a run that can be exported.
    CheckpointError: a record or a checkpoint is damaged.
  """
  run, row = rows.find(run, row, allow_changed, allow_code, allow_unfinished)
  out = pathlib.Path(os.path.expanduser(out))
  outputs.prepare(out, run.reads())
  if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
    raise errors.UserError(
      f'--out={out} exists. Nothing is overwritten: name a new folder.'
    )
  found = run.row(row)
  own = found.space.exports
  if options.max_rank and (own != 'adapter' or options.merged):
    raise errors.UserError(
      f'--max_rank={options.max_rank} is of an adapter, and a whole model is '
      'to be written: leave it out.'
    )
  if own == 'path' and found.vote:
    raise errors.UserError(
      f'{row} is a vote of paths, each a model of its own depth: export '
      '--row=evolved, or score the vote with --run and --row.'
    )
  if options.dtype and not (own == 'model' or options.merged):
    if own == 'path':
      raise errors.UserError(
        f'--dtype={options.dtype} is of a model, and a path is to be written '
        'in the types of its layers: leave it out, or add --merged.'
      )
    raise errors.UserError(
      f'--dtype={options.dtype} is of a model, and an adapter is to be '
      'written, whose factors are float32: leave it out, or add --merged.'
    )
  kind = 'model' if options.merged else own
  with folders.new_folder(out) as folder:
    if found.vote is None:
      notes = [_write(run, found, 0, folder, options)]
    else:
      notes = _write_vote(run, found, folder, options)
    card = model_card.text(run, found, kind, notes)
    record.write_text(folder / 'README.md', card)
  return 'vote' if found.vote else kind


def _write_vote(
  run: rows.Run, row: rows.Row, folder: pathlib.Path, options: Options
) -> list[str]:
  """Writes the members, each in a folder of its own, and how they vote."""
  members, notes = [], []
  for i, name in enumerate(row.members):
    inner = name.replace(' ', '_').replace('/', '_')
    (folder / inner).mkdir()
    notes.append(_write(run, row, i, folder / inner, options))
    fitness = row.vote.fitness[i]
    members.append({'name': name, 'folder': inner, 'fitness': fitness})
  vote = {'name': row.name, 'rule': row.vote.rule}
  vote['base'] = str(run.files.model.absolute())
  record.write_json(folder / rows.VOTE_FILE, {**vote, 'members': members})
  return notes


def _write(
  run: rows.Run, row: rows.Row, index: int, folder: pathlib.Path, how: Options
) -> str:
  """Writes one member of a row into an empty folder.

  Returns what is to be said of its recipe in the format of mergekit.
  """
  genome = stack.take(row.genomes, index)
  model = run.files.model
  if row.space.exports == 'model':
    config = row.space.model().config
    _write_model(folder, row.space.express(genome).params, config, model, how)
  elif row.space.exports == 'path':
    if how.merged:
      dtype = None if how.dtype is None else jnp.dtype(how.dtype)
      row.space.export_model(genome, folder, dtype)
    else:
      row.space.export(genome, folder)
  elif how.merged or how.max_rank:
    with tempfile.TemporaryDirectory() as temporary:
      adapter = pathlib.Path(temporary) / 'adapter'
      row.space.export(genome, adapter)
      if how.merged:
        _merge(model, adapter, folder, how)
      else:
        _narrow(model, adapter, folder, how.max_rank)
  else:
    row.space.export(genome, folder)
  # Of the evolved member the run has kept what it was.
  recipe = row.name == report.EVOLVED and run.summary
  recipe = recipe and recipe['best'].get('recipe')
  if not recipe and row.space.names:
    recipe = row.space.recipe(genome)
  return yaml_out.write(
    folder, recipe or {}, model, run.files.adapters, run.files.experts
  )


def _narrow(
  model: pathlib.Path, adapter: pathlib.Path, out: pathlib.Path, rank: int
) -> None:
  """Writes the nearest adapter of a lower rank, and says how near it is."""
  config, _ = hub.load_config(model)
  loaded = peft.load_adapters([adapter], config)
  if loaded.rank <= rank:
    shutil.copytree(adapter, out, dirs_exist_ok=True)
    return
  member = adapter_genomes.scaled(
    jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), loaded.factors),
    loaded.scale,
  )
  narrow, lost = jax.jit(lora_algebra.compress, static_argnums=1)(member, rank)
  lost = np.concatenate(jax.tree.leaves(sharding.to_host(lost)))
  known = folders.read_json(adapter / 'adapter_config.json')
  peft.save_adapter(
    out,
    sharding.to_host(narrow),
    jax.tree.map(np.ones_like, loaded.scale),
    config,
    known['base_model_name_or_path'],
    model,
  )
  errors.say(
    f'rank {loaded.rank} brought to {rank}: the change of a matrix is off by '
    f'{lost.mean():.2%} of its Frobenius norm in the mean and {lost.max():.2%} '
    'at most'
  )


def _merge(
  model: pathlib.Path, adapter: pathlib.Path, out: pathlib.Path, how: Options
) -> None:
  """Writes the model with the adapter folded into its weights, in f32."""
  space = make_space('adapters', model, [adapter], dtype=jnp.float32)
  base = space.model()
  member = space.express(stack.take(space.experts(), jnp.int32(0)))
  params = expression.fold(base.params, member)
  _write_model(out, params, base.config, model, how, base.params)


def _write_model(
  out: pathlib.Path,
  params: Any,
  config: Any,
  model: pathlib.Path,
  how: Options,
  base: Any = None,
) -> None:
  """Writes a model folder, and says what its types keep of the change."""
  dtype = None if how.dtype is None else jnp.dtype(how.dtype)
  tell_kept(params, config, model, dtype, base)
  hub.save_checkpoint(out, params, config, like=model, dtype=dtype)


def tell_kept(
  params: Any,
  config: Any,
  model: str | os.PathLike,
  dtype: Any = None,
  base: Any = None,
) -> None:
  """Says what is left of a change of weights when they are stored.

  Args:
    params: parameter tree of `config`.
    config: that of the model folder.
    model: the folder of the base.
    dtype: of all tensors; None for those of the base.
    base: its parameters, read where they are not given.
  """
  types = hub.stored_types(model, config, dtype)
  if all(kind == np.float32 for kind in types.values()):
    return
  if base is None:
    base = hub.load_checkpoint(model, None, place=np.asarray)[1]
  kept, noise = hub.kept_change(params, base, types)
  names = ', '.join(sorted({kind.name for kind in types.values()}))
  advice = '' if kept >= _ENOUGH else '; export it with --dtype=float32'
  errors.say(
    f'{names} keeps {kept:.1%} of the change of the weights, and rounds with '
    f'an error of {noise:.1%} of it{advice}'
  )
