"""The end of a search: its member, its votes, and all that are read with them.

Members that vote, their order and their number are chosen on `dev`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import ensembles
from evojax_llm.fitness import evaluation
from evojax_llm.genomes.space import Space
from evojax_llm.models import expression
from evojax_llm.population import sharding
from evojax_llm.population import stack
from evojax_llm.runs import baselines as baselines_lib
from evojax_llm.runs import errors
from evojax_llm.runs import report
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.preparation import Prepared
from evojax_llm.tasks.scorers.registry import scorer_of


def settle(state: run_state.RunState, prepared: Prepared) -> run_state.Member:
  """Returns the member that a search ends with.

  It is scored on dev where its scores are not those of this genome on the items
  of the evaluator, because these were others or the member has moved. Nothing
  is chosen by it, so it is no evaluation.
  """
  evaluator = prepared.evaluator
  best = run_state.best_of(state, evaluator.objective.maximise)
  if not prepared.strategy.keep_best:
    found = run_state.best_members(state, 1, keep_best=False)
    best = dataclasses.replace(
      best,
      genome=stack.take(found.population, 0),
      id=found.ids[0],
      generation=int(state.generation),
    )
  elif not prepared.config.resample:
    return best
  genome = jax.tree.map(lambda leaf: leaf[None], best.genome)
  scores = setup_lib.score_few(evaluator, prepared.setup.space, genome)
  return dataclasses.replace(
    best, fitness=scores.fitness[0], task_scores=scores.task_scores[0]
  )


def pick(
  state: run_state.RunState, prepared: Prepared, births: Mapping[int, int]
) -> tuple[run_state.Member, run_state.RunState]:
  """Returns the member that is best on the dev items that are held back.

  All members that are alive or remembered are asked, and counted in the state
  that is returned. The scores of the member are those on the items of the
  search; `births` tells generations by id.
  """
  space, config = prepared.setup.space, prepared.config
  members = run_state.best_members(
    state, stack.MOST_MEMBERS, prepared.strategy.keep_best
  )
  reader = setup_lib.pick_evaluator(prepared.evaluator, config, prepared.setup)
  scores = setup_lib.score_few(reader, space, members.population)
  alive = np.isfinite(scores.fitness)
  best = int(np.argmax(np.where(alive, scores.fitness, -np.inf)))
  id_, genome = members.ids[best], stack.take(members.population, best)
  shown = report.number(
    scores.fitness[best], prepared.evaluator.objective.percent, ' %'
  )
  errors.say(
    f'member {id_}, of {len(members.ids)}, is picked by the dev items held '
    f'back: {shown} there'
  )
  own = setup_lib.score_few(prepared.evaluator, space, stack.stack([genome]))
  found = run_state.Member(
    genome=genome,
    id=id_,
    fitness=own.fitness[0],
    task_scores=own.task_scores[0],
    generation=births.get(id_, int(state.generation)),
  )
  asked = scores.distinct or len(members.ids)
  return found, state.replace(evaluations=state.evaluations + jnp.int32(asked))


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """A group of members that dev chose, whose answers are put together."""

  rule: str  # how it decides
  members: list[int]  # k ids, or indices of experts; the best by dev first
  fitness: np.ndarray  # (k,) f32 on dev
  by_size: list[float]  # fitness on dev of the best 1, 2, ... together
  dev: np.ndarray  # (K,) f32 task scores on dev
  bound: float  # fitness on dev of an oracle that knows which member is right
  evaluations: int = 0  # members scored on dev for it, after the search
  population: Any = None  # genomes, leaves (k, ...); None for experts

  @property
  def detail(self) -> str:
    """The rule and the number of members, for the table."""
    if len(self.members) == 1:
      return 'no vote: 1 is best alone'
    rule = 'vote' if self.rule == ensembles.AUTO else self.rule
    return f'{rule} of {len(self.members)}'


def choose(
  evaluator: Any,
  options: Any,
  ids: Sequence[int],
  task_scores: np.ndarray,
  answers: Callable[[Sequence[int]], Sequence[Any]],
  population: Any = None,
  evaluations: int = 0,
) -> Ensemble | None:
  """Chooses those of M members that vote; None where under two were scored.

  Args:
    evaluator: of the tasks.
    options: `size`, `rule` and, of members, `fixed` of the configuration.
    ids: of members, or indices of experts.
    task_scores: (M, K) f32 on dev.
    answers: returns what those at some indices did on the dev items, by task.
    population: genomes (M, ...) of members; None for experts.
    evaluations: members scored on dev for it.
  """
  fitness = evaluator.objective(task_scores)
  alive = np.flatnonzero(np.isfinite(fitness)).tolist()
  # The best first, then the elder.
  order = sorted(alive, key=lambda i: (-fitness[i], i))[: options.size]
  if len(order) < 2:
    return None
  scorers = [scorer_of(task) for task in evaluator.tasks]
  group = ensembles.Group(fitness[order], task_scores[order], answers(order))
  size, by_size = ensembles.choose_size(
    options.rule, group, scorers, evaluator.items('dev'), evaluator.objective
  )
  if population is not None:
    size = len(order) if options.fixed else size
    population = stack.take(population, np.asarray(order[:size], np.int32))
  return Ensemble(
    rule=options.rule,
    members=[ids[i] for i in order[:size]],
    fitness=group.fitness[:size],
    by_size=evaluator.objective(by_size).tolist(),
    dev=by_size[size - 1],
    bound=_bound(evaluator, group.take(range(size)), scorers),
    evaluations=evaluations,
    population=population,
  )


def group_of(
  scores: Any, indices: Sequence[int], fitness: np.ndarray
) -> ensembles.Group:
  """Returns members of an `Evaluation` as a group, with their dev fitness."""
  everyone = np.zeros(len(scores.task_scores)), scores.task_scores, scores.tasks
  group = ensembles.Group(*everyone).take(indices)
  return dataclasses.replace(group, fitness=fitness)


def with_vote(
  scores: Any,
  members: Sequence[int],
  rule: str,
  fitness: np.ndarray,
  tasks: Sequence[Any],
) -> Any:
  """Returns an `Evaluation` with what a vote decides as one member more.

  Of M members, scored on the dev items of K tasks, k vote, the best first, with
  (k,) f32 `fitness`; `rule` is one of `fitness.ensembles`.
  """
  group = group_of(scores, members, fitness)
  scorers = [scorer_of(task) for task in tasks]
  decided = ensembles.decide(rule, group, scorers, [t.dev for t in tasks])
  results = []
  for result, stands in zip(
    scores.tasks, ensembles.standing(rule, group, scorers), strict=True
  ):
    columns = range(len(result.ids))
    # Without answers the best member stands.
    slots = [members[0 if stands is None else stands[i]] for i in columns]
    values = result.values[slots, columns]
    added = {'values': np.concatenate([result.values, values[None]])}
    for name in ('predictions', 'loglikelihoods'):
      if (kept := getattr(result, name)) is not None:
        of_member = {slot: kept[slot] for slot in set(slots)}
        stood = [of_member[slot][i] for i, slot in enumerate(slots)]
        added[name] = [*kept, stood]
    results.append(dataclasses.replace(result, **added))
  failed = None if np.isfinite(decided).all() else 'its members failed'
  return dataclasses.replace(
    scores,
    task_scores=np.concatenate([scores.task_scores, decided[None]]),
    tasks=results,
    reasons=[*scores.reasons, failed],
  )


def score_vote(
  evaluator: Any,
  split: str,
  ensemble: Ensemble,
  scores: Any,
  indices: Sequence[int],
) -> tuple[np.ndarray, float]:
  """Scores what an ensemble decides on the items of a split.

  Of M members in `scores`, those at k `indices` are its members. Returns (K,)
  f32 task scores, and the fitness of the oracle.
  """
  group = group_of(scores, indices, ensemble.fitness)
  scorers = [scorer_of(task) for task in evaluator.tasks]
  decided = ensembles.decide(
    ensemble.rule, group, scorers, evaluator.items(split)
  )
  return decided, _bound(evaluator, group, scorers)


def _bound(evaluator, group, scorers) -> float:
  scores = ensembles.bound(group, scorers)
  return float(evaluator.objective(scores[None])[0])


class Finalists:
  """Baselines, experts (by index) and members, scored together.

  Attributes:
    names: M names: of baselines, 'expert X', 'member 12'.
  """

  def __init__(
    self,
    setup: setup_lib.Setup,
    baselines: Sequence[Mapping[str, Any]],
    experts: Sequence[int],
    ids: Sequence[int],
    genomes: Any,
    tuned: Any = None,
  ):
    self._experts = [f'expert {name}' for name in setup.experts.names]
    mixes = baselines_lib.mixes_of(baselines)
    self.names = list(mixes)
    # An expert may be among the baselines; reading it twice would cost twice.
    self._slots = {
      f'expert {row["detail"]}': slot
      for slot, row in enumerate(baselines)
      if row['name'] == 'best expert'
    }
    more = [i for i in experts if self._experts[i] not in self._slots]
    added = [self._experts[i] for i in more]
    added += [report.FINE_TUNED] * (tuned is not None)
    added += [f'member {id_}' for id_ in ids]
    self._slots |= {name: len(self.names) + i for i, name in enumerate(added)}
    self.names += added
    mixed = [*mixes.values()]
    mixed += [baselines_lib.single(i, len(self._experts)) for i in more]
    mixed = baselines_lib.mix_experts(setup.experts, mixed)
    if tuned is not None:
      mixed = _joined(mixed, tuned)
    self._setup, space = setup, setup.space
    self._apart = None
    if setup.space.exports == 'path':
      self._apart = setup.experts, _joined(mixed)
      self._own = space, genomes
      return
    if setup.space is not setup.experts:
      # Members of two spaces are one population once they are expressed alike.
      pairs = (setup.experts, mixed), (setup.space, genomes)
      if setup.space.exports == 'model':
        mixed, genomes = (_models(*pair) for pair in pairs)
      else:
        mixed, genomes = expression.of_one_rank(
          *(_low_rank(*pair) for pair in pairs)
        )
      space = setup.expressed
    self._own = space, _joined(mixed, genomes)

  def score(
    self,
    evaluator: Any,
    split: str,
    progress: Callable[[float], None],
    group: int | None = None,
  ) -> Any:
    """Returns the `Evaluation` of all M on a split.

    `group` is of an evaluator without a plan: members of a program call at
    most, in place of M, which differs from run to run.
    """
    how = {'split': split, 'progress': progress}

    def planned(evaluator, space, population):
      if evaluator.plan is None:
        evaluator.prepare(space, population, members=group)
      return evaluator

    evaluator = planned(evaluator, *self._own)
    if self._apart is None:
      return evaluator.evaluate(*self._own, **how)
    apart = setup_lib.of_experts(evaluator, self._setup)
    return evaluation.joined(
      planned(apart, *self._apart).evaluate(*self._apart, **how),
      setup_lib.score_few(evaluator, *self._own, **how),
    )

  def index(self, row: Mapping[str, Any]) -> int:
    """Returns the index of what a row of the table is of."""
    name = row['detail'] if row['name'] == report.EVOLVED else row['name']
    return self.names.index(name)

  def indices(self, group: Ensemble) -> list[int]:
    """Returns the indices of the members of a group."""
    if group.population is None:
      return [self._slots[self._experts[i]] for i in group.members]
    return [self._slots[f'member {id_}'] for id_ in group.members]


def _joined(*populations: Any) -> Any:
  """Puts populations of one space behind each other, factors to one rank.

  They stay on the host, from where a group at a time goes to the devices.
  """
  shapes = {
    tuple(leaf.shape[1:] for leaf in jax.tree.leaves(population))
    for population in populations
  }
  if len(shapes) > 1:
    members = map(expression.LowRank, populations)
    populations = [m.factors for m in expression.of_one_rank(*members)]
  return jax.tree.map(
    lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
    *populations,
  )


def _low_rank(space: Space, population: Any) -> expression.LowRank:
  params = space.model().params
  return jax.vmap(
    lambda genome: expression.as_low_rank(space.express(genome), params)
  )(population)


def _models(space: Space, population: Any) -> expression.Weights:
  """Members as models, on the host one by one."""
  models = [
    sharding.to_host(space.express(stack.take(population, jnp.int32(i))))
    for i in range(stack.size(population))
  ]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *models)
