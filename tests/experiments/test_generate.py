import json
import re

import pytest

from evojax_llm.models.tokenizer import Tokenizer
from tests import multimodal
from tests import tiny
from tests.experiments.running import run_program

PROMPTS = [
  'Hello the',
  'a tin and another, rather longer prompt in the inn',
  '',
  [{'role': 'user', 'content': 'Hi there'}],
  [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Ho'},
    {'role': 'user', 'content': 'Ha'},
  ],
]
NEW = 7


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma3_text')


@pytest.fixture(scope='module')
def adapters(tmp_path_factory, base):
  """Adapters of other ranks and modules, in folders of one name."""
  root = tmp_path_factory.mktemp('adapters')
  return [
    tiny.write_adapter(root / 'one' / 'best', base, seed=1, rank=2),
    tiny.write_adapter(
      root / 'two' / 'best', base, seed=2, modules=('q_proj', 'down_proj')
    ),
  ]


def run(folder, base, prompts, *arguments):
  path = folder / 'prompts.json'
  path.write_text(prompts if isinstance(prompts, str) else json.dumps(prompts))
  out = folder / 'texts.json'
  code = run_program(
    'generate',
    f'--model={base}',
    f'--prompts={path}',
    f'--max_new_tokens={NEW}',
    f'--out={out}',
    *arguments,
  )
  return code, json.loads(out.read_text()) if out.exists() else None


def names_flag(adapters):
  return f'--adapters={",".join(map(str, adapters))}'


@pytest.mark.filterwarnings('ignore:.is_gradient_checkpointing')
def test_texts_agree_with_transformers_and_peft(tmp_path, base, adapters):
  torch = pytest.importorskip('torch', reason='the oracle runs in PyTorch')
  peft = pytest.importorskip('peft', reason='the oracle applies the adapters')
  import transformers

  code, result = run(tmp_path, base, PROMPTS, names_flag(adapters))
  assert code is None
  names = [member['name'] for member in result['members']]
  assert names == ['base', 'one/best', 'two/best']
  tokenizer = Tokenizer.from_folder(base)
  for member, adapter in zip(result['members'], [None, *adapters], strict=True):
    model = transformers.AutoModelForCausalLM.from_pretrained(
      base, attn_implementation='eager'
    )
    if adapter:
      model = peft.PeftModel.from_pretrained(model, adapter)
    for prompt, text in zip(PROMPTS, member['outputs'], strict=True):
      if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
      else:
        ids = tokenizer.encode_chat(prompt)
      start = len(ids)
      while len(ids) < start + NEW:
        with torch.no_grad():
          token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in tokenizer.stop_ids:
          break
        ids.append(token)
      assert text == tokenizer.decode(ids[start:])
  texts = [tuple(member['outputs']) for member in result['members']]
  assert len(set(texts)) == 3


def test_base_alone(tmp_path, capsys, base):
  code, result = run(tmp_path, base, PROMPTS[:2])
  assert code is None
  (member,) = result['members']
  assert member['name'] == base.name and len(member['outputs']) == 2
  shown = capsys.readouterr().out.splitlines()
  assert shown[0] == f'{base.name}, prompt 0: {member["outputs"][0]!r}'
  # A prompt's text does not depend on what else is asked for.
  code, other = run(tmp_path, base, PROMPTS[1:2], '--overwrite')
  assert other['members'][0]['outputs'] == member['outputs'][1:]


def test_sampling_and_stop_strings(tmp_path, base):
  draw = ('--overwrite', '--temperature=1.5', '--top_p=0.9', '--top_k=40')

  def outputs(*arguments, prompts=PROMPTS[:2]):
    code, result = run(tmp_path, base, prompts, *arguments)
    assert code is None
    return result['members'][0]['outputs']

  greedy = outputs()
  drawn = outputs(*draw, '--seed=3')
  assert drawn != greedy
  assert outputs(*draw, '--seed=3', prompts=PROMPTS[:1]) == drawn[:1]
  assert outputs(*draw, '--seed=4') != drawn
  stop = greedy[0][2:4]
  cut = [text.split(stop)[0] for text in greedy]
  assert outputs('--overwrite', f'--stop={stop}') == cut != greedy


def test_meaningless_sampling_is_refused(tmp_path, capsys, base):
  code, result = run(tmp_path, base, PROMPTS[:1], '--top_p=0')
  assert (code, result) == (1, None)
  assert 'top_p=0.0 (expected above 0' in capsys.readouterr().err


@pytest.mark.filterwarnings('ignore:overflow')
def test_a_failed_member_is_shown_and_not_fatal(tmp_path, base, capsys):
  broken = tiny.write_adapter(tmp_path / 'broken', base, alpha=1e38)
  code, result = run(tmp_path, base, PROMPTS[:1], names_flag([broken]))
  assert code is None
  good, bad = result['members']
  assert len(good['outputs']) == 1
  assert bad == {
    'name': 'broken',
    'failed': 'logits are not finite',
    'outputs': [],
  }
  assert 'broken failed' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('prompts', 'word'),
  [
    ('a text', 'Expected a JSON list of texts, such as'),
    ([], 'at least one'),
    ({'a': 1}, 'a JSON list'),
    (['a', 3], 'prompt 1: expected a text'),
    ([[]], 'prompt 0'),
    ([[{'role': 'robot', 'content': 'x'}]], 'prompt 0, message 0: expected'),
    ([[{'role': 'user'}]], 'prompt 0, message 0: expected'),
    (
      [[{'role': 'user', 'content': [{'type': 'text'}]}]],
      "prompt 0, message 0, field 'content', part 0: expected a text",
    ),
    (
      [[{'role': 'user', 'content': [{'type': 'image', 'url': 'no.png'}]}]],
      "part 0, field 'image'",
    ),
    ([{'prompt': 'a', 'image': 'no.png'}], "prompt 0, field 'image': "),
    ([{'images': ['no.png']}], "no field 'question' or 'input' or 'prompt'"),
    (['a', 'x' * 250], 'Prompt 1 has 251 tokens; with 7 new ones'),
  ],
)
def test_wrong_prompts_are_refused(tmp_path, capsys, base, prompts, word):
  code, result = run(tmp_path, base, prompts)
  assert (code, result) == (1, None)
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ') and word in error


def test_unexpected_arguments_are_refused(tmp_path, capsys, base):
  assert run(tmp_path, base, ['a'], 'prompt')[0] == 1
  assert "Unexpected argument 'prompt'" in capsys.readouterr().err


def test_a_prompt_without_a_file(tmp_path, capsys, base):
  image = multimodal.write_image(tmp_path / 'a.png', 1)
  flags = [f'--model={base}', f'--image={tmp_path / image}']
  for given, said in (
    ([], 'error: Expected --prompts=FILE, or --prompt=TEXT with an --image'),
    (['--prompt=a', '--prompts=x'], 'error: Expected --prompts=FILE, or'),
    (['--prompt=a'], 'error: Prompt 0: .*this model reads text alone.*a.png'),
    (['--prompt=a', '--image=no.png'], "error: --prompt=a, field 'images': no"),
  ):
    assert run_program('generate', *flags, *given) == 1
    assert re.search(said, capsys.readouterr().err.replace('\n', ' '))
