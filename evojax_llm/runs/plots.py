"""Draws the pictures of runs and of sweeps."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
from typing import Any


def curve(
  path: str | os.PathLike,
  metrics: Sequence[Mapping[str, Any]],
  levels: Mapping[str, float],
  percent: bool = True,
  middle: Mapping[int, Sequence[float]] | None = None,
  starts: Sequence[int] = (),
) -> None:
  """Draws the best and the mean fitness on `dev` by generation.

  Args:
    path: the PNG file.
    metrics: rows of metrics.jsonl.
    levels: horizontal lines by label.
    percent: whether fitness is a share, drawn in percent.
    middle: by generation the ends of a band, of half of its members.
    starts: generations at which another search begins.
  """
  figure, axes = _axes()
  scale = 100 if percent else 1
  generations = [row['generation'] for row in metrics]
  for name, marker, label in (
    ('best_fitness', 'o', 'best'),
    ('mean_fitness', '.', 'mean of the population'),
  ):
    values = [_nan(row[name]) * scale for row in metrics]
    axes.plot(generations, values, marker=marker, label=label)
  if middle:
    ends = [[scale * band[i] for band in middle.values()] for i in (0, 1)]
    look = dict(color='C1', alpha=0.2, linewidth=0)
    label = 'middle half of those scored'
    axes.fill_between(list(middle), *ends, label=label, **look)
  for start in starts:
    axes.axvline(start - 0.5, color='0.7', linewidth=0.8)
  _draw_levels(axes, {name: scale * at for name, at in levels.items()}, 2)
  label = 'fitness on dev'
  _save(figure, axes, path, 'generation', label, percent, whole=True)


def curves(
  path: str | os.PathLike,
  runs: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
  levels: Mapping[str, float],
  percent: bool = True,
) -> None:
  """Draws the best fitness on `dev` of several searches by evaluations.

  A line is the mean of the runs of a search, its band goes from the lowest to
  the highest of them.

  Args:
    path, levels, percent: see `curve`.
    runs: of each search, by name: (evaluations, best fitness so far) after
      every generation.
  """
  figure, axes = _axes()
  scale = 100 if percent else 1
  for i, (name, same) in enumerate(runs.items()):
    counts = sorted({count for run in same for count, _ in run})
    # From where on all runs have a best one.
    counts = [c for c in counts if c >= max(run[0][0] for run in same)]
    values = [
      [scale * [best for at, best in run if at <= c][-1] for run in same]
      for c in counts
    ]
    mean = [sum(v) / len(v) for v in values]
    axes.step(counts, mean, where='post', color=f'C{i}', label=name)
    ends = [min(v) for v in values], [max(v) for v in values]
    band = dict(step='post', color=f'C{i}', alpha=0.15, linewidth=0)
    axes.fill_between(counts, *ends, **band)
  scaled = {name: scale * at for name, at in levels.items()}
  _draw_levels(axes, scaled, len(runs))
  axes.set_title('mean of the runs; bands: lowest to highest', fontsize=9)
  label = 'best fitness on dev so far'
  _save(figure, axes, path, 'evaluations', label, percent, whole=True)


def trajectory(
  path: str | os.PathLike,
  points: Any,
  generations: Any,
  path_to_best: Sequence[int],
  explained: Sequence[float],
) -> None:
  """Draws members on the plane in which their answers differ most.

  Args:
    path: the PNG file.
    points: (M, 2) of the members.
    generations: (M,) when each was scored.
    path_to_best: indices into M from an initial member to the best one.
    explained: (2,) shares of the variance.
  """
  figure, axes = _axes()
  dots = axes.scatter(*points.T, c=generations, cmap='viridis', s=18)
  figure.colorbar(dots, ax=axes).set_label('generation')
  line = points[list(path_to_best)]
  axes.plot(*line.T, color='C3', linewidth=1.2, marker='.')
  axes.scatter(*line[-1], marker='*', s=160, color='C3', label='best member')
  ring = dict(s=50, facecolors='none', edgecolors='C3')
  axes.scatter(*line[0], marker='o', label='its origin', **ring)
  first, second = (f'{100 * share:.0f} %' for share in explained)
  labels = f'first component ({first})', f'second component ({second})'
  _save(figure, axes, path, *labels)


def family(
  path: str | os.PathLike,
  members: Sequence[Mapping[str, Any]],
  winners: Collection[int],
  percent: bool = True,
) -> None:
  """Draws who descends from whom, by generation and fitness on `dev`.

  Args:
    path: the PNG file.
    members: rows of members.jsonl; those that failed are left out.
    winners: ids of the best member and its ancestors, drawn on top.
    percent: see `curve`.
  """
  figure, axes = _axes()
  scale = 100 if percent else 1
  at = {
    row['id']: (row['generation'], scale * row['fitness'])
    for row in members
    if row['fitness'] is not None
  }
  for won, look in (
    (False, dict(color='0.8', linewidth=0.6)),
    (True, dict(color='C3', linewidth=1.2)),
  ):
    for row in members:
      for parent in row['parents']:
        both = {row['id'], parent}
        if both <= at.keys() and both.issubset(winners) == won:
          axes.plot(*zip(at[parent], at[row['id']], strict=True), **look)
    shown = [point for i, point in at.items() if (i in winners) == won]
    label = 'best member and its ancestors' if won else 'others'
    dots = dict(color=look['color'], s=18, zorder=2 + won, label=label)
    axes.scatter([x for x, _ in shown], [y for _, y in shown], **dots)
  label = 'fitness on dev'
  _save(figure, axes, path, 'generation', label, percent, whole=True)


def front(
  path: str | os.PathLike,
  names: Sequence[str],
  scores: Any,
  others: Any,
  maximise: Sequence[bool],
  chosen: int,
  rule: str,
) -> None:
  """Draws the front of several objectives, and the member that is chosen.

  Of two objectives as points of a plane, of more as lines over parallel axes,
  on which the best is on top.

  Args:
    path: the PNG file.
    names: of the K objectives.
    scores: (F, K) of the front.
    others: (M, K) of all members of the run.
    maximise: K times whether more is better.
    chosen: index into the front.
    rule: that has chosen it.
  """
  figure, axes = _axes()
  best = f'chosen by {rule}'
  if len(names) == 2:
    look = dict(s=12, color='C7', alpha=0.5)
    axes.scatter(*others.T, label='all members', **look)
    line = scores[scores[:, 0].argsort()]
    axes.plot(*line.T, color='C0', marker='o', label='the front')
    axes.scatter(*scores[chosen], marker='*', s=160, color='C3', label=best)
    _save(figure, axes, path, *names)
    return
  low, high = scores.min(axis=0), scores.max(axis=0)
  span = [b - a if b > a else 1.0 for a, b in zip(low, high, strict=True)]
  places = range(len(names))
  for i, member in enumerate(scores):
    heights = [
      (value - low[k]) / span[k] if maximise[k] else (high[k] - value) / span[k]
      for k, value in enumerate(member)
    ]
    look = dict(color='C0', alpha=0.5, label='the front' if i == 0 else None)
    if i == chosen:
      look = dict(color='C3', linewidth=2.0, zorder=3, label=best)
    axes.plot(places, heights, marker='.', **look)
  ends = [
    f'{name}\n{a:.4g} to {b:.4g}'
    for name, a, b in zip(
      names,
      [low[k] if maximise[k] else high[k] for k in places],
      [high[k] if maximise[k] else low[k] for k in places],
      strict=True,
    )
  ]
  axes.set_xticks(places, ends)
  axes.set_yticks([0.0, 1.0], ['worst', 'best'])
  _save(figure, axes, path, 'objective, worst to best of the front', 'score')


def line(
  path: str | os.PathLike,
  values: Sequence[Any],
  scores: Sequence[Mapping[str, float | None]],
  levels: Mapping[str, float],
  name: str,
  label: str,
) -> None:
  """Draws the mean score by a swept value, and how far its seeds spread.

  Args:
    path, levels: see `curve`.
    values: of the field, numbers or names.
    scores: `mean`, `lowest` and `highest` at each value, None where unknown.
    name: of the field.
    label: of the scores.
  """
  figure, axes = _axes()
  numbers = all(type(value) in (int, float) for value in values)
  means = [_nan(score['mean']) for score in scores]
  spread = [
    [0.0 if s['mean'] is None else abs(s['mean'] - s[end]) for s in scores]
    for end in ('lowest', 'highest')
  ]
  at = list(values) if numbers else range(len(values))
  axes.errorbar(at, means, yerr=spread, marker='o', capsize=3, label='evolved')
  if not numbers:
    axes.set_xticks(at, [str(value) for value in values])
  elif min(values) > 0 and max(values) >= 20 * min(values):
    axes.set_xscale('log')
  _draw_levels(axes, levels, 1)
  _save(figure, axes, path, name, label)


def heat_map(
  path: str | os.PathLike,
  across: tuple[str, Sequence[Any]],
  up: tuple[str, Sequence[Any]],
  scores: Sequence[Sequence[float | None]],
  label: str,
) -> None:
  """Draws the mean score by two swept fields.

  Args:
    path: the PNG file.
    across, up: the fields and their values.
    scores: by value of `up`, then of `across`; None where unknown.
    label: of the scores.
  """
  figure, axes = _axes()
  grid = [[_nan(score) for score in row] for row in scores]
  image = axes.imshow(grid, origin='lower', aspect='auto', cmap='viridis')
  figure.colorbar(image, ax=axes).set_label(label)
  for y, row in enumerate(scores):
    for x, score in enumerate(row):
      if score is not None:
        axes.text(x, y, f'{score:.4g}', ha='center', va='center', color='C3')
  axes.set_xticks(range(len(across[1])), [str(value) for value in across[1]])
  axes.set_yticks(range(len(up[1])), [str(value) for value in up[1]])
  _save(figure, axes, path, across[0], up[0], legend=False)


def _nan(score: float | None) -> float:
  return float('nan') if score is None else score


def _draw_levels(axes: Any, levels: Mapping[str, float], first: int) -> None:
  styles = ('--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))
  # The legend has the highest on top.
  ordered = sorted(levels.items(), key=lambda level: -level[1])
  for i, (label, level) in enumerate(ordered):
    look = dict(color=f'C{first + i}', linestyle=styles[i % len(styles)])
    axes.axhline(level, linewidth=1.2, label=label, **look)


def _axes() -> tuple[Any, Any]:
  # Drawing without a display, and without touching the caller's pyplot.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(8, 4.2), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots()


def _save(
  figure: Any,
  axes: Any,
  path: str | os.PathLike,
  across: str,
  up: str,
  percent: bool = False,
  *,
  whole: bool = False,
  legend: bool = True,
) -> None:
  """Labels the axes, of whole numbers or not across, and writes the file."""
  from matplotlib.ticker import MaxNLocator

  axes.set_xlabel(across)
  axes.set_ylabel(f'{up} (%)' if percent else up)
  if whole:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.spines[['top', 'right']].set_visible(False)
  if legend:  # beside the axes, where it hides nothing
    figure.legend(loc='outside right upper', frameon=False, fontsize=9)
  part = pathlib.Path(path).with_suffix('.part.png')
  figure.savefig(part, dpi=150)
  os.replace(part, path)
