"""What a finished run shows beside its scores, read from its records.

The questions are those of Model Swarms (arXiv 2410.11163): correctness
emergence, which is what the evolved member solves and no expert did; whether
the best member began among the best; and where the population went.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.fitness.item_log import GenerationItems
from evojax_llm.fitness.item_log import ItemLog
from evojax_llm.runs import plots
from evojax_llm.runs import record
from evojax_llm.runs import record_rows


def emergence(
  experts: np.ndarray, best: int, evolved: np.ndarray
) -> dict[str, int]:
  """Counts the items that are solved before and after a search.

  Takes 0 or 1 of N experts, (N, items), of which one is the `best`, and of the
  evolved member, (items,).

  Returns:
    `items`; `unsolved` by any expert; those of them that `emerged` with the
    evolved member; `best_solved`, by the best expert; those of them that the
    evolved member has `lost`.
  """
  solved, right = np.asarray(experts) == 1, np.asarray(evolved) == 1
  unsolved = ~solved.any(axis=0)
  return {
    'items': len(right),
    'unsolved': int(unsolved.sum()),
    'emerged': int((unsolved & right).sum()),
    'best_solved': int(solved[best].sum()),
    'lost': int((solved[best] & ~right).sum()),
  }


class Origin(NamedTuple):
  """Where a member comes from."""

  # Ids from the initial member to it, along first parents; its own alone where
  # it has no parents, as members of random search and CMA-ES.
  path: list[int]
  # Of the initial member by dev fitness, 1 for the best; None without one.
  rank: int | None
  of: int  # initial members that did not fail
  experts: list[str]  # in its whole ancestry, by their rank
  expert_ranks: list[int]  # by dev fitness, among all experts


def origin(
  member: int,
  rows: Sequence[Mapping[str, Any]],
  expert_fitness: Mapping[str, float],
) -> Origin:
  """Follows a member back to the initial population.

  A member that moved is its own first parent: the path is then a particle's.
  `rows` are those of members.jsonl.
  """
  by_id = {row['id']: row for row in rows}
  path = [member]
  while by_id[path[0]]['generation'] > 0 and by_id[path[0]]['parents']:
    path.insert(0, by_id[path[0]]['parents'][0])
  first = [row['fitness'] for row in rows if row['generation'] == 0]
  first = [fitness for fitness in first if fitness is not None]
  rank, start = None, by_id[path[0]]
  if start['generation'] == 0:
    # A member that failed comes behind all others.
    own = -math.inf if start['fitness'] is None else start['fitness']
    rank = 1 + sum(fitness > own for fitness in first)
  ancestors = record_rows.lineage_of(member, rows)
  names = {name for row in ancestors for name in row.get('experts', ())}
  levels = expert_fitness.values()
  ranked = sorted(
    (1 + sum(other > expert_fitness[name] for other in levels), name)
    for name in names
  )
  experts, ranks = [name for _, name in ranked], [at for at, _ in ranked]
  return Origin(path, rank, len(first), experts, ranks)


class Trajectory(NamedTuple):
  """Members on the plane in which their answers differ most."""

  ids: list[int]  # M, in the order in which they were scored
  generations: np.ndarray  # (M,) i32, when
  points: np.ndarray  # (M, 2) f64
  explained: np.ndarray  # (2,) shares of the variance along either direction


def trajectory(log: Iterable[GenerationItems]) -> Trajectory:
  """Returns principal components of what all members answered on dev.

  A member is the vector of its values on the items, each task scaled to unit
  variance. An item that a member was not asked counts as the mean.

  Raises:
    ValueError: fewer than three members were scored on the items of the first
      generation.
  """
  ids, generations, rows, names = [], [], [], None
  for generation in log:
    names = names or [task.ids for task in generation.tasks]
    if [task.ids for task in generation.tasks] != names:
      continue  # other items have no point on this plane
    ids += generation.members.tolist()
    generations += [generation.number] * len(generation.members)
    rows.append([task.values for task in generation.tasks])
  if len(ids) < 3:
    raise ValueError(
      f'Got {len(ids)} members with answers to the same items; expected three '
      'at least to draw a plane.'
    )
  columns = []
  for task in zip(*rows, strict=True):
    values = np.concatenate(task, dtype=np.float64)
    centred = np.nan_to_num(values - np.nanmean(values, axis=0))
    deviation = np.sqrt((centred**2).sum(axis=1).mean())
    columns.append(centred / max(deviation, 1e-12))
  matrix = np.concatenate(columns, axis=1)
  u, s, _ = np.linalg.svd(matrix, full_matrices=False)
  points = np.zeros((len(ids), 2))
  kept = min(2, len(s))
  points[:, :kept] = (u * s)[:, :kept]
  # Signs are arbitrary: the first member lies on the left and below.
  points *= np.where(points[0] > 0, -1.0, 1.0)
  shares = np.zeros(2)
  shares[:kept] = (s**2 / max((s**2).sum(), 1e-12))[:kept]
  return Trajectory(ids, np.asarray(generations, np.int32), points, shares)


def analyse(run: pathlib.Path) -> str:
  """Writes analysis.json, analysis.md and trajectory.png of a finished run.

  Returns:
    The content of analysis.md.

  Raises:
    CheckpointError: a record is missing or damaged.
    ValueError: as `trajectory`.
  """
  summary = record.read_json(run / 'summary.json', 'best', 'rows', 'tested')
  best = summary['best']['id']
  fitness = record.read_json(run / 'baselines.json', 'fitness')['fitness']
  # None stands for an expert that failed.
  fitness = {n: -math.inf if f is None else f for n, f in fitness.items()}
  members = record.JsonLines(run / 'members.jsonl')
  with record.damaged(members.path, 'Lines that are lost are not made again.'):
    rows = members.read()
    came = origin(best, rows, fitness)
  path = trajectory(ItemLog(run / 'items').read())
  points = {id_: point for point, id_ in enumerate(path.ids)}
  plots.trajectory(
    run / 'trajectory.png',
    path.points,
    path.generations,
    [points[id_] for id_ in came.path if id_ in points],
    path.explained,
  )
  plots.family(
    run / 'family.png',
    rows,
    {row['id'] for row in record_rows.lineage_of(best, rows)},
    summary['rows'][0]['dev']['fitness']['percent'],
  )
  result = {
    'best': best,
    'emergence': _emergence(run, summary['tested'], fitness, best),
    'origin': came._asdict(),
    'explained': path.explained,
  }
  record.write_json(run / 'analysis.json', result)
  text = _markdown(record.plain(result))
  record.write_text(run / 'analysis.md', text)
  return text


def _emergence(
  run: pathlib.Path,
  tested: Sequence[str],
  fitness: Mapping[str, float],
  best: int,
) -> dict[str, dict[str, int]]:
  """Emergence on the splits of which the answers are known."""
  names = list(fitness)
  best_expert = names.index(max(names, key=fitness.__getitem__))

  def count(before, experts, after, member):
    """Counts over the tasks whose items are right or wrong, if any."""
    old = ensembles.gather(ItemLog(run / before).read(), experts)
    new = ensembles.gather(ItemLog(run / after).read(), [member])
    pairs = [
      (o.values, n.values[0])
      for o, n in zip(old or (), new or (), strict=bool(old and new))
      if o.binary and o.ids == n.ids and not np.isnan(n.values).any()
    ]
    if not pairs:
      return {}
    values, after = (
      np.concatenate(v, axis=-1) for v in zip(*pairs, strict=True)
    )
    return emergence(values, best_expert, after)

  counts = {}
  strategy = record.read_config(run)['config']['strategy']
  # Where members move and keep their scores, the log has answers of before.
  if strategy['options'].get('rescore', True):
    experts = list(range(1, 1 + len(names)))
    counts['dev'] = count('baseline_items', experts, 'items', best)
  rows = {name: index for index, name in enumerate(tested)}
  experts = [rows.get(f'expert {name}') for name in names]
  # The best expert is among the baselines under another name.
  if experts.count(None) <= 1 and f'member {best}' in rows:
    experts = [rows['best expert'] if e is None else e for e in experts]
    member = rows[f'member {best}']
    counts['test'] = count('test_items', experts, 'test_items', member)
  return {split: found for split, found in counts.items() if found}


def _markdown(result: Mapping[str, Any]) -> str:
  def share(part, whole):
    return f' ({100 * part / whole:.0f} %)' if whole else ''

  paragraphs = [f'# Member {result["best"]}']
  for split, n in result['emergence'].items():
    paragraphs.append(
      f'On {split} no expert solved {n["unsolved"]} of {n["items"]} items; it '
      f'solves {n["emerged"]} of them{share(n["emerged"], n["unsolved"])}. Of '
      f'the {n["best_solved"]} that the best expert solved it has {n["lost"]} '
      f'wrong{share(n["lost"], n["best_solved"])}.'
    )
  came = result['origin']
  if came['rank'] is None:
    paragraphs.append('Its algorithm tells of no parents, so it has no origin.')
  else:
    paragraphs.append(
      f'It descends from initial member {came["path"][0]}, number '
      f'{came["rank"]} of {came["of"]} by dev, in {len(came["path"]) - 1} '
      'steps along first parents.'
    )
  if came['experts']:
    ranked = zip(came['experts'], came['expert_ranks'], strict=True)
    names = ', '.join(f'{name} (number {rank})' for name, rank in ranked)
    paragraphs.append(
      f'Experts in its ancestry, by their dev fitness: {names}.'
    )
  paragraphs += [
    'Members on the plane in which their dev answers differ most:',
    '![trajectory](trajectory.png)',
    'All members, and who descends from whom:',
    '![family tree](family.png)\n',
  ]
  return '\n\n'.join(paragraphs)
