"""adapter_config.json: which fields are refused, and how."""

import json

import pytest

from evojax_llm.models import adapter_config
from evojax_llm.models import hub
from evojax_llm.models.peft import load_adapters
from tests import tiny
from tests.models import damage


@pytest.fixture(scope='module')
def config(tiny_gemma_folder):
  return hub.load_config(tiny_gemma_folder('gemma2'))[0]


@pytest.fixture
def folder(tiny_gemma_folder, tmp_path):
  """An adapter of the tiny Gemma 2 that a test may damage."""
  return tiny.write_adapter(tmp_path / 'adapter', tiny_gemma_folder('gemma2'))


def _refused(folder, config, *parts):
  damage.refused(lambda: load_adapters([folder], config), *parts)


@pytest.mark.parametrize(
  'changes, parts',
  [
    (dict(peft_type='IA3'), ['peft_type', "'IA3'", "'LORA'"]),
    (dict(peft_type=None), ['peft_type']),
    (dict(use_dora=True), ['use_dora', 'DoRA']),
    (dict(use_qalora=True), ['use_qalora']),
    (dict(bias='some'), ['bias', "'some'", "'none'"]),
    (dict(future_option={'a': 1}), ['future_option', 'not known']),
    (dict(future_option=0), ['future_option is 0']),
    (dict(use_rslora='false'), ['use_rslora', 'true or false']),
    (dict(init_lora_weights='OLoRA'), ['init_lora_weights', 'OLoRA']),
    (dict(target_modules=['c_attn']), ['c_attn', 'name no module']),
    (dict(target_modules=r'.*h\..*'), ['name no module']),
    (dict(target_modules=[]), ['name no module']),
    (dict(layers_to_transform=[99]), ['[99]', 'name no module']),
    (dict(layers_to_transform=['1']), ["['1']", 'list of numbers']),
    (dict(layers_pattern=[3]), ['layers_pattern is [3]']),
    (dict(layers_pattern=3), ['layers_pattern is 3']),
    (dict(target_modules='(.*_*)*z'), ['name no module']),
    (dict(target_modules='(.|.)*[A-Z]'), ['(.|.)*[A-Z]', 'for ever']),
    (dict(rank_pattern={'(.|.)*[A-Z]': 4}), ['(.|.)*[A-Z]', 'for ever']),
    (dict(target_modules=False), ['target_modules is False']),
    (dict(layers_to_transform=1, layers_pattern='(l*)*Z'), ['name no module']),
    (dict(alpha_pattern={str(i): 1 for i in range(2001)}), ['2000']),
    (dict(target_modules='(' * 5000 + ')' * 5000), ['expression']),
    (dict(lora_bias=True), ['lora_bias']),
    (dict(modules_to_save=['lm_head']), ['modules_to_save', 'lm_head']),
    (dict(fan_in_fan_out=True), ['fan_in_fan_out']),
    (dict(layer_replication=[[0, 2]]), ['layer_replication']),
    (dict(trainable_token_indices=[1]), ['trainable_token_indices']),
    (dict(init_lora_weights='pissa_niter_4'), ['init_lora_weights', 'pissa']),
    (dict(r='4'), ['r is', "'4'"]),
    (dict(r=0), ['r is 0']),
    (dict(lora_alpha=None), ['lora_alpha', 'None']),
    (dict(lora_alpha=1e40), ['scale', '2.5e+39', 'beyond float32']),
    (dict(alpha_pattern={'q_proj': 10**300}), ['q_proj', 'beyond float32']),
    (dict(alpha_pattern={'q_proj': 'big'}), ['q_proj', 'alpha_pattern']),
    (dict(rank_pattern={'(': 2}), ['rank_pattern', 'regular expression']),
    (dict(rank_pattern=[2]), ['rank_pattern', 'object']),
    (dict(target_modules='('), ['target_modules', 'regular expression']),
    (dict(target_modules=7), ['target_modules', '7']),
  ],
  ids=str,
)
def test_configurations_refused(changes, parts, folder, config, monkeypatch):
  monkeypatch.setattr(adapter_config, '_SECONDS', 0.2)
  damage.edit_json(folder / 'adapter_config.json', **changes)
  _refused(folder, config, folder / 'adapter_config.json', *parts)


@pytest.mark.parametrize('part', ['r', 'lora_alpha', 'peft_type'])
def test_missing_field(part, folder, config):
  path = folder / 'adapter_config.json'
  raw = json.loads(path.read_text())
  del raw[part]
  path.write_text(json.dumps(raw))
  _refused(folder, config, path, part, 'None')
