"""The benchmark of strategies runs, and says what is above its bound."""

import json

from evojax_llm.strategies import registry
from tests.experiments.running import fresh_program
from tests.experiments.running import run_program


def test_a_strategy_is_timed_beside_scoring(tmp_path, capsys):
  out = tmp_path / 'result'
  code = run_program(
    'benchmark_strategies',
    '--presets=random_search',
    '--rounds=1',
    '--dev_limit=2',
    f'--out={out}',
  )
  assert not code
  (row,) = json.loads(out.with_suffix('.json').read_text())['rows']
  assert row['members'] == 20 and min(row['ask'], row['tell'], row['score']) > 0
  assert '| `random_search` | gates | 20.0 |' in capsys.readouterr().out


def test_a_share_above_the_bound_is_bold():
  row = {'space': 'gates', 'members': 20, 'ask': 1, 'tell': 0, 'score': 19}
  rows = [
    row | {'strategy': name, 'preset': name, 'share': 0.05}
    for name in ('evogm', 'cma_es')
  ]
  with fresh_program('experiments.benchmark_strategies') as program:
    text = program.markdown(
      {'note': '', 'machine': {}, 'command': 'x', 'rows': rows}
    )
    presets = program.one_of_every_strategy()
  assert ' 5.00% |' in text and ' **5.00%** |' in text
  assert len(presets) == len(registry.strategy_names()) - 1
