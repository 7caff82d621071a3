"""curve.png: fitness by generation."""

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
    levels: horizontal lines by label, the base's fitness for example.
    percent: whether fitness is a share, drawn in percent.
  """
  # Drawing without a display, and without touching the caller's pyplot.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  figure = Figure(figsize=(7, 4.2), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  scale = 100 if percent else 1
  generations = [row['generation'] for row in metrics]

  def column(name):
    return [
      float('nan') if row[name] is None else scale * row[name]
      for row in metrics
    ]

  axes.plot(generations, column('best_fitness'), marker='o', label='best')
  axes.plot(
    generations, column('mean_fitness'), marker='.', label='population mean'
  )
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
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize=9)
  part = pathlib.Path(path).with_suffix('.part.png')
  figure.savefig(part, dpi=150)
  os.replace(part, path)
