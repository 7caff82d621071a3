"""The fast scores against the engine that decodes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm import pocket
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.runs import base_and_adapters
from evojax_llm.tasks import task_files as tasks_lib
from experiments.pocket import data
from experiments.pocket import measure as measure_lib
from experiments.pocket import score

_TASKS = ('zip', 'sor.swp', 'max')


@pytest.fixture(scope='module')
def loaded():
  folders = [str(f) for f in pocket.expert_folders()[2:4]]
  return base_and_adapters.load(str(pocket.base_folder()), folders)


def test_teacher_forcing_agrees_with_the_engine(loaded):
  engine = Evaluator(
    loaded.tokenizer,
    [tasks_lib.load_task(pocket.task_file(name)) for name in _TASKS],
    limits={'dev': 40},
  ).evaluate(loaded.space, loaded.population)
  model = loaded.space.model()
  for result in engine.tasks:
    content = json.loads(pocket.task_file(result.task).read_text())
    content['dev'] = [i for i in content['dev'] if i['id'] in set(result.ids)]
    assert [i['id'] for i in content['dev']] == list(result.ids)
    found = score.correct(
      model.config,
      model.params,
      jax.tree.map(jnp.asarray, loaded.population.factors),
      score.split_rows(content, 'dev'),
    )
    np.testing.assert_array_equal(found, result.correct, result.task)
    # Else the test could not tell a scorer that says the same of everything.
    assert 0 < np.mean(found) < 1


def test_masks_hold_the_options_without_the_stop_token():
  task = data.task('max', 3, 0, seed=0)
  rows = score.split_rows(task, 'dev')
  assert rows.batch['tokens'].shape[0] == 9
  np.testing.assert_array_equal(rows.batch['answer'].sum(axis=1), 4)  # ' 123'
  assert rows.gold.shape == (3,)
  exact = score.split_rows(data.task('shf', 3, 0, seed=0), 'dev')
  for item, mask in zip(
    data.task('shf', 3, 0, seed=0)['dev'], exact.batch['answer'], strict=True
  ):
    assert mask.sum() == len(item['output']) + 1


def test_labels_of_members(loaded):
  measure = measure_lib.Measure(limit=5)
  name = measure.names[2]
  own = measure.member(name)['layers']['mlp']['up_proj']
  stored = loaded.population.factors['layers']['mlp']['up_proj']
  np.testing.assert_allclose(own['b'], stored['b'][1], rtol=1e-6)
  twice = measure.member(f'{name}*2.0')['layers']['mlp']['up_proj']
  np.testing.assert_allclose(twice['b'], 2 * own['b'], rtol=1e-6)
  np.testing.assert_array_equal(twice['a'], own['a'])
  base = measure.member('base')['layers']['mlp']['up_proj']
  assert not np.any(base['b'])
  average = measure.member('average')['layers']['mlp']['up_proj']
  experts = measure.experts['layers']['mlp']['up_proj']
  np.testing.assert_allclose(average['a'], experts['a'].mean(0), rtol=1e-6)


def test_table_chooses_on_dev_and_reports_test(monkeypatch):
  measure = measure_lib.Measure(limit=5)
  dev = {'a': 10.0, 'b': 20.0, 'c': 15.0}
  test = {'a': 30.0, 'b': 1.0, 'c': 2.0}
  monkeypatch.setattr(measure, 'names', tuple(dev))

  def stage(labels, tasks, split):
    values = dev if split == 'dev' else test
    return {k: values.get(k.split('*')[0], 0.0) for k in labels}

  monkeypatch.setattr(measure, 'stage', stage)
  row = measure_lib.stage_row(measure, ['zip'])
  assert row['best expert'] == {'label': 'b', 'dev': 20.0, 'test': 1.0}
  assert row['best expert, B scaled']['label'].startswith('b*')
