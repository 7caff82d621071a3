"""Draws curve.png and trajectory.png of a run."""

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
  styles = ('--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)))
  for i, (label, level) in enumerate(levels.items()):
    axes.axhline(
      scale * level,
      color=f'C{2 + i}',
      linestyle=styles[i % len(styles)],
      linewidth=1.2,
      label=label,
    )
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
