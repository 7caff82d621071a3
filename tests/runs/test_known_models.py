"""Members that are the same model are scored once in a run."""

import contextlib
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.engine.ledger import Ledger
from evojax_llm.fitness.evaluation import Evaluation
from evojax_llm.fitness.item_log import TaskItems
from evojax_llm.genomes import initial
from evojax_llm.genomes import space as space_lib
from evojax_llm.population import stack
from evojax_llm.runs import evolution
from evojax_llm.runs import front
from evojax_llm.runs import known_models
from evojax_llm.runs import record
from evojax_llm.runs import run_config
from evojax_llm.runs import runner
from evojax_llm.strategies import registry

MODELS, SIZE = 3, 4


class Space(space_lib.Space):
  """A genome is one number, which stands for one of a few models."""

  names, decodes = ('x',), True

  def __init__(self):
    self.told = 0

  def recipe(self, genome):
    """Counts how often a member is told."""
    self.told += 1
    return {'third': int(min(genome['x'][0] * MODELS, MODELS - 1))}

  def base(self):
    return {'x': jnp.zeros(1)}

  def experts(self):
    return {'x': jnp.ones((1, 1))}

  def sample(self, key, **options):
    return {'x': jax.random.uniform(key, (1,))}

  def bounds(self):
    return self.base(), {'x': jnp.ones(1)}


class Objective:
  """The score of the one task."""

  percent, maximise = True, None

  def __call__(self, tasks):
    return tasks[:, 0]


class Engine:
  """Scores the models, and counts how often."""

  def __init__(self):
    self.ledger, self.scored = Ledger(), []
    self.objective = Objective()

  def models(self, space, population):
    which = np.minimum(np.asarray(population['x'])[:, 0] * MODELS, MODELS - 1)
    return [str(int(i)) for i in which]

  def evaluate(self, space, population, members, progress=None):
    """One model fails; those of one name count once, as in the engine."""
    names = self.models(space, population)
    names = [names[m] for m in members]
    self.scored += sorted(set(names))
    number = np.array([int(name) for name in names])
    values = (number[:, None] > np.arange(2)).astype(np.float32)
    fitness = np.where(number, values.mean(axis=1), np.nan).astype(np.float32)
    said = [[f'{name} said', None] for name in names]
    items = TaskItems('t', 'accuracy', True, True, ['a', 'b'], values, said)
    reasons = [None if name != '0' else 'it is bad' for name in names]
    return Evaluation(
      fitness, fitness[:, None], [items], reasons, distinct=len(set(names))
    )


@contextlib.contextmanager
def opened(folder, **given):
  """A run of a few generations of random members, and its engine."""
  config = run_config.RunConfig.from_config(
    {
      'model': 'x',
      'adapters': ['x'],
      'tasks': ['t'],
      'strategy': {
        'name': 'random_search',
        'population': SIZE,
        'generations': 4,
      },
      **given,
    }
  )
  space, engine = Space(), Engine()
  drawn = jax.vmap(space.sample)(jax.random.split(jax.random.key(1), SIZE))
  prepared = types.SimpleNamespace(
    config=config,
    evaluator=engine,
    racing=None,
    refinement=None,
    strategy=registry.make_strategy('random_search', SIZE, space),
    params=None,
    goals=front.Goals(('t',), (), np.ones(1, bool), np.ones(1, bool)),
    setup=types.SimpleNamespace(
      space=space, tasks=[types.SimpleNamespace(name='t')]
    ),
    initial=lambda: initial.Initial(
      drawn, ('random',) * SIZE, np.full((SIZE, 2), -1), ()
    ),
  )
  engine.redraw = lambda draw: engine
  with contextlib.closing(record.RunFolder(folder, {})) as run_folder:
    run = runner._Run(prepared, run_folder)
    run.look_for_signal = lambda: None
    save, run.saved = run_folder.checkpoints.save, []

    def noted(number, state):
      run.saved.append(number)
      save(number, state)

    run_folder.checkpoints.save = noted
    yield run, engine


def lines(run):
  return run.folder.members.read()


def test_a_model_is_scored_once_however_a_run_is_cut(tmp_path):
  with opened(tmp_path / 'whole') as (run, engine):
    state = jax.device_get(run.search(None))
    whole, metrics = lines(run), run.folder.metrics.read()
    told, saved = run.prepared.setup.space.told, run.saved
  new, counts = [], [0, *(row['evaluations'] for row in metrics)]
  for number, (before, after) in enumerate(itertools.pairwise(counts)):
    new += [number] if after > before else []
  # What scored nothing new is not saved, but for the end.
  assert saved == [*new, 4] and new[-1] < 3
  # Nor is it told again what a known model is.
  assert told <= SIZE * len(new)
  assert sorted(engine.scored) == ['0', '1', '2']
  assert int(state.evaluations) == MODELS
  assert len(whole) == 5 * SIZE
  for row in whole:
    number = int(row['model'])
    assert row['fitness'] == row['tasks']['t'] == (None, 0.5, 1)[number]
    assert row['recipe'] == {'third': number}
    assert (row['reason'] == 'it is bad') == (number == 0)
  for generation in run.folder.items.read():
    models = {row['id']: row['model'] for row in whole}
    (task,) = generation.tasks
    for member, said in zip(generation.members, task.predictions, strict=True):
      assert said.tolist() == [f'{models[member]} said', None]

  class Killed(Exception):
    pass

  with opened(tmp_path / 'cut') as (run, engine):
    kept = run.folder.metrics.append

    def append(rows):
      if rows[0]['generation'] == 4:
        raise Killed
      kept(rows)

    run.folder.metrics.append = append
    with pytest.raises(Killed):
      run.search(None)
  with opened(tmp_path / 'cut') as (run, engine):
    abstract = jax.eval_shape(lambda: state)
    number, found = run.folder.checkpoints.restore(abstract)
    run.folder.rewind(number)
    run.number = number
    again = jax.device_get(run.search(found))
    assert number == max(new) and lines(run) == whole and run.saved == [4]
    assert [row['evaluations'] for row in run.folder.metrics.read()] == [
      row['evaluations'] for row in metrics
    ]
  assert not engine.scored
  jax.tree.map(np.testing.assert_array_equal, again, state)
  for path in (tmp_path / 'whole' / 'items').iterdir():
    assert (tmp_path / 'cut' / 'items' / path.name).read_bytes() == (
      path.read_bytes()
    )


def test_other_items_are_other_scores(tmp_path):
  with opened(tmp_path / 'run', resample=True, dev_limit=2) as (run, engine):
    run.search(None)
  assert len(engine.scored) > MODELS


def test_what_is_damaged_or_beyond_the_budget_is_not_known(tmp_path):
  with opened(tmp_path / 'run') as (run, engine):
    run.search(None)
    known, population = (
      known_models.KnownModels(run.folder),
      {'x': np.ones((1, 1))},
    )

    def score(members):
      return engine.evaluate(None, population, members)

    engine.scored.clear()
    assert known.evaluate(['2'], [0], score, engine.objective).distinct == 0
    assert not engine.scored
    for path in run.folder.items.folder.iterdir():
      path.write_bytes(b'')
    # What was asked for last is in memory, and read by another process.
    assert known.evaluate(['2'], [0], score, engine.objective).fitness == 1
    assert not engine.scored
    known = known_models.KnownModels(run.folder)
    assert known.evaluate(['2'], [0], score, engine.objective).fitness == 1
    assert engine.scored == ['2']
    known.add([{'model': 'new', 'reason': evolution.SPENT}])
    assert known.evaluate(['new'], [0], score, engine.objective).distinct == 1
    assert stack.size(population) == 1
