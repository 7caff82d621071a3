"""From a configuration to an evaluator."""

import dataclasses

import pytest

from evojax_llm import pocket
from evojax_llm.runs import errors
from evojax_llm.runs import inputs
from evojax_llm.runs import preparation
from evojax_llm.runs import setup
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.systems import genome as genome_config
from tests.experiments import runs


@pytest.fixture(scope='module')
def made(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  """(configuration, what it reads): two tasks and one that is held out."""
  folder = tmp_path_factory.mktemp('problem')
  tasks = [
    str(runs.write_task(folder / f'{n}.json', dev=100, test=12, seed=i))
    for i, n in enumerate('abc')
  ]
  config = genome_config.get_config()
  config.model = str(tiny_gemma_folder('gemma2'))
  config.adapters = ','.join(map(str, tiny_adapter_folders(2, 'gemma2')))
  config.tasks, config.heldout_tasks = ','.join(tasks[:2]), tasks[2]
  config.dev_limit = 40
  config = RunConfig.from_config(config)
  return config, setup.load(config, inputs.locate(config))


def test_few_items_to_search_on_are_a_warning(made, caplog):
  config, loaded = made
  setup.make_evaluator(config, loaded)
  # Twelve items, but nothing is fitted to them.
  setup.make_heldout(config, loaded)
  assert not caplog.text
  config = dataclasses.replace(config, dev_limits=(40, 39))
  setup.make_evaluator(config, loaded)
  assert 'scores only 79 dev items' in caplog.text
  assert 'up to 5.6 points' in caplog.text


def test_what_is_given_twice_or_beyond_what_there_is_is_said(made, capsys):
  config, _ = made
  values = {'dev_limit': 101, 'test_limits': (13, 12)}
  config = dataclasses.replace(
    config, adapters=f'{config.adapters},{config.adapters}', **values
  )
  (task, _) = setup.load(config, inputs.locate(config)).tasks
  said = capsys.readouterr().err
  assert 'warning: 2 of the 4 experts are the same folder' in said
  assert 'a has 100 dev items, fewer than the 101 of config.dev_limit:' in said
  assert 'b has 100 dev items' in said
  assert 'a has 12 test items, fewer than the 13 of config.test_limits' in said
  assert 'b has 12 test' not in said
  tasks = [dataclasses.replace(task, test=task.test[:n]) for n in (0, 1)]
  setup._say_limits(config, tasks)
  said = capsys.readouterr().err
  assert 'a has no test items: nothing unseen will be reported; put' in said
  assert 'a has 1 test item, fewer than' in said


def test_names_of_the_hub(made, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
  config, _ = made
  values = {'model': 'google/gemma-x', 'adapters': 'me/code'}
  config = dataclasses.replace(config, **values)
  with pytest.raises(ValueError, match='hf download google/gemma-x'):
    inputs.locate(config)
  for name in values.values():
    folder = tmp_path / f'models--{name.replace("/", "--")}' / 'snapshots/1'
    folder.mkdir(parents=True)
  found = inputs.locate(config)
  assert found.name == 'gemma-x'
  assert found.model.parents[1].name == 'models--google--gemma-x'
  assert found.adapters[0].parents[1].name == 'models--me--code'


@pytest.mark.parametrize(
  ('values', 'dev', 'test', 'heldout'),
  [
    ({}, [100, 100], [12, 12], 12),
    ({'dev_limit': 7, 'test_limit': 3}, [7, 7], [3, 3], 3),
    ({'test_limit': 3}, [100, 100], [3, 3], 3),
    ({'dev_limit': 7}, [7, 7], [12, 12], 12),
    ({'dev_limits': (5, 6), 'test_limits': (3, 2)}, [5, 6], [3, 2], 12),
  ],
)
def test_limits_of_dev_and_of_test_are_apart(made, values, dev, test, heldout):
  config, loaded = made
  config = dataclasses.replace(config, **{'dev_limit': None, **values})
  evaluator = setup.make_evaluator(config, loaded)
  assert [len(items) for items in evaluator.items('dev')] == dev
  assert [len(items) for items in evaluator.items('test')] == test
  (items,) = setup.make_heldout(config, loaded).items('dev')
  assert len(items) == heldout


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {'adapters': 'x'},
      'x is an expert of some model: name it with --config.m',
    ),
    ({'experts': 'x', 'space': 'weights'}, 'x is an expert of some model'),
    (
      {'space': 'weights', 'execution': {'base_dtype': 'int8'}},
      'members of config.space=weights share nothing',
    ),
    ({'space': 'coefficients'}, "Did you mean 'gates'"),
    (
      {'experts': 'pocket', 'space': 'gates'},
      'set config.space=weights and .* or extract it:\n  evojax-llm extract '
      '--model=pocket:dense_00_sor_com_evn --base=pocket '
      '--out=adapters/dense_00_sor_com_evn\n',
    ),
    ({'adapters': 'pocket:dense_02_zip_del_ded'}, 'evojax-llm extract --model'),
    (
      {'adapters': 'pocket:dense_02_zip_del_ded', 'space': 'weights'},
      'whole model: name it in config.experts',
    ),
    (
      {'experts': 'pocket:02_zip_del_ded', 'space': 'weights'},
      'is an adapter: name it in config.adapters',
    ),
  ],
)
def test_spaces_that_cannot_be_made_are_refused(values, message):
  with pytest.raises(errors.UserError, match=message):
    inputs.locate(RunConfig.from_config(values))


def test_experts_of_the_pocket_are_named():
  values = {'adapters': 'pocket:04_dup_max_swp', 'experts': 'pocket'}
  config = RunConfig.from_config({**values, 'space': 'weights'})
  found = inputs.locate(config)
  assert found.adapters == (pocket.expert_folder('04_dup_max_swp'),)
  assert found.experts == pocket.dense_folders()
  assert found.expert_names == ('04_dup_max_swp', *pocket.dense_names())
  config = RunConfig.from_config({'adapters': 'pocket', 'space': 'gates'})
  assert inputs.locate(config).adapters == pocket.expert_folders()


def test_spaces_of_one_process_share_model_and_tokenizer(made, monkeypatch):
  config, cache = made[0], {}
  first = preparation.prepare(config, cache=cache).setup
  monkeypatch.setattr(setup.Tokenizer, 'from_folder', None)
  other = dataclasses.replace(config, space='gates')
  second = preparation.prepare(other, cache=cache).setup
  assert second.tokenizer is first.tokenizer
  assert second.experts.model() is first.experts.model()
