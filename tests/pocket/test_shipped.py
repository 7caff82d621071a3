"""What is shipped in evojax_llm/pocket."""

import json
import pathlib

import numpy as np
import pytest
import transformers

from evojax_llm import pocket
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import task_files as tasks_lib
from experiments.pocket import data
from experiments.pocket import slices
from experiments.pocket import tokenizer_files


def _content(name):
  return json.loads(pocket.task_file(name).read_text())


def test_transformers_reads_the_base():
  config = transformers.AutoConfig.from_pretrained(pocket.base_folder())
  assert config.architectures == ['Gemma2ForCausalLM']
  tokenizer = transformers.AutoTokenizer.from_pretrained(pocket.base_folder())
  assert len(tokenizer) == config.vocab_size
  assert tokenizer.bos_token_id == config.bos_token_id
  assert tokenizer.eos_token_id == config.eos_token_id
  assert tokenizer.pad_token_id == config.pad_token_id


def test_base_and_experts_load():
  config, params = hub.load_checkpoint(pocket.base_folder())
  assert 1_000_000 < config.num_params < 1_500_000
  experts = peft.load_adapters(pocket.expert_folders(), config)
  assert experts.names == pocket.expert_names()
  assert len(experts.names) == 10
  assert experts.rank == 8
  assert set(experts.factors['layers']['mlp']) == {
    'gate_proj',
    'up_proj',
    'down_proj',
  }
  assert set(experts.factors['layers']['self_attn']) == {
    'q_proj',
    'k_proj',
    'v_proj',
    'o_proj',
  }
  assert np.isfinite(params['embedder']['embedding']).all()


@pytest.mark.parametrize(
  'text',
  [
    'sor:abc=',
    '',
    ' two  spaces ',
    'tab\tand\nline',
    'Grüße, 日本 🎈',
    '<b> y',
  ],
)
def test_tokenizer_round_trip(text):
  tokenizer = Tokenizer.from_folder(pocket.base_folder())
  ids = tokenizer.encode(text)
  assert ids == [tokenizer_files.BOS, *tokenizer_files.encode(text)]
  assert tokenizer.decode(ids) == text


def test_chat_template():
  tokenizer = Tokenizer.from_folder(pocket.base_folder())
  ids = tokenizer.encode_chat([{'role': 'user', 'content': 'hi'}])
  assert ids[:2] == [tokenizer_files.BOS, tokenizer_files.START_OF_TURN]
  assert tokenizer_files.END_OF_TURN in ids
  assert tokenizer.decode(ids).endswith('model\n')


def test_size():
  folder = pathlib.Path(pocket.__file__).parent
  files = [
    f for f in folder.rglob('*') if f.is_file() and '__pycache__' not in f.parts
  ]
  assert sum(f.stat().st_size for f in files) <= 12e6


def test_shipped_tasks_are_those_of_the_families():
  assert pocket.task_names() == tuple(sorted(slices.task_families()))


@pytest.mark.parametrize('name', slices.task_families())
def test_task_has_its_items(name):
  content = _content(name)
  assert content == data.task(name, 200, 1000, seed=0)
  assert len(data.prompts(content)) == 1200
  task = tasks_lib.load_task(pocket.task_file(name))
  assert (len(task.dev), len(task.test)) == (200, 1000)
  assert task.kind == content['task_type']


def test_both_kinds_occur():
  kinds = {_content(name)['task_type'] for name in pocket.task_names()}
  assert kinds == {'multiple_choice', 'exact_match'}


def test_stages():
  assert pocket.stage_names() == tuple(slices.stages())
  for name in pocket.stage_names():
    assert pocket.stage(name) == slices.stages()[name]
    assert set(pocket.stage(name)) <= set(pocket.task_names())


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="no pocket task 'nope'"):
    pocket.task_file('nope')
  with pytest.raises(ValueError, match="no pocket stage 'nope'"):
    pocket.stage('nope')
