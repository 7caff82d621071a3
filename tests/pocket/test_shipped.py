"""What is shipped in evojax_llm/pocket."""

import json
import pathlib

import numpy as np
import pytest
import transformers

from evojax_llm import pocket
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.errors import ModelError
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import task_files as tasks_lib
from experiments.pocket import data
from experiments.pocket import slices
from experiments.pocket import tokenizer_files
from experiments.pocket import train


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


# Dev accuracy in per cent on its own family of the stage main, as stored.
_DENSE = {'sor': 81, 'zip': 97, 'dup': 85, 'exp': 80}


def test_dense_experts_are_models_of_the_base():
  config, base = hub.load_checkpoint(pocket.base_folder())
  assert pocket.dense_names() == tuple(slices.dense_slices())
  for folder in pocket.dense_folders():
    for file in pocket.base_folder().iterdir():
      if file.suffix == '.json':
        assert (folder / file.name).read_bytes() == file.read_bytes()
    same, params = hub.load_checkpoint(folder)
    assert same == config
    assert params['embedder']['embedding'].shape == (
      base['embedder']['embedding'].shape
    )
    family = folder.name.split('_')[2]
    content = _content(family)
    rows = data.rows(data.examples_of(content, 'dev'), data.SCORED_LENGTH)
    right = 100 * np.mean(train.exact_match(config, params, rows))
    assert right == pytest.approx(_DENSE[family], abs=1.5)


def test_an_unknown_expert_is_refused():
  with pytest.raises(ModelError, match='no pocket expert .* expected one'):
    peft.load_adapters(['pocket:nope'], hub.load_config('pocket')[0])


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
  dense = sum(f.stat().st_size for f in files if folder / 'dense' in f.parents)
  assert dense <= 9e6
  assert sum(f.stat().st_size for f in files) - dense <= 10e6


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
