"""What a run takes of memory, by name or by config.json alone."""

import json

import jax
import jax.numpy as jnp
import pytest

from evojax_llm import pocket
from evojax_llm import systems
from evojax_llm.engine import groups
from evojax_llm.engine import plan as planning
from evojax_llm.models import published
from evojax_llm.runs import dry_run
from evojax_llm.runs import errors
from evojax_llm.runs import fields
from evojax_llm.runs import planned_search
from evojax_llm.runs import planned_space
from evojax_llm.runs import preparation
from evojax_llm.runs.run_config import RunConfig
from tests.experiments.running import run_program

GIB = 1 << 30


def config_of(preset='genome_plus', **changes):
  config = systems.load(preset)
  for name, value in changes.items():
    fields.set_text(config, name.replace('__', '.'), str(value))
  return RunConfig.from_config(config)


def arranged(machine=None, **changes):
  machine = machine or dry_run.Machine(platform='gpu')
  changes = {'model': 'gemma-2-2b', 'execution__dtype': 'bfloat16'} | changes
  budget = {'execution__memory_budget_gib': 24}
  return planned_search.arrange(config_of(**(budget | changes)), machine)


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    ('gemma-2-2b', 2_614_341_888),
    ('gemma-2-9b', 9_241_705_984),
    ('gemma-2-27b', 27_227_128_320),
    ('gemma-3-270m', 268_098_176),
    ('gemma-3-1b', 999_885_952),
    ('llama-3.1-8b', 8_030_261_248),
    ('llama-3.1-70b', 70_553_706_496),
    ('llama-3.2-1b', 1_235_814_400),
    ('mistral-7b', 7_248_023_552),
    ('qwen2.5-0.5b', 494_032_768),
    ('qwen2.5-7b', 7_615_616_512),
    ('qwen3-8b', 8_190_735_360),
    ('smollm2-135m', 134_515_008),
  ],
)
def test_published_shapes_have_the_published_parameters(name, parameters):
  assert published.published_config(name).num_params == parameters


def test_a_model_is_known_by_its_name_in_the_hub():
  for name, known in (
    ('google/gemma-2-2b-it', 'gemma-2-2b'),
    ('mistralai/Mistral-7B-Instruct-v0.3', 'mistral-7b'),
    ('meta-llama/Meta-Llama-3.1-8B', 'llama-3.1-8b'),
    ('mistralai/Mistral-7B-v0.1', None),
    ('models/gemma-2-2b-tuned', None),
  ):
    assert published.known(name) == known


def test_a_folder_without_weights_is_planned(tmp_path, monkeypatch):
  base = pocket.base_folder()
  (tmp_path / 'base').mkdir()
  text = (base / 'config.json').read_text()
  (tmp_path / 'base' / 'config.json').write_text(text)
  expert = pocket.expert_folders()[0]
  (tmp_path / 'expert').mkdir()
  text = (expert / 'adapter_config.json').read_text()
  (tmp_path / 'expert' / 'adapter_config.json').write_text(text)
  monkeypatch.setattr(dry_run, '_operators', lambda arranged: {'ask': 1})
  config = config_of(
    model=tmp_path / 'base',
    adapters=tmp_path / 'expert',
    tasks='sor',
    execution__max_length=32,
    execution__memory_budget_gib=1,
    strategy__population=3,
  )
  text, possible = dry_run.dry_run(config, dry_run.Machine())
  assert possible and text.splitlines()[-1].startswith('possible: ')
  rank = json.loads((expert / 'adapter_config.json').read_text())['r']
  space = planned_space.planned_space(config, 64)
  assert {leaf.shape[-1] for leaf in jax.tree.leaves(space.genome)} >= {rank}


def test_a_plan_has_the_numbers_of_the_run():
  config = config_of(
    'pocket:adapters', dev_limit=4, strategy__population=4, tasks='sor'
  )
  run = preparation.prepare(config)
  plan = planned_search.arrange(config, dry_run.Machine()).plan
  for name in ('base', 'population', 'members_per_group', 'form', 'device'):
    assert getattr(plan, name) == getattr(run.evaluator.plan, name)


def test_forty_members_of_a_2b_model_fit_in_24_gib_and_on_fewer_each():
  found = arranged(strategy__population=40)
  assert found.plan.population == found.genomes
  assert groups.num_bytes(found.space.params) == 2 * 2_614_341_888
  assert found.plan.rows(512) and found.plan.budget == 24 * GIB
  machine = dry_run.Machine(devices=4, platform='gpu')
  spread = arranged(machine, strategy__population=40)
  # Matrices of 26 layers are cut over their width.
  part = spread.plan.population / found.genomes
  assert 0.25 <= part < 0.26 and spread.plan.base == found.plan.base
  whole = {'strategy__population': 40, 'execution__population': 'device'}
  assert arranged(machine, **whole).plan.population == found.genomes


def test_whole_models_are_streamed_from_the_host():
  weights = {'space': 'weights', 'strategy__population': 40}
  found = arranged(**weights)
  assert found.plan.on_host and found.plan.members_per_group >= 1
  assert found.genomes > 40 * 2 * 2_614_341_888
  with pytest.raises(planning.MemoryPlanError):
    arranged(**weights, execution__population='device')


def test_seeds_are_kept_once():
  found = arranged(
    preset='seeded_es', adapters='', strategy__options__members=100_000
  )
  assert found.genomes < 0.5 * GIB


def test_what_does_not_fit_says_what_would(capsys):
  code = run_program(
    'evolve',
    '--dry_run',
    '--platform=tpu',
    '--config=genome_plus',
    '--config.model=llama-3.1-70b',
    '--config.execution.dtype=float32',
    '--config.strategy.population=2',
    '--config.execution.memory_budget_gib=200',
  )
  said = capsys.readouterr().out
  assert code == 1 and said.startswith('not possible: ')
  assert 'it fits by plan with --config.execution.dtype=bfloat16' in said


@pytest.mark.parametrize(
  ('changes', 'platform', 'message'),
  [
    ({'model': 'gemma-2-3b'}, None, 'one of gemma-2-2b, '),
    ({'space': 'merged'}, None, 'for a dry run; expected one of adapters'),
    ({'model': 'gemma-2-2b'}, 'tpu', 'memory_budget_gib'),
  ],
)
def test_what_cannot_be_planned_is_refused(changes, platform, message):
  machine = dry_run.Machine(platform=platform)
  with pytest.raises(errors.UserError, match=message):
    dry_run.dry_run(config_of(**changes), machine)


def test_int8_kernels_are_counted_as_such():
  found = arranged(execution__base_dtype='int8')
  kinds = {leaf.dtype for leaf in jax.tree.leaves(found.space.params)}
  assert jnp.dtype(jnp.int8) in kinds
  assert found.plan.base < 0.7 * 2 * 2_614_341_888
