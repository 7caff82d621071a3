"""Draws the pictures of runs and of sweeps."""

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
) -> None:
  """Draws the best and the mean fitness on `dev` by generation.

  Args:
    path: the PNG file.
    metrics: rows of metrics.jsonl.
    levels: horizontal lines by label.
    percent: whether fitness is a share, drawn in percent.
  """
  from matplotlib.ticker import MaxNLocator

  figure, axes = _axes()
  scale = 100 if percent else 1
  generations = [row['generation'] for row in metrics]

  def column(name):
    return [
      float('nan') if row[name] is None else scale * row[name]
      for row in metrics
    ]

  axes.plot(generations, column('best_fitness'), marker='o', label='best')
  mean = column('mean_fitness')
  axes.plot(generations, mean, marker='.', label='population mean')
  percents = {label: scale * level for label, level in levels.items()}
  _draw_levels(axes, percents, 2)
  axes.set_xlabel('generation')
  axes.set_ylabel('fitness on dev (%)' if percent else 'fitness on dev')
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.legend(frameon=False, fontsize=9)
  _save(figure, axes, path)


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
  dots = axes.scatter(
    points[:, 0], points[:, 1], c=generations, cmap='viridis', s=18
  )
  bar = figure.colorbar(dots, ax=axes)
  bar.set_label('generation')
  line = points[list(path_to_best)]
  axes.plot(line[:, 0], line[:, 1], color='C3', linewidth=1.2, marker='.')
  axes.scatter(*line[-1], marker='*', s=160, color='C3', label='best member')
  ring = dict(s=50, facecolors='none', edgecolors='C3')
  axes.scatter(*line[0], marker='o', label='its origin', **ring)
  axes.set_xlabel(f'first component ({100 * explained[0]:.0f} %)')
  axes.set_ylabel(f'second component ({100 * explained[1]:.0f} %)')
  axes.legend(frameon=False, fontsize=9)
  _save(figure, axes, path)


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
    path: the PNG file.
    values: of the field, numbers or names.
    scores: `mean`, `lowest` and `highest` at each value, None where unknown.
    levels: horizontal lines by label.
    name: of the field.
    label: of the scores.
  """
  figure, axes = _axes()
  numbers = all(type(value) in (int, float) for value in values)
  known = [float('nan') if s['mean'] is None else s['mean'] for s in scores]
  spread = [
    [0.0 if s['mean'] is None else abs(s['mean'] - s[end]) for s in scores]
    for end in ('lowest', 'highest')
  ]
  at = list(values) if numbers else range(len(values))
  axes.errorbar(at, known, yerr=spread, marker='o', capsize=3, label='evolved')
  if not numbers:
    axes.set_xticks(at, [str(value) for value in values])
  elif min(values) > 0 and max(values) >= 20 * min(values):
    axes.set_xscale('log')
  _draw_levels(axes, levels, 1)
  axes.set_xlabel(name)
  axes.set_ylabel(label)
  axes.legend(frameon=False, fontsize=9)
  _save(figure, axes, path)


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
    across: a field and its values.
    up: the other one.
    scores: by value of `up`, then of `across`; None where unknown.
    label: of the scores.
  """
  figure, axes = _axes()
  grid = [
    [float('nan') if score is None else score for score in row]
    for row in scores
  ]
  image = axes.imshow(grid, origin='lower', aspect='auto', cmap='viridis')
  figure.colorbar(image, ax=axes).set_label(label)
  for y, row in enumerate(scores):
    for x, score in enumerate(row):
      if score is not None:
        axes.text(x, y, f'{score:.4g}', ha='center', va='center', color='C3')
  axes.set_xticks(range(len(across[1])), [str(value) for value in across[1]])
  axes.set_yticks(range(len(up[1])), [str(value) for value in up[1]])
  axes.set_xlabel(across[0])
  axes.set_ylabel(up[0])
  _save(figure, axes, path)


def _draw_levels(axes: Any, levels: Mapping[str, float], first: int) -> None:
  styles = ('--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))
  for i, (label, level) in enumerate(levels.items()):
    axes.axhline(
      level,
      color=f'C{first + i}',
      linestyle=styles[i % len(styles)],
      linewidth=1.2,
      label=label,
    )


def _axes() -> tuple[Any, Any]:
  # Drawing without a display, and without touching the caller's pyplot.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4.2), layout='constrained')
  FigureCanvasAgg(figure)
  return figure, figure.subplots()


def _save(figure: Any, axes: Any, path: str | os.PathLike) -> None:
  axes.spines[['top', 'right']].set_visible(False)
  part = pathlib.Path(path).with_suffix('.part.png')
  figure.savefig(part, dpi=150)
  os.replace(part, path)
