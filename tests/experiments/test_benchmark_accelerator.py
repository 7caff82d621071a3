"""The benchmark of a device measures all it says, and keeps what it has."""

import json

import pytest

from experiments.benchmarks import accelerator_model
from experiments.benchmarks import accelerator_peer
from experiments.benchmarks import accelerator_profile
from experiments.benchmarks import accelerator_tables
from experiments.benchmarks.accelerator_clock import Clock
from tests.experiments.running import run_program

# The peer takes torch, which has a test of its own.
PARTS = ('limits', 'likelihood', 'generation', 'kernels', 'layer', 'operators')
SMOKE = {
  'shape': 'tiny',
  'layers': 1,
  'rank': 2,
  'items': 3,
  'new_tokens': 8,
  'data': None,
  'small': True,
}


def test_smoke_measures_every_part(tmp_path, capsys):
  out = tmp_path / 'found'
  code = run_program(
    'benchmark_accelerator',
    '--smoke',
    '--minutes=30',  # Enough for a machine that is busy.
    f'--parts={",".join(PARTS)}',
    '--slots=4',
    '--ways=population',
    '--variants=plain',
    f'--out={out}',
  )
  assert code is None
  found = json.loads(out.with_suffix('.json').read_text())
  assert not found['failed'] and not found['skipped']
  parts = found['parts']
  assert set(parts) == set(PARTS)
  for kind in ('likelihood', 'generation'):
    (way,) = (row for row in parts[kind].values() if isinstance(row, dict))
    assert way['recompiled'] == 0 and way['tokens_per_second'] > 0
  assert way['tokens'] == 2 * 3 * 8
  kernels = parts['kernels']['plain']['kernels'].values()
  assert 0.5 < sum(row['share'] for row in kernels) <= 1.0001
  # Two ways of attention, five of a product, and the seconds.
  assert len(parts['layer']) == 8
  assert parts['operators']['linear']['copy_share'] > 0
  assert any('advance' in name for name in found['compiled'])
  text = out.with_suffix('.md').read_text()
  for name in PARTS:
    assert f'## {name.capitalize()}' in text
  assert text in capsys.readouterr().out


def test_unknown_part_is_refused(capsys):
  assert run_program('benchmark_accelerator', '--parts=limit') == 1
  assert 'expected some of peer, limits' in capsys.readouterr().err


def test_a_part_that_fails_or_has_no_time_is_named():
  kept = []
  clock = Clock(10, lambda result: kept.append(dict(result['parts'])))

  def good(clock, found):
    found['x'] = 1.0
    assert clock.fits(4) and not clock.fits(6)
    clock._end = 0.0  # As if it had taken all.

  def bad(clock, found):
    found['y'] = 2.0
    raise ValueError('no device')

  clock.run({'bad': (bad, 5), 'good': (good, 5), 'late': (good, 5)})
  assert clock.result['failed'] == {'bad': 'ValueError: no device'}
  assert clock.result['skipped'] == {'late': 'no time is left'}
  assert kept[0]['bad']['y'] == 2.0 and kept[1]['good']['x'] == 1.0


def test_time_inside_of_an_event_counts_once():
  events = [(0, 10e9, 'while'), (1e9, 4e9, 'dot.1'), (4e9, 6e9, 'dot.2')]
  spent = {}
  for name, seconds in accelerator_profile._own_times(events):
    spent[name] = spent.get(name, 0) + seconds
  assert spent == {'while': 5.0, 'dot.1': 3.0, 'dot.2': 2.0}


def test_a_device_is_busy_once_however_many_kernels_run():
  events = [(1e9, 4e9, 'a'), (2e9, 3e9, 'b'), (3e9, 5e9, 'a'), (7e9, 8e9, 'c')]
  assert accelerator_profile._covered(events) == 5.0


@pytest.mark.parametrize('kind', ['multiple_choice', 'numeric_match'])
def test_items_are_made_up_or_of_files(kind, data_folder):
  own = accelerator_model.task(kind, 5, 7, None)
  real = accelerator_model.task(kind, 5, 7, str(data_folder))
  for task in (own, real):
    assert len(task.dev) == 5 and task.format.max_new_tokens == 7
    assert len({item.id for item in task.dev}) == 5
  tokenizer = accelerator_model.Pieces(512)
  assert tokenizer.encode('ab cd') == [2, *tokenizer.encode('ab cd', bos=False)]
  assert max(tokenizer.encode(real.dev[0].question)) < 512


def test_published_shape_has_its_parameters():
  config = accelerator_model.model_config('gemma-2-2b', None)
  assert config.num_layers == 26
  assert round(config.num_params / 1e9, 2) == 2.61
  assert accelerator_model.model_config('gemma-3-1b', 2).num_layers == 2


@pytest.mark.filterwarnings('ignore')  # what torch and PEFT warn of.
def test_peer_reads_and_writes(capsys, monkeypatch):
  clock = Clock(10)
  if accelerator_peer.missing():
    accelerator_peer.run(SMOKE, clock, {})
    assert 'not installed' in clock.result['skipped']['peer']
    return
  accelerator_peer.measure(SMOKE)
  rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [row['name'].split(',')[0] for row in rows] == [
    'likelihood',
    'generation',
    'likelihood',
  ]
  assert rows[1]['tokens'] == 3 * 8


def test_table_sets_ways_beside_each_other():
  speeds = {'population (plan)': 100.0, 'one model (plan)': 80.0}
  rows = {name: {'tokens_per_second': v} for name, v in speeds.items()}
  text = accelerator_tables.markdown(
    {
      'note': '',
      'machine': {},
      'command': 'x',
      'settings': SMOKE | {'members': 2},
      'parts': {
        'generation': rows,
        'peer': {'generation': {'tokens_per_second': 4.0}},
      },
      'skipped': {},
      'failed': {'a': 'b'},
    }
  )
  assert '- generation: the population is 1.25 of one model.' in text
  assert '- generation: the population is 25.0 times the peer' in text
  assert '| one model (plan) |' in text and '- a: b.' in text
