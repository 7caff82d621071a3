"""The typed configuration of a run, and configurations it is made of."""

import dataclasses
import json

from ml_collections import config_dict
import pytest

from evojax_llm.runs import fields
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.runs.run_config import StrategyConfig
from evojax_llm.systems import genome as genome_config


def test_there_and_back_again():
  strategy = StrategyConfig(
    'genome', population=5, options={'sigma': 0.2, 'merge_options': {'a': 1}}
  )
  config = RunConfig(tasks='a,b', weights=(1.0, 2.0), strategy=strategy)
  assert RunConfig.from_config(config.to_config()) == config
  assert RunConfig.from_config(config) is config
  assert RunConfig.from_config(json.loads(json.dumps(config.to_dict()))) == (
    config
  )


def test_a_configuration_file_may_change_unset_values_and_no_types():
  config = genome_config.get_config()
  config.dev_limit = 7
  config.execution.memory_budget_gib = 1.5
  config.strategy.evaluations = 100
  with pytest.raises(TypeError):
    config.test_limit = 'many'
  read = RunConfig.from_config(config)
  assert (read.dev_limit, read.test_limit) == (7, None)
  assert read.execution.memory_budget_gib == 1.5
  assert read.strategy.evaluations == 100
  assert read.strategy.options == config.strategy.options.to_dict()


def test_names_may_come_as_a_sequence():
  config = config_dict.ConfigDict({'tasks': ('a.json', 'b.json')})
  assert RunConfig.from_config(config).tasks == 'a.json,b.json'


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'sed': 1}, "config.sed. Did you mean 'seed'. Expected"),
    ({'strategy': {'populaton': 1}}, "strategy.populaton. .*'population'"),
    ('pockett', "configuration 'pockett'; expected .*systems.load reads"),
    (
      {'execution': {'memory_budget_gib': 0.0}},
      'memory_budget_gib 0.0; expected 0.0001 or more',
    ),
    (
      {'execution': {'memory_budget_gib': float('inf')}},
      'memory_budget_gib inf; expected 0.0001 or more, finite',
    ),
    ({'tasks': 5}, 'config.tasks 5; expected str'),
    ({'strategy': 'genome'}, "config.strategy 'genome'; expected options"),
    ({'strategy': {'population': 0}}, 'strategy.population 0; expected 1 or'),
    ({'execution': {'form': 'x'}}, "execution.form 'x'; expected one of 'auto"),
    ({'seed': 1 << 32}, 'expected 32 bits'),
    ({'resample': True}, 'say how many with config.dev_limit'),
    (
      {'resample': True, 'dev_limit': 2, 'racing': {'rule': 'paired'}},
      'leave one off',
    ),
    (
      {'estimate': {'rule': 'mean'}, 'racing': {'rule': 'paired'}},
      'config.racing and config.estimate both choose dev items',
    ),
    ({'estimate': {'rule': 'irt'}}, "rule 'irt'; expected one of '', 'mean'"),
    ({'estimate': {'delta': 1.5}}, 'delta 1.5; expected 0 to 1'),
  ],
)
def test_what_cannot_be_is_refused(values, message):
  with pytest.raises(UserError, match=message):
    RunConfig.from_config(values)


def test_values_are_checked_when_it_is_made_in_python():
  with pytest.raises(UserError, match='config.seeds 0; expected 1 or more'):
    RunConfig(seeds=0)
  with pytest.raises(UserError, match='config.dev_limit 0'):
    dataclasses.replace(RunConfig(), dev_limit=0)


def test_names_may_be_sequences():
  config = RunConfig().to_config()
  config.tasks, config.adapters = ['a.json', 'b.json'], ('x',)
  read = RunConfig.from_config(config)
  assert (read.tasks, read.adapters) == ('a.json,b.json', 'x')
  fields.set_text(config, 'tasks', 'c,d')
  assert RunConfig.from_config(config).tasks == 'c,d'
  fields.set_text(config, 'tasks', 'None')
  assert config.tasks == 'None'


def test_the_format_of_all_tasks():
  config = RunConfig().to_config()
  fields.set_text(config, 'format.max_new_tokens', '8')
  fields.set_text(config, 'format.choice', 'text')
  read = RunConfig.from_config(config).format
  assert (read.max_new_tokens, read.choice, read.kind) == (8, 'text', None)
  with pytest.raises(UserError, match='config.format.max_new_tokens'):
    RunConfig.from_config({'format': {'max_new_tokens': -1}})


@pytest.mark.parametrize(
  ('field', 'value', 'refused'),
  [
    ('space', 'evil:Space', True),
    ('strategy.name', 'evil.py:Search', True),
    ('strategy.options', {'merge': 'evil.merges:MIDDLE'}, True),
    ('objective', 'os:system', True),
    ('initial', ['zero', 'evil:recipe'], True),
    ('tasks', 'main, ~/evil.py', True),
    ('format.kind', 'evil:Scorer', True),
    ('tasks', 'main,lm_eval:arc_easy:acc', False),
    ('format.prompt', 'Q:x', False),
    ('model', 'folder:name', False),
    ('space', 'gates', False),
  ],
)
def test_code_that_a_run_folder_names(field, value, refused):
  config = RunConfig().to_dict()
  *parts, name = field.split('.')
  part = config
  for key in parts:
    part = part[key]
  part[name] = value
  if not refused:
    return fields.check_code(config, 'config.json')
  with pytest.raises(
    UserError, match=rf'config.json: config.{field}.*allow_co'
  ):
    fields.check_code(config, 'config.json')
