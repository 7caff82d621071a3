import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks.prompts import encode_passes
from evojax_llm.tasks.task_files import load_task
from tests import tiny
from tests.experiments.running import run_program

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ('tea', 'the inn', 'a tin', 'rather', 'her')


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma2')


@pytest.fixture(scope='module')
def adapters(tiny_adapter_folders):
  return tiny_adapter_folders(2)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A multiple-choice and an exact-match task file."""
  folder = tmp_path_factory.mktemp('tasks')
  rows = [
    {
      'question': f'Which one is number {i}?',
      'choices': dict(zip('ABCDE', TEXTS[: 2 + i % 4], strict=False)),
      'answer': 'AB'[i % 2],
      'id': f'item{i}',
    }
    for i in range(9)
  ]
  options = {'choice': 'text', 'prompt': '{question} It is'}
  choice = {'name': 'pick', 'dev': rows[:6], 'test': rows[6:]}
  exact = {
    'name': 'say',
    'dev': [{'question': f'Say {word}', 'answer': word} for word in TEXTS],
    'format': {'max_new_tokens': 4},
  }
  return [
    _write(folder / 'pick.json', {**choice, 'format': options}),
    _write(folder / 'say.json', exact),
  ]


def _write(path, value):
  path.write_text(json.dumps(value))
  return path


def run(out, base, tasks, *arguments, adapters=()):
  code = run_program(
    'score',
    f'--model={base}',
    f'--adapters={",".join(map(str, adapters))}',
    f'--tasks={",".join(map(str, tasks))}',
    f'--out={out}',
    *arguments,
  )
  return code, json.loads(out.read_text()) if out.exists() else None


@pytest.fixture(scope='module')
def result(tmp_path_factory, base, adapters, files):
  out = tmp_path_factory.mktemp('out') / 'new' / 'scores.json'
  code, result = run(out, base, files, '--per_item', adapters=adapters)
  assert code is None
  return result


def test_result_has_every_member_task_and_item(result):
  names = [member['name'] for member in result['members']]
  assert names == ['base', 'expert0', 'expert1']
  for member in result['members']:
    pick, say = member['tasks']['pick'], member['tasks']['say']
    assert (pick['metric'], pick['n']) == ('accuracy', 6)
    assert (say['metric'], say['n']) == ('exact_match', 5)
    assert [item['id'] for item in pick['items']] == [
      f'item{i}' for i in range(6)
    ]
    for i, item in enumerate(pick['items']):
      values = item['loglikelihoods']
      assert list(values) == list('ABCDE'[: 2 + i % 4])
      assert item['prediction'] == max(values, key=values.get)
      assert item['correct'] == (item['prediction'] == 'AB'[i % 2])
    for task in (pick, say):
      share = np.mean([item['correct'] for item in task['items']])
      assert task['score'] == pytest.approx(share)
      assert task['interval'][0] <= share <= task['interval'][1]
    assert 'loglikelihoods' not in say['items'][0]
  # The adapters do something, so that a mix-up of members would show.
  first = [m['tasks']['pick']['items'][0] for m in result['members']]
  assert len({item['loglikelihoods']['A'] for item in first}) == 3


def test_base_alone_scores_as_it_does_among_adapters(
  tmp_path, capsys, base, files, result
):
  code, alone = run(tmp_path / 'o.json', base, files, '--per_item')
  assert code is None
  expected = result['members'][0]['tasks']
  (found,) = alone['members']
  for a, b in zip(
    found['tasks']['pick']['items'], expected['pick']['items'], strict=True
  ):
    assert a['loglikelihoods'] == pytest.approx(b['loglikelihoods'], rel=1e-5)
  assert found['tasks']['say'] == expected['say']
  lines = capsys.readouterr().out.splitlines()
  head = [cell.strip() for cell in lines[0].strip('|').split('|')]
  assert head == ['member', 'pick (n=6)', 'say (n=5)', 'mean']
  assert len(lines) == 3 and lines[2].startswith(f'| {base.name} ')


def test_split_limit_and_chat(tmp_path, base, files):
  _, test = run(tmp_path / 'a.json', base, files[:1], '--split=test')
  assert test['split'] == 'test'
  assert test['members'][0]['tasks']['pick']['n'] == 3
  assert 'items' not in test['members'][0]['tasks']['pick']
  _, some = run(
    tmp_path / 'b.json',
    base,
    files[:1],
    '--limit=2',
    '--draw=3',
    '--per_item',
    '--chat',
  )
  items = some['members'][0]['tasks']['pick']['items']
  assert test['truncated'] == some['truncated'] == 0
  task = load_task(files[0])
  assert [i['id'] for i in items] == [i.id for i in task.subset('dev', 2, 3)]


def test_cut_prompts_are_told_and_counted(tmp_path, base, files, caplog):
  _, cut = run(tmp_path / 'a.json', base, files[:1], '--max_length=12')
  assert cut['truncated'] == cut['members'][0]['tasks']['pick']['n'] == 6
  assert '6 of 6 prompts are longer than the context of 12' in caplog.text


@pytest.mark.filterwarnings('ignore:.is_gradient_checkpointing')
def test_likelihoods_agree_with_transformers_and_peft(
  base, adapters, files, result
):
  torch = pytest.importorskip('torch', reason='the oracle runs in PyTorch')
  peft = pytest.importorskip('peft', reason='the oracle applies the adapters')
  import transformers

  tokenizer = Tokenizer.from_folder(base)
  task = load_task(files[0])
  for member, adapter in zip(result['members'], [None, *adapters], strict=True):
    model = transformers.AutoModelForCausalLM.from_pretrained(
      base, attn_implementation='eager'
    )
    if adapter:
      model = peft.PeftModel.from_pretrained(model, adapter)
    for item, found in zip(
      task.dev, member['tasks']['pick']['items'], strict=True
    ):
      encoded = encode_passes(task, item, tokenizer)[0]
      for (key, _), option in zip(item.choices, encoded.options, strict=True):
        ids = torch.tensor([encoded.prompt + option])
        with torch.no_grad():
          logprobs = model(ids).logits[0].log_softmax(-1)
        start = len(encoded.prompt) - 1
        total = sum(
          float(logprobs[start + i, token]) for i, token in enumerate(option)
        )
        assert found['loglikelihoods'][key] == pytest.approx(total, abs=2e-3)


@pytest.mark.filterwarnings('ignore:overflow')
def test_a_failed_member_is_shown_and_not_fatal(
  tmp_path, capsys, base, files, adapters
):
  broken = tiny.write_adapter(tmp_path / 'broken', base, alpha=1e38)
  code, result = run(
    tmp_path / 'o.json',
    base,
    files,
    '--per_item',
    adapters=[adapters[0], broken],
  )
  assert code is None
  good, bad = result['members'][1:]
  assert 'failed' not in good and good['tasks']['pick']['score'] is not None
  assert bad['failed'] and bad['tasks']['pick']['score'] is None
  assert 'broken failed: ' in capsys.readouterr().out


def test_inputs_devices_and_fifos_are_never_replaced(
  tmp_path, capsys, base, files
):
  rows = [{'question': 'q', 'answer': 'a'}]
  task = _write(tmp_path / 'task.json', {'dev': rows})
  before = task.read_text()
  (tmp_path / 'link').symlink_to(task)
  os.mkfifo(tmp_path / 'fifo')
  for out, word in (
    (task, 'which this command reads'),
    (tmp_path / 'link', 'which this command reads'),
    (base / 'config.json', 'inside of'),
    (tmp_path / 'fifo', 'only regular files'),
    ('/dev/null', 'only regular files'),
  ):
    code = run_program(
      'score',
      f'--model={base}',
      f'--tasks={task}',
      f'--out={out}',
      '--overwrite',
    )
    assert code == 1
    assert word in capsys.readouterr().err
  assert task.read_text() == before and (tmp_path / 'fifo').is_fifo()


def test_existing_output_is_kept(tmp_path, capsys, base, files):
  out = tmp_path / 'o.json'
  out.write_text('{}')
  assert run(out, base, files) == (1, {})
  assert '--overwrite' in capsys.readouterr().err
  # What is wrong with the inputs comes first.
  assert run(out, 'absent', files)[0] == 1
  assert 'absent: does not exist' in capsys.readouterr().err
  code, result = run(out, base, files[:1], '--overwrite', '--limit=1')
  assert code is None and result['members']


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'model': 'absent'}, ['absent', 'does not exist']),
    ({'adapters': 'absent'}, ['absent', 'does not exist']),
    ({'tasks': 'absent.json'}, ['absent.json', 'no such file']),
    ({'tasks': 'absent'}, ['Expected a file, a pocket stage (main, ']),
    ({'split': 'test'}, ["'say'", 'no test items']),
    ({'out': '.'}, ['--out=.', 'is a folder']),
  ],
)
def test_errors_of_the_user_are_one_message(
  tmp_path, capsys, monkeypatch, base, files, change, words
):
  monkeypatch.chdir(tmp_path)
  options = {
    'model': base,
    'tasks': ','.join(map(str, files)),
    'out': 'o.json',
  } | change
  arguments = [f'--{name}={value}' for name, value in options.items()]
  assert run_program('score', *arguments) == 1
  error = capsys.readouterr().err.splitlines()[-1]
  assert error.startswith('error: ')
  for word in words:
    assert word in error
  assert not (tmp_path / 'o.json').exists()


def test_an_adapter_called_base_is_refused(tmp_path, capsys, base, files):
  tiny.write_adapter(tmp_path / 'base', base)
  code, _ = run(tmp_path / 'o', base, files, adapters=[tmp_path / 'base'])
  assert code == 1 and 'Rename it' in capsys.readouterr().err


def test_overlap_needs_a_word(tmp_path, capsys, base):
  rows = [{'question': 'q', 'answer': 'a'}]
  path = _write(tmp_path / 'task.json', {'dev': rows, 'test': rows})
  assert run(tmp_path / 'o.json', base, [path])[0] == 1
  assert '1 of 1 dev items occur in test' in capsys.readouterr().err
  flags = [f'--model={base}', f'--tasks={path}', '--allow_overlap']
  assert run_program('score', *flags, '--per_item') == 1
  assert '--per_item is of the file --out' in capsys.readouterr().err
  assert run_program('score', *flags) is None
  shown = capsys.readouterr()
  assert ' task (n=1) |' in shown.out and 'wrote' not in shown.err


def test_a_mistake_answers_without_jax_from_a_clone(tmp_path):
  flags = [
    f'--model={tmp_path}',
    '--tasks=absent.json',
    f'--out={tmp_path / "o.json"}',
  ]
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.score', *flags],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'no_such_platform'},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert 'absent.json' in done.stderr.splitlines()[-1]
