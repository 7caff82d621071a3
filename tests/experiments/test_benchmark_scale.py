"""The benchmark of devices runs, and reads what programs send."""

import json

import pytest

from evojax_llm.engine.collectives import collectives
from tests.experiments.running import fresh_program
from tests.experiments.running import run_program


def test_a_smoke_run_measures_a_small_population(tmp_path, capsys):
  out = tmp_path / 'scale'
  code = run_program(
    'benchmark_scale',
    '--smoke',
    '--preset=pocket',
    '--tasks=sor',
    f'--out={out}',
  )
  assert not code
  (row,) = json.loads(out.with_suffix('.json').read_text())['rows']
  assert row['population'] == 4 and row['devices'] > 1
  assert row['seconds'] > 0 and row['checkpoint_bytes'] > 0
  assert row['genome_bytes'] == 40
  # Members are scored where they are.
  assert not {'likelihood', 'advance'} & set(row['sent'])
  assert '| 4 | ' in capsys.readouterr().out


def test_tables_have_ratios_of_times():
  row = {'population': 8, 'members': 9, 'genome_bytes': 2048, 'sent': {}}
  row |= {'state_bytes': 0, 'checkpoint_bytes': 0, 'checkpoint_seconds': 1.0}
  rows = [row | {'devices': n, 'seconds': 2.0 / n} for n in (1, 4)]
  rows[1]['sent'] = {'tell': {'all-to-all': (3, 2048)}}
  start = {'devices': 4, 'population': 8, 'cold': 8.0, 'warm': 2.0}
  given = {'note': '', 'machine': {}, 'command': 'x', 'rows': rows}
  with fresh_program('experiments.benchmark_scale') as program:
    text = program.markdown(given | {'starts': [start]})
  assert '| 8 | 9 | 1.00 | 0.25 |' in text and '| 4 | 0.25 |' in text
  assert '| 4 | 8 | 2.0 | tell | 3 all-to-all, 2.0 KiB |' in text


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    ('%a = f32[8,16]{1,0} all-gather(f32[2,16] %x)', ('all-gather', 1, 512)),
    ('a = (bf16[4], u8[2]{0}) all-reduce(b, c)', ('all-reduce', 1, 10)),
    ('a = pred[] all-to-all(pred[] b)', ('all-to-all', 1, 1)),
    (
      's = (f32[4]{0}, f32[4]{0}) collective-permute-start(f32[4] x)\n'
      'd = f32[4]{0} collective-permute-done(s)',
      ('collective-permute', 1, 16),
    ),
    ('a = f32[8] add(f32[8] all-gather.1, b)', None),
  ],
)
def test_what_programs_send_is_read_from_their_text(line, expected):
  kinds = {expected[0]: expected[1:]} if expected else {}
  assert collectives(line) == kinds
