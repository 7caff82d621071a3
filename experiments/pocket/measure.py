"""What the members of the pocket population can do, merged or not."""

from collections.abc import Sequence
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import pocket
from evojax_llm.models import hub
from evojax_llm.models import peft
from experiments.pocket import score

AVERAGE_FACTORS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
EXPERT_FACTORS = (0.5, 1.5, 2.0, 3.0)
SPLITS = ('dev', 'test')


def scale_b(tree: Any, factor: Any) -> Any:
  """The same adapters with every B multiplied; `factor` may be a tree."""
  if isinstance(tree, dict) and set(tree) == {'a', 'b'}:
    by = np.asarray(factor, np.float32)
    by = by.reshape(by.shape + (1,) * (2 * by.ndim))
    return {'a': tree['a'], 'b': tree['b'] * by}
  if isinstance(factor, dict):
    return {k: scale_b(v, factor[k]) for k, v in tree.items()}
  return {k: scale_b(v, factor) for k, v in tree.items()}


def stack(members: Sequence[Any]) -> Any:
  """Members to a population with a leading P axis."""
  return jax.tree.map(lambda *x: jnp.stack(x), *members)


class Measure:
  """Accuracy in per cent of members on tasks, nothing scored twice."""

  def __init__(self, limit: int | None):
    self.config, self.params = hub.load_checkpoint(pocket.base_folder())
    found = peft.load_adapters(pocket.expert_folders(), self.config)
    self.experts = scale_b(found.factors, found.scale)
    self.names = found.names
    self._tasks = {
      name: json.loads(pocket.task_file(name).read_text())
      for name in pocket.task_names()
    }
    self._limit = limit
    self._known: dict[tuple[str, str], dict[str, float]] = {}

  def member(self, label: str) -> Any:
    """`base`, an expert's name, or `average`; `label*2.0` scales B."""
    name, _, factor = label.partition('*')
    if name in self.names:
      i = self.names.index(name)
      tree = jax.tree.map(lambda x: x[i], self.experts)
    else:
      tree = jax.tree.map(lambda x: x.mean(0), self.experts)
    by = 0.0 if name == 'base' else float(factor or 1.0)
    return scale_b(tree, by)

  def __call__(self, labels: Sequence[str], task: str, split: str):
    """Accuracy by label."""
    known = self._known.setdefault((task, split), {})
    new = [label for label in labels if label not in known]
    if new:
      population = stack([self.member(label) for label in new])
      rows = score.split_rows(self._tasks[task], split, self._limit)
      right = score.correct(self.config, self.params, population, rows)
      for label, value in zip(new, right.mean(axis=1), strict=True):
        known[label] = 100 * float(value)
    return {label: known[label] for label in labels}

  def stage(self, labels: Sequence[str], tasks: Sequence[str], split: str):
    """Mean accuracy over tasks, by label."""
    found = [self(labels, task, split) for task in tasks]
    return {k: float(np.mean([f[k] for f in found])) for k in labels}


def stage_row(measure: Measure, tasks: Sequence[str]) -> dict[str, Any]:
  """The baselines of one stage: {column: {label, dev, test}}."""

  def best(labels):
    dev = measure.stage(labels, tasks, 'dev')
    label = max(labels, key=dev.get)
    test = measure.stage([label], tasks, 'test')
    return {'label': label, 'dev': dev[label], 'test': test[label]}

  expert = best(measure.names)
  return {
    'base': best(['base']),
    'best expert': expert,
    'average': best(['average']),
    'average, B scaled': best([f'average*{f}' for f in AVERAGE_FACTORS]),
    'best expert, B scaled': best(
      [f'{expert["label"]}*{f}' for f in EXPERT_FACTORS]
    ),
  }


def markdown(result: dict[str, Any]) -> str:
  """Both tables."""
  columns = list(next(iter(result['stages'].values())))
  lines = [
    'Stages, dev / test accuracy in per cent; factors of B in brackets:',
    '',
    '| stage | ' + ' | '.join(columns) + ' |',
    '|---|' + '---|' * len(columns),
  ]
  for name, row in result['stages'].items():
    cells = []
    for cell in row.values():
      factor = cell['label'].partition('*')[2]
      text = f'{cell["dev"]:.1f} / {cell["test"]:.1f}'
      cells.append(f'{text} ({float(factor):g})' if factor else text)
    tasks = ', '.join(f'`{t}`' for t in pocket.stage(name))
    lines.append(f'| {name}: {tasks} | ' + ' | '.join(cells) + ' |')
  labels = list(next(iter(result['tasks'].values()))['test'])
  short = [label.split('_')[0] for label in labels]
  lines += [
    '',
    'Tasks, test accuracy in per cent; experts by number, their own in bold:',
    '',
    '| task | ' + ' | '.join(short) + ' |',
    '|---|' + '---|' * len(short),
  ]
  for name, row in result['tasks'].items():
    cells = [
      f'**{value:.0f}**'
      if name in label.split('_')[1:] and label != 'average'
      else f'{value:.0f}'
      for label, value in row['test'].items()
    ]
    lines.append(f'| `{name}` | ' + ' | '.join(cells) + ' |')
  lines += [
    '',
    'Experts: ' + ', '.join(f'`{n}`' for n in pocket.expert_names()),
  ]
  return '\n'.join(lines) + '\n'
