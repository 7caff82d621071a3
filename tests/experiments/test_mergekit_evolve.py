"""Configurations of mergekit-evolve, read and refused."""

import jax
import numpy as np
import pytest
import yaml

from evojax_llm import systems
from evojax_llm.models import hub
from evojax_llm.runs.run_config import RunConfig
from tests.experiments import runs
from tests.experiments.running import run_program


@pytest.fixture(scope='module')
def folders(tiny_gemma_folder, tiny_adapter_folders):
  """A base, two models with an adapter, and another model."""
  base = str(tiny_gemma_folder('gemma2'))
  other = str(tiny_gemma_folder('gemma2', seed=1))
  return base, [f'{base}+{a}' for a in tiny_adapter_folders(2)], other


def write(path, genome, **top):
  raw = {'genome': genome, 'tasks': ['sor'], **top}
  path.write_text(yaml.safe_dump(raw))
  return str(path)


def read(path, genome, **top):
  return RunConfig.from_config(systems.load(write(path, genome, **top)))


@pytest.mark.parametrize(
  'method, changes, expected, members',
  [
    ('dare_ties', {}, {'options': 'normalize=weights'}, 8),
    ('ties', {'normalize': False}, {'options': 'normalize=none'}, 8),
    ('task_arithmetic', {}, {'options': 'normalize=none', 'on': 'exact'}, 6),
    ('linear', {}, {'evolve': 'weights', 'on': 'exact'}, 6),
    ('slerp', {}, {'evolve': 'weights', 'weights': 'free', 'options': ''}, 6),
    ('ties', {'allow_negative_weights': True}, {'weights': 'free'}, 8),
    ('ties', {'layer_granularity': 1}, {'groups': 'layers:1'}, 10),
    ('ties', {'layer_granularity': 2}, {'groups': 'layers:2'}, 8),
    (
      'ties',
      {'layer_granularity': 1, 'smooth': True},
      {'groups': 'knots:2'},
      10,
    ),
    ('ties', {'smooth': True}, {'groups': 'model'}, 8),
    (
      'ties',
      {'layer_granularity': 1, 'filters': ['self_attn', 'mlp']},
      {'groups': 'layers:1,filters:self_attn/mlp'},
      13,
    ),
  ],
)
def test_a_genome_is_a_space(
  method, changes, expected, members, folders, tmp_path
):
  base, models, _ = folders
  genome = {'models': models, 'merge_method': method, 'base_model': base}
  config = read(tmp_path / 'e.yml', {**genome, **changes})
  default = {
    'method': method,
    'evolve': 'weights,density' if 'ties' in method else 'weights',
    'groups': 'model',
    'weights': 'absolute',
    'on': 'weights',
    **expected,
  }
  found = {name: getattr(config.merged, name) for name in default}
  assert found == default
  assert config.space == 'merged' and config.model == base
  assert config.adapters == ','.join(m.partition('+')[2] for m in models)
  strategy = config.strategy
  assert strategy.name == 'cma_es' and strategy.options['sigma'] == 1 / 6
  assert (strategy.population, strategy.evaluations) == (members, 100)
  assert config.initial == ('averages',)


def test_models_of_all_kinds_are_named(folders, tmp_path):
  base, models, other = folders
  ties = {'merge_method': 'ties', 'base_model': base}
  # Of a base among the models there is no change.
  config = read(
    tmp_path / 'e.yml', {**ties, 'models': [models[0], base, other]}
  )
  assert config.experts == other
  assert config.adapters == models[0].partition('+')[2]
  dense = {'models': [base, other], 'merge_method': 'linear'}
  config = read(tmp_path / 'e.yml', dense)
  assert (config.model, config.experts) == (base, f'{base},{other}')
  assert config.merged.on == 'weights' and not config.adapters


def test_tasks_are_those_of_the_harness_or_ours(folders, tmp_path, capsys):
  base, models, _ = folders
  genome = {'models': models, 'merge_method': 'ties', 'base_model': base}
  tasks = [
    'sor',
    {'name': 'gsm8k', 'metric': 'exact_match,none', 'weight': 2},
    {'name': 'arc_easy'},
    {'name': 'mine.yaml', 'metric': 'f1'},
  ]
  config = read(
    tmp_path / 'e.yml',
    {**genome, 'tokenizer_source': 'union'},
    tasks=tasks,
    limit=50,
    num_fewshot=3,
    shuffle=True,
    random_init=True,
  )
  assert config.tasks.split(',') == [
    'sor',
    'lm_eval:gsm8k:exact_match',
    'lm_eval:arc_easy:acc',
    'lm_eval:mine.yaml:f1',
  ]
  assert config.weights == (1.0, 2.0, 1.0, 1.0)
  assert (config.dev_limit, config.shots, config.chat) == (50, 3, True)
  assert config.initial == ('random',)
  assert 'in one turn' in capsys.readouterr().err


@pytest.mark.parametrize(
  'genome, top, parts',
  [
    ({'merge_method': 'della'}, {}, ["'della'", 'dare_ties', 'merged.method']),
    ({'merge_method': None}, {}, ['genome.merge_method: missing']),
    ({'models': []}, {}, ['genome.models: missing']),
    ({'models': [3]}, {}, ["models[0]: a int; expected a folder, or 'F"]),
    ({'models': ['{base}', '{one}']}, {}, ['two or more beside the base']),
    ({'models': ['{other}+/a', '{one}']}, {}, ['beside adapters', 'one base']),
    ({'base_model': None}, {}, ['base_model: missing; ties merges changes']),
    ({'base_model': '{one}'}, {}, ['has an adapter', 'evojax-llm merge']),
    ({'base_model': '/gone'}, {}, ['/gone: does not exist']),
    ({'layer_granularity': 3}, {}, ['3, and', 'has 2 layers', 'of 1, 2']),
    ({'layer_granularity': True}, {}, ['granularity: a bool', 'a int']),
    (
      {'merge_method': 'linear', 'normalize': False},
      {},
      ['genome.normalize: false', 'task_arithmetic'],
    ),
    ({'filters': ['mlp.up']}, {}, ["'mlp.up'", 'without dots']),
    ({'merge_method': 'slerp', 'smooth': True}, {}, ['genome.smooth: slerp']),
    ({'layer_granularty': 3}, {}, ['genome.layer_granularty: not known. Did']),
    ({'tokenizer_source': '{wide}'}, {}, ['tokenizer_source', 'not moved']),
    ({}, {'task': []}, ['task: not known', "mean 'tasks'"]),
    ({}, {'tasks': []}, ['tasks: missing']),
    ({}, {'tasks': [3]}, ['tasks[0]: a int']),
    ({}, {'tasks': [{'name': 'x', 'weight': -1}]}, ['weight: -1', 'more than']),
    ({}, {'tasks': ['a,b']}, ["'a,b'; expected one name"]),
    (
      {},
      {'tasks': [{'name': 'x', 'metric': 'acc,strict'}]},
      ['the first filter', "expected 'acc'"],
    ),
    (
      {},
      {'tasks': [{'name': 'sor', 'metric': 'f1'}]},
      ['metric', 'its own kind'],
    ),
    ({}, {'limit': 0}, ['limit: 0; expected 1']),
    ({}, {'limit': 0.5}, ['limit: a float; expected a int']),
    (
      {},
      {'num_fewshot': 2, 'fewshot_as_multiturn': False},
      ['fewshot_as_multiturn: false', 'task files'],
    ),
    ({}, {'merge_method': 'ties'}, ['evojax-llm merge', 'genome and tasks']),
    ({}, {'tasks': ['own.py:Task']}, ['names code, own.py:Task']),
  ],
)
def test_what_is_not_supported_is_named(
  genome, top, parts, folders, tmp_path, capsys
):
  base, models, other = folders
  wide = tmp_path / 'wide'
  wide.mkdir()
  (wide / 'tokenizer.json').write_text('{"model": {"vocab": {"a": 0}}}')
  start = {'models': models, 'merge_method': 'ties', 'base_model': base}
  given = yaml.safe_load(
    yaml.safe_dump({**start, **genome})
    .replace('{base}', base)
    .replace('{one}', models[0])
    .replace('{other}', other)
    .replace('{wide}', str(wide))
  )
  given = {k: v for k, v in given.items() if v is not None}
  path = write(tmp_path / 'e.yml', given, **top)
  assert run_program('evolve', f'--config={path}') == 1
  said = capsys.readouterr().err
  assert said.startswith('error: ')
  for part in parts:
    assert part in said, said


def test_a_run_ends_in_a_recipe_that_merge_makes_again(
  folders, settings, tmp_path
):
  base, models, _ = folders
  genome = {'models': models, 'merge_method': 'dare_ties', 'base_model': base}
  genome |= {'layer_granularity': 1, 'filters': ['self_attn']}
  (task,) = [x for x in settings if x.startswith('--config.tasks=')]
  task = task.partition('=')[2].split(',')[0]
  path = write(
    tmp_path / 'e.yml',
    genome,
    tasks=[task],
    limit=10,
    apply_chat_template=False,
  )
  flags = ['--config.strategy.evaluations=6', '--config.strategy.population=5']
  flags += ['--config.ensemble.size=0', '--config.test_limit=4']
  run = tmp_path / 'run'
  code = run_program('evolve', f'--config={path}', f'--workdir={run}', *flags)
  assert code is None
  assert runs.summary(run)['evaluations'] == 6
  recipe, out = run / 'best' / 'mergekit.yaml', tmp_path / 'out'
  code = run_program('merge', f'--recipe={recipe}', f'--out={out}')
  assert code is None
  found, best = (hub.load_checkpoint(x)[1] for x in (out, run / 'best'))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, best
  )
