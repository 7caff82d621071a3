"""Rows of a run's table as members again, made of what its folder keeps.

The evolved member and those that vote are in the last checkpoint; plain mixes
are made of the experts as they were for the table.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import os
import pathlib
from typing import Any
from typing import NamedTuple
from typing import Self

import jax.numpy as jnp
import numpy as np

from evojax_llm import files as files_lib
from evojax_llm import lookup
from evojax_llm.genomes.space import Space
from evojax_llm.genomes.space import make_space
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import checkpoint
from evojax_llm.runs import errors
from evojax_llm.runs import fine_tuning
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import record
from evojax_llm.runs import recorded_inputs
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.run_config import RunConfig

VOTE_FILE = 'vote.json'
# Shorter names of votes.
_ALIASES = {'vote': report.OF_EVOLVED, 'vote of experts': report.OF_EXPERTS}


class Vote(NamedTuple):
  """How the members of a row decide: a rule, and their (M,) dev fitness."""

  rule: str
  fitness: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table, with the members that it stands for."""

  name: str  # as in the table, or that of an expert
  space: Space
  genomes: Any  # leaves (M, ...); M is 1 but for a vote
  members: tuple[str, ...]  # M names
  vote: Vote | None = None
  mix: baselines_lib.Mix | None = None  # of the experts, if it is plain
  detail: str = ''  # which member an evolved one is
  entry: Mapping[str, Any] | None = None  # of summary.json, if it is there

  def recipes(self) -> dict[str, Any]:
    """Returns what each member is made of, by its name, where it is known."""
    if not self.space.names:  # A space of models without its experts.
      return {}
    if self.mix:
      weights = zip(self.space.names, self.mix.weights, strict=True)
      recipe = {'weights': dict(weights), 'factor': self.mix.factor}
      return {self.name: record.plain(recipe)}
    return {
      name: record.plain(self.space.recipe(stack.take(self.genomes, i)))
      for i, name in enumerate(self.members)
    }


def find(
  folder: str | os.PathLike,
  name: str,
  allow_changed: bool = False,
  allow_code: bool = False,
  allow_unfinished: bool = True,
) -> tuple['Run', str]:
  """Opens the run of a row; of a comparison the best on dev of a search.

  Args:
    folder: of a run or of a comparison.
    name: of the row of either's table.
    allow_changed: take a base or experts that have changed, and say so.
    allow_code: import what its configuration names.
    allow_unfinished: take the best of the last checkpoint.

  Returns:
    The run, and the name of the row in its table.

  Raises:
    UserError: there is no such run, an input has changed, or the run has not
      finished and has to.
  """
  path = pathlib.Path(os.path.expanduser(folder))
  search, _, vote = name.partition(', ')
  kept = report.OF_EVOLVED if vote else report.EVOLVED
  found, stages = [], set()
  if (path / 'sweep.json').is_file():
    for trial, one in record.read_json(path / 'sweep.json')['trials'].items():
      summary = path / trial / 'summary.json'
      if one['changes'].get('arm') == search and summary.is_file():
        stages.add(one['changes']['stage'])
        scores = {
          row['name']: row['dev']['fitness']['score']
          for row in record.read_json(summary)['rows']
        }
        found.append((scores.get(kept) or -math.inf, trial))
  if len(stages) == 1:
    _, best = max(found, key=lambda one: one[0])
    errors.say(f'{path / best}: the best on dev of {len(found)} runs')
    path, name = path / best, kept
  path, name = _of_stage(path, name)
  run = Run.open(path, allow_changed, allow_code)
  if not (allow_unfinished or run.summary):
    raise errors.UserError(
      f'The run in {path} has not finished. Go on with it, or take what there '
      'is so far with --allow_unfinished.'
    )
  return run, name


def _of_stage(path: pathlib.Path, name: str) -> tuple[pathlib.Path, str]:
  """The stage of a run of several that a row is of, and its name there."""
  if not (path / 'stages').is_dir() or not (path / 'config.json').is_file():
    return path, name
  summary = record.read_summary(path)
  if not summary:
    stages = ', '.join(sorted(str(p) for p in (path / 'stages').iterdir()))
    raise errors.UserError(
      f'The run in {path} has not finished all of its stages. Go on with it, '
      f'or name the folder of one: {stages}.'
    )
  with record.damaged(path / 'summary.json', record.AGAIN):
    known = {one['name']: one['folder'] for one in summary['stages']}
    wanted = ' '.join(name.split(' (')[0].replace('_', ' ').split())
    alone = _ALIASES.get(wanted, wanted) in (report.EVOLVED, report.OF_EVOLVED)
    first = next(iter(known.values()))
    folder = summary['best']['stage'] if alone else known.get(wanted, first)
  errors.say(f'{path / folder}: the stage of this row')
  return path / folder, report.EVOLVED if wanted in known else name


def exported_vote(folder: str) -> str | None:
  """Returns the name of a vote that `export` has written; None of a run."""
  path = pathlib.Path(os.path.expanduser(folder)) / VOTE_FILE
  if not path.is_file():
    return None
  return str(files_lib.read_object(path, errors.UserError).get('name', 'vote'))


@dataclasses.dataclass(frozen=True)
class Run:
  """The folder of a run."""

  path: pathlib.Path
  config: RunConfig
  files: inputs_lib.Files
  inputs: Mapping[str, Any]  # fingerprints of the files

  @classmethod
  def open(
    cls,
    folder: str | os.PathLike,
    allow_changed: bool = False,
    allow_code: bool = False,
  ) -> Self:
    """Reads config.json and finds the inputs again; see `find`.

    Raises:
      UserError: the folder is not that of one run, or an input has changed.
      CheckpointError: its record is damaged.
    """
    path = pathlib.Path(os.path.expanduser(folder))
    whole = (path / 'config.json').is_file()
    if not whole or (path / 'sweep.json').is_file():
      said = 'is not the folder of a run: it has no config.json'
      if runs := sorted(
        str(found.parent.relative_to(path))
        for depth in ('*', '*/*', '*/*/*/*')
        for found in path.glob(f'{depth}/config.json')
        if (found.parent / 'checkpoints').exists()
      ):
        more = f' and {len(runs) - 5} more' if len(runs) > 5 else ''
        said = 'holds several runs: name one of them, '
        said += f'{", ".join(runs[:5])}{more}'
      raise errors.UserError(f'--run={path} {said}.')
    config, files = recorded_inputs.find(path, allow_changed, allow_code)
    inputs_lib.space_class(config)
    return cls(path, config, files, record.read_config(path)['inputs'])

  def reads(self) -> list[pathlib.Path]:
    """Returns all that stands in the folder, and the inputs on disk."""
    files = self.files
    given = [files.model, *files.adapters, *files.experts]
    tasks = (pathlib.Path(task) for task in (*files.tasks, *files.heldout))
    return [*self.path.iterdir(), *given, *tasks]

  @functools.cached_property
  def summary(self) -> dict[str, Any] | None:
    """The content of summary.json; None before the end of the run."""
    return record.read_summary(self.path)

  def row(self, name: str = report.EVOLVED, dtype: Any = None) -> Row:
    """Makes the members of a row, or of an expert.

    With no dtype of the parameters the space only exports.

    Raises:
      UserError: there is no such row.
      ModelError: an input cannot be used any more.
      CheckpointError: the row needs a file of the run that cannot be read.
    """
    wanted = ' '.join(name.split(' (')[0].lower().replace('_', ' ').split())
    wanted = _ALIASES.get(wanted, wanted)
    with record.damaged(self.path / 'baselines.json', record.AGAIN):
      mixes = self._mixes()
      by_lower = {known.lower().replace('_', ' '): known for known in mixes}
    if wanted == report.EVOLVED:
      row = self._evolved(dtype)
    elif wanted in _ALIASES.values() and self._ensemble(wanted):
      row = self._vote(wanted, dtype)
      if len(row.members) == 1:
        (member,) = row.members
        alone = member if wanted == report.OF_EXPERTS else report.EVOLVED
        errors.say(
          f'dev chose one member, {member}: the vote is --row={alone!r}'
        )
    elif wanted == report.FINE_TUNED.lower() and self._tuned:
      name, space = report.FINE_TUNED, self._space(dtype, experts=True).plain
      row = Row(name, space, fine_tuning.read(self.path, space), (name,))
    elif wanted in by_lower:
      found, space = by_lower[wanted], self._space(dtype, experts=True).plain
      genomes = baselines_lib.mix_experts(space, [mixes[found]])
      row = Row(found, space, genomes, (found,), mix=mixes[found])
    else:
      raise errors.UserError(self._unknown(name, mixes))
    if not self.summary and row.detail:
      errors.say(f'{row.detail} on dev')
    with record.damaged(self.path / 'summary.json', record.AGAIN):
      rows = (self.summary or {}).get('rows', ())
      entry = next((r for r in rows if r['name'] == row.name), None)
    return dataclasses.replace(row, entry=entry)

  def _unknown(self, name: str, mixes: Mapping[str, Any]) -> str:
    with record.damaged(self.path / 'summary.json', record.AGAIN):
      groups = [name for name, long in _ALIASES.items() if self._ensemble(long)]
    tuned = [report.FINE_TUNED] * self._tuned
    known = [report.EVOLVED, *groups, *mixes, *tuned]
    said = f'Got --row={name!r}{lookup.expected(name, known)}'
    if groups:
      return said
    why = ': config.ensemble.size was 0, or fewer than two members were scored.'
    why = why if self.summary else ' before it has finished.'
    return f'{said} The run has no vote{why}'

  def _space(self, dtype: Any, experts: bool = False) -> Space:
    """The space of the search; with no dtype one that only exports."""
    kind = inputs_lib.space_class(self.config)
    if dtype is None and (experts and kind.exports == 'model' or not kind.bare):
      # Its experts are parameters.
      dtype = jnp.dtype(self.config.execution.dtype)
    return setup_lib.load_space(self.config, self.files, dtype)

  @property
  def _tuned(self) -> bool:
    return (self.path / fine_tuning.FOLDER).is_dir()

  def _mixes(self) -> dict[str, baselines_lib.Mix]:
    """Plain mixes by name: baselines, then experts."""
    path, mixes = self.path / 'baselines.json', {}
    if path.is_file():
      mixes = baselines_lib.mixes_of(record.read_json(path, 'rows')['rows'])
    experts = self.files.expert_names
    for i, expert in enumerate(experts):
      mixes.setdefault(expert, baselines_lib.single(i, len(experts)))
    return mixes

  def _ensemble(self, name: str) -> Mapping[str, Any] | None:
    return ((self.summary or {}).get('ensembles') or {}).get(name)

  def _best(
    self, count: int, chosen: int | None = None
  ) -> tuple[int, run_state.Members]:
    """The last generation and its best members, as the run chooses them."""
    number, state = checkpoint.Checkpoints(self.path / 'checkpoints').read()
    keep_best = self.config.strategy.options.get('keep_best', True)
    return number, run_state.best_members(state, count, keep_best, chosen)

  def _evolved(self, dtype: Any) -> Row:
    name, folder = report.EVOLVED, self.path / 'best'
    try:
      # Not the best by its fitness, where that was estimated or a rule chose.
      summary = self.summary or {}
      chosen = (summary.get('pareto') or {}).get('chosen')
      if summary.get('estimate') or (summary and self.config.pick_items):
        chosen = summary['best']['id']
      number, best = self._best(1, chosen)
      said = f'member {best.ids[0]}, the best after generation {number}: '
      said += f'fitness {best.fitness[0]:.4g}'
      space = self._space(dtype)
      return Row(name, space, best.population, (name,), detail=said)
    except errors.CheckpointError:
      if not self.summary or not folder.is_dir():
        raise
    # All that is left of the search.
    base = str(self.files.model)
    exports = inputs_lib.space_class(self.config).exports
    if exports == 'path':
      raise errors.CheckpointError(
        f'{self.path}: no checkpoint can be read; {folder} has the best member '
        'as a path, which score and generate take as --model.'
      )
    if exports == 'model':
      dtype = dtype or jnp.dtype(self.config.execution.dtype)
      space = make_space('weights', base, models=[folder], dtype=dtype)
    else:
      space = make_space('adapters', base, [folder], dtype=dtype)
    return Row(name, space, space.experts(), (name,))

  def _vote(self, name: str, dtype: Any) -> Row:
    group, of_experts = self._ensemble(name), name == report.OF_EXPERTS
    space = self._space(dtype, of_experts)
    chosen = group['members']
    if of_experts:
      members = tuple(space.names[i] for i in chosen)
      path = self.path / 'baselines.json'
      kept = record.read_json(path, 'fitness')['fitness']
      fitness = [kept[expert] for expert in members]
      space = space.plain
      genomes = stack.take(space.experts(), np.asarray(chosen))
    else:
      members = tuple(f'member {id_}' for id_ in chosen)
      _, best = self._best(self.config.ensemble.size)
      if absent := [id_ for id_ in chosen if id_ not in best.ids]:
        raise errors.CheckpointError(
          f'{self.path}: the last checkpoint has no member {absent[0]}, which '
          'votes. It is not that of the finished run.'
        )
      indices = np.asarray([best.ids.index(id_) for id_ in chosen])
      genomes = stack.take(best.population, indices)
      fitness = best.fitness[indices]
    fitness = np.asarray(group.get('fitness', fitness), np.float32)
    return Row(name, space, genomes, members, Vote(group['rule'], fitness))
