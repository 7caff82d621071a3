"""Estimates of fitness in a run: what they are learnt from, save and miss.

Before the search the baselines answer all dev items. From what they did the
items' parameters are fitted, the anchors drawn, and both kept in estimate.json,
which another run on these items may read with `config.estimate.parameters`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np

from evojax_llm.fitness import estimates
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import errors
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.preparation import Prepared

_FILE = 'estimate.json'


class Finals(NamedTuple):
  """The best members by their estimates, scored on all of dev."""

  members: run_state.Members
  scores: Evaluation
  summary: Mapping[str, Any]  # what estimates saved and were off by


@dataclasses.dataclass(frozen=True)
class Estimation:
  """The estimator of a run, and what it was off where that is known.

  Attributes:
    estimator: of the tasks.
    experts: `estimates.error` on the experts, left out of what it is fitted to.
  """

  estimator: estimates.Estimator
  experts: Mapping[str, Any]

  def settle(
    self,
    state: run_state.RunState,
    prepared: Prepared,
    births: Mapping[int, int],
  ) -> tuple[run_state.Member, Finals]:
    """Scores the best members by their estimates on dev; the best of them ends.

    As many as `config.estimate.finalists` says, and as may be in the vote;
    `births` tells generations by id.
    """
    config, evaluator = prepared.config, prepared.evaluator
    members = run_state.best_members(
      state,
      max(config.estimate.finalists, config.ensemble.size),
      prepared.strategy.keep_best,
    )
    scores = setup_lib.score_few(
      evaluator, prepared.setup.space, members.population
    )
    alive = np.isfinite(scores.fitness)
    best = int(np.argmax(np.where(alive, scores.fitness, -np.inf)))
    found = run_state.Member(
      genome=stack.take(members.population, best),
      id=members.ids[best],
      fitness=scores.fitness[best],
      task_scores=scores.task_scores[best],
      generation=births.get(members.ids[best], int(state.generation)),
    )
    asked, total = _sizes(prepared)
    evaluations = int(state.evaluations)
    # Of the search, and of its finalists, which are asked all at the end.
    read, whole = evaluations * asked + len(alive) * total, evaluations * total
    summary = {
      'rule': prepared.estimate.rules.rule,
      'anchors': asked,
      'items': total,
      'asked': read,
      'of': whole,
      'saving': 1 - read / whole,
      'finalists': {
        'members': members.ids,
        'estimated': members.fitness,
        'scored': scores.fitness,
      },
      'error': {
        'experts': self.experts,
        'finalists': estimates.error(members.fitness, scores.fitness),
      },
    }
    return found, Finals(members, scores, summary)


def prepare(
  run: record.RunFolder, prepared: Prepared, baselines: Any
) -> Estimation | None:
  """Makes the estimator of a run, or reads it again; None without any."""
  if prepared.estimate is None:
    return None
  names = [task.name for task in prepared.setup.tasks]
  ids = [[item.id for item in s] for s in prepared.evaluator.items('dev')]

  def read(kept):
    tasks = []
    for name, known in zip(names, ids, strict=True):
      own = kept['tasks'][name]
      anchors = np.asarray(own['anchors'], np.int64)
      if [known[i] for i in anchors] != own['ids']:
        raise ValueError(f'{name} has other items')
      task = estimates.TaskEstimator(
        prepared.estimate.rules,
        estimates.items_of(kept, name, known),
        anchors,
        np.asarray(own['weights'], np.float64),
        np.asarray(list(own['abilities'].values()), np.float64),
      )
      tasks.append(task)
    return Estimation(estimates.Estimator(tasks), kept['experts'])

  def make():
    return _learn(run, prepared, baselines, names, ids)

  found = record.kept(run.path / _FILE, read, make)
  asked, total = _sizes(prepared)
  off = report.off(found.experts, prepared.evaluator.objective.percent)
  errors.say(
    f'estimate {prepared.estimate.rules.rule}: {asked} of {total} dev items a '
    f'member; experts that it has not seen: {off}'
  )
  return found


def _learn(run, prepared, baselines, names, ids) -> dict[str, Any]:
  """The content of estimate.json, from what the baselines did."""
  given, rules = prepared.estimate.given, prepared.estimate.rules
  results = baselines_lib.item_results(run)
  count = len(prepared.setup.experts.names)
  # The base, the experts, and averages of them; what failed tells nothing.
  alive = np.isfinite([task.values.sum(axis=1) for task in results]).all(axis=0)
  alive[1 : 1 + count] &= np.isfinite(baselines.expert_scores).all(axis=1)
  kept = np.flatnonzero(alive)
  experts = [i for i, row in enumerate(kept) if 1 <= row <= count]
  named = [prepared.setup.experts.names[kept[i] - 1] for i in experts]
  if not len(kept) or (rules.mixes and len(experts) < 2):
    raise errors.UserError(
      f'config.estimate: {len(experts)} of the {count} experts could be scored '
      "on dev; expected two at least to combine. rule='pirt' needs none."
    )
  tasks, columns = {}, []
  for k, (name, result) in enumerate(zip(names, results, strict=True)):
    values = result.values[kept]
    own = given[k] if given else None
    made = estimates.make(rules, values, experts, k, own)
    columns.append(estimates.left_out(made, values, experts, bool(given)))
    items = made.items
    tasks[name] = {
      'anchors': made.anchors,
      'ids': [ids[k][i] for i in made.anchors],
      'weights': made.weights,
      'abilities': dict(zip(named, made.experts, strict=True)),
      'items': {
        item: {'slopes': slopes, 'difficulty': difficulty}
        for item, slopes, difficulty in zip(
          ids[k], items.slopes, items.difficulties, strict=True
        )
      },
    }
  objective = prepared.evaluator.objective
  real = baselines.expert_scores[kept[experts] - 1]
  off = estimates.error(objective(np.stack(columns, axis=1)), objective(real))
  return {'rule': rules.rule, 'experts': off, 'tasks': tasks}


def _sizes(prepared: Prepared) -> tuple[int, int]:
  """How many dev items a member is asked, and how many there are."""
  counts = [len(items) for items in prepared.evaluator.items('dev')]
  return sum(map(prepared.estimate.rules.count, counts)), sum(counts)
