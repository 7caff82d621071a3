"""The compare program on the pocket population, a few items of it."""

import contextlib
import io
import itertools
import json
import re
import shutil

import pytest

from evojax_llm import pocket
from evojax_llm.runs import checkpoint
from evojax_llm.runs import comparison_table
from evojax_llm.runs import errors
from evojax_llm.runs import report
from evojax_llm.runs import rows
from evojax_llm.runs import sweeps
from tests.experiments import running

pytestmark = pytest.mark.skipif(
  not pocket.base_folder().is_dir(), reason='no pocket population'
)
TASKS = pocket.stage('main')[:2]
STAGE = '+'.join(TASKS)


def compare(out, *more):
  return running.run_program(
    'compare',
    '--configs=experiments/coefficients/config.py:random_search',
    '--evaluations=13',
    f'--stages={pocket.task_file(TASKS[0])}+{TASKS[1]}',
    f'--heldout={pocket.stage("prompt")[0]}',
    '--dev_limit=6',
    '--test_limit=8',
    f'--out={out}',
    *more,
  )


def read(out):
  return json.loads((out / 'comparison.json').read_text())['rows']


@pytest.fixture(scope='module')
def comparison(tmp_path_factory):
  out = tmp_path_factory.mktemp('compare') / 'out'
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    assert not compare(out, '--seeds=2', '--draws=1', '--populations=5,10')
  (out.parent / 'said').write_text(said.getvalue())
  return out


def test_how_many_runs_are_to_come_and_how_long_is_said(comparison):
  said = (comparison.parent / 'said').read_text()
  assert '2 searches x 1 stages x 1 draws x 2 seeds: 4 runs of 13' in said
  assert [
    int(count)
    for count in re.findall(r'^(\d+) runs to come, about \d+:\d\d$', said, re.M)
  ] == [3, 2, 1, 0]


def test_what_is_prepared_before_the_first_run_is_said(comparison):
  said = (comparison.parent / 'said').read_text().partition('\ntrial ')[0]
  for number, size in enumerate((5, 10), 1):
    arm = f'random_search P={size}'
    assert f'\n{STAGE}: reading and planning for {arm}, {number} of 2\n' in said


def test_differences_and_curves_are_in_the_report(comparison):
  text = (comparison / 'comparison.md').read_text()
  line = next(t for t in text.splitlines() if t.startswith('| test, less'))
  others = [cell.strip() for cell in line.split('|')[2:-1]]
  assert others == [
    *('best expert', 'soup', 'scaled average', 'ensemble of experts'),
    *('random_search P=5', 'random_search P=10'),
  ]
  assert '![best fitness by evaluations](curves.png)' in text
  assert (comparison / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_a_search_of_it_is_exported_and_loaded(comparison, tmp_path, capsys):
  name = 'random_search P=5'
  dev = {
    row['seed']: row['dev'] for row in read(comparison) if row['name'] == name
  }
  best = f'draw_0/{name.replace(" ", "_")}/seed_{max(dev, key=dev.get)}'
  flags = [f'--run={comparison}', f'--row={name}', f'--out={tmp_path / "out"}']
  assert running.run_program('export', *flags) is None
  assert f'{best}: the best on dev of 2 runs' in capsys.readouterr().err
  (kept,) = comparison.glob(f'*/{best}/best/adapter_model.safetensors')
  assert (tmp_path / 'out' / kept.name).read_bytes() == kept.read_bytes()
  run, row = rows.find(comparison, f'{name}, vote')
  assert row == report.OF_EVOLVED and run.summary['ensembles'][row]
  assert running.run_program('export', *flags[::2], '--row=evolved') == 1
  assert 'several runs' in capsys.readouterr().err


def test_every_part_is_there_with_as_many_evaluations(comparison):
  rows = read(comparison)
  searches = [
    row for row in rows if row['seed'] is not None and 'vote' not in row['name']
  ]
  assert {(row['stage'], row['name'], row['seed']) for row in searches} == set(
    itertools.product(
      [STAGE],
      ['random_search P=5', 'random_search P=10'],
      [0, 1],
    )
  )
  for row in searches:
    arm = row['name'].replace(' ', '_')
    folder = comparison / STAGE / 'draw_0' / arm / f'seed_{row["seed"]}'
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['evaluations'] == row['evaluations'] == 13
    assert row['items'] == 13 * 6 * len(row['test_by_task'])
  # Shares of eight items.
  assert all((8 * row['heldout']) % 1 < 1e-6 for row in rows)


def test_votes_are_rows_of_their_own(comparison):
  rows = read(comparison)
  votes = [row for row in rows if row['name'].endswith(', vote')]
  assert len(votes) == 4 and all(1 <= row['members'] <= 5 for row in votes)
  alone = {
    (row['stage'], row['name'], row['seed']): row
    for row in rows
    if row['seed'] is not None
  }
  for vote in votes:
    name = vote['name'].removesuffix(', vote')
    single = alone[vote['stage'], name, vote['seed']]
    # dev chose its size, one member among them.
    assert vote['dev'] >= single['dev'] - 1e-6
    if vote['members'] == 1:
      assert vote['test'] == pytest.approx(single['test'], abs=1e-6)


def test_the_table_has_a_line_for_each_search_and_baseline(comparison):
  text = (comparison / 'comparison.md').read_text()
  for name in (
    'base',
    'best expert',
    'soup',
    'scaled average',
    'ensemble of experts',
    'random_search P=5',
    'random_search P=10, vote',
  ):
    assert len(re.findall(rf'\| {name} +\| +\d+ \|', text)) == 1


def test_scores_that_are_no_shares_are_shown_as_they_are():
  def row(name, seed, test):
    return {
      'name': name,
      'draw': 0,
      'seed': seed,
      'evaluations': 5,
      'items': 50,
      'dev': 2.5,
      'test': test,
      'test_by_task': {'texts': test, 'sums': 0.5},
      'heldout': 0.25,
      'percent': {
        'fitness': False,
        'heldout': True,
        'tasks': {'texts': False, 'sums': True},
      },
      'seconds': None,
    }

  levels = [row('best expert', None, 2.0), row('scaled average', None, 3.0)]
  searches = [row('one', 0, 4.0), row('one', 1, 6.0), row('two', 0, None)]
  lines = comparison_table.table([*levels, *searches]).splitlines()
  cells = {
    (found := [cell.strip() for cell in line.split('|')[1:-1]])[0]: found[1:]
    for line in lines
  }
  assert cells['one'] == '2 5 50 2.5 **5** 1.414 4 6 25.0 0.0 5 50.0 -'.split()
  assert cells['two'][4:8] == ['**nan**', '-', 'nan', 'nan']
  lines = comparison_table.differences([*levels, *searches]).splitlines()
  head, _, one, two = (line.split('|')[1:-1] for line in lines)
  assert [cell.strip() for cell in head[1:]] == [
    *('best expert', 'scaled average', 'one', 'two')
  ]
  # Of two pairs, whose mean has a standard error of 1.
  half = 12.706
  assert one[1].strip() == f'+3 [{3 - half:.4g}, +{3 + half:.4g}]'
  assert not ''.join(two[1:]).strip()


def test_every_stage_has_a_table_of_its_own(comparison):
  rows = read(comparison)
  other = [row | {'stage': 'other'} for row in rows]
  text = comparison_table.markdown(rows + other)
  assert len(re.findall(r'\| base +\|', text)) == 2
  assert f'## {STAGE}' in text and '## other' in text


def test_a_stopped_comparison_goes_on(comparison, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  shutil.copytree(comparison, out)
  # Killed before the end of a run, and a seed more is asked for.
  arm = out / STAGE / 'draw_0' / 'random_search_P=10'
  (arm / 'seed_1' / 'summary.json').unlink()
  ran, shared = [], []
  run, share = sweeps._run, sweeps.launch.run_prepared

  def spy(path, trial, *more):
    ran.append(trial.changes['seed'])
    return run(path, trial, *more)

  def spy_share(*args, **kwargs):
    shared.append(kwargs['share'])
    return share(*args, **kwargs)

  monkeypatch.setattr(sweeps, '_run', spy)
  monkeypatch.setattr(sweeps.launch, 'run_prepared', spy_share)
  options = '--seeds=3', '--draws=1', '--populations=10'
  assert not compare(out, *options)
  assert ran == [1, 2]
  # Its own baselines are there, and those of the stage and draw.
  assert shared[0] is None and shared[1] is not None

  def comparable(rows):
    return sorted(
      json.dumps(row | {'seconds': None}, sort_keys=True) for row in rows
    )

  new = [row for row in read(out) if row['seed'] == 2]
  kept = [row for row in read(out) if row['seed'] != 2]
  assert comparable(kept) == comparable(read(comparison))
  assert len(new) == 2


def test_runs_are_shared_among_processes(comparison, tmp_path, monkeypatch):
  out = tmp_path / 'out'
  shutil.copytree(comparison, out)
  shares = []
  monkeypatch.setattr(sweeps, '_start', lambda _, found: shares.append(found))
  options = '--seeds=3', '--draws=1', '--populations=5,10'
  assert not compare(out, *options, '--workers=4')
  assert [len(share) for share in shares[0]] == [1, 1]


def test_what_cannot_be_is_refused(comparison, tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  for arguments, words in (
    ([tmp_path], 'is not empty and not the folder of a sweep'),
    ([comparison, '--evaluations=14'], 'evaluations: 13 there, 14 here'),
    ([tmp_path, '--populations=10,many'], "'many'"),
    ([tmp_path, '--config.seed=3'], 'expected --seeds'),
    ([tmp_path, '--config.modell=x'], "Got unknown field 'modell'"),
    ([tmp_path, '--stages=nothing'], "Got task 'nothing'"),
    ([tmp_path / 'file'], 'File exists'),
    ([tmp_path / 'a', '--configs=README.md'], 'expected one of a Python file'),
    ([tmp_path / 'a', '--configs=evojax_llm/runs/errors.py'], "'get_config'"),
  ):
    assert compare(*arguments) == 1
    message = capsys.readouterr().err
    assert words in message and 'Traceback' not in message
  assert not (tmp_path / 'a').exists()


SWARMS = 'experiments/model_swarms/config.py'


def test_what_an_arm_cannot_be_is_said_before_any_other_runs(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(sweeps, '_run', None)
  good = 'experiments/coefficients/config.py:random_search'
  config = tmp_path / 'config.py'
  config.write_text(
    'from evojax_llm.systems import genome as config\n'
    'def get_config():\n'
    '  made = config.get_config()\n'
    "  made.racing.rule = 'paired'\n"
    '  return made\n'
  )
  apart = tmp_path / 'apart.py'
  apart.write_text(
    'from evojax_llm.systems import evomerge as config\n'
    'def get_config():\n'
    '  made = config.get_config()\n'
    "  made.refine.items = 'others'\n"
    '  return made\n'
  )
  for bad, more, words in (
    (
      f'{SWARMS}:moco',
      ['--populations=20'],
      'moco P=20: config.initial: The recipe',
    ),
    (f'{SWARMS}:moco+step_decay=-1', [], 'step_decay -1.0; expected 0 or more'),
    (config, [], 'sets config.racing'),
    (apart, ['--dev_limit=200'], 'the search scores all of them: set'),
    (good, [], "names 'random_search' twice"),
    (SWARMS, ['--dev_limit=200', '--draws=2'], 'are all the same'),
  ):
    arguments = f'--configs={good},{bad}', '--draws=1', *more
    assert compare(tmp_path / 'out', *arguments) == 1
    message = capsys.readouterr().err
    assert words in message and 'Traceback' not in message
    # So what is corrected may be given the same folder.
    assert not (tmp_path / 'out' / 'sweep.json').exists()


def test_arms_are_kept_as_often_as_their_presets_say(tmp_path, monkeypatch):
  every = {}

  def folder(path, trials, fixed):
    every.update({t.changes['arm']: t.config.checkpoint_every for t in trials})
    raise errors.UserError('seen')

  monkeypatch.setattr(sweeps, 'Folder', folder)
  given = '--configs=cma_es,m2n2', '--seeds=1', '--draws=1'
  assert compare(tmp_path / 'out', *given) == 1
  assert every == {'cma_es': 1, 'm2n2': 10}


def test_one_process_at_a_time(comparison, capsys):
  lock = checkpoint.WorkdirLock(comparison)
  options = '--seeds=2', '--draws=1', '--populations=5,10'
  assert compare(comparison, *options) == 1
  assert 'Another process' in capsys.readouterr().err
  lock.release()
  assert not compare(comparison, *options)


def test_settings_are_those_of_all_and_a_search_ends_with_whole_generations(
  tmp_path, settings
):
  inputs = 'model', 'adapters', 'tasks'
  given = [f for f in settings if f[9:].partition('=')[0] in inputs]
  assert len(given) == 3
  names = 'genome_plus', 'genome_plus+keep_best=False'
  out = tmp_path / 'out'
  # The first population, every member moved, and not all of what varies.
  assert not running.run_program(
    'compare',
    '--configs=' + ','.join(names),
    *given,
    '--config.ensemble.size=3',
    '--evaluations=11',
    '--populations=5',
    '--seeds=1',
    '--draws=1',
    f'--out={out}',
  )
  rows = {row['name']: row for row in read(out)}
  kept, lost = (rows[f'{name} P=5'] for name in names)
  assert (kept['evaluations'], lost['evaluations']) == (11, 10)
  assert rows[f'{names[1]} P=5, vote']['evaluations'] == 10
  assert kept['dev'] >= lost['dev']


def test_draws_differ_and_share_programs():
  from evojax_llm.fitness.evaluator import Evaluator
  from evojax_llm.models.tokenizer import Tokenizer
  from evojax_llm.runs import base_and_adapters
  from evojax_llm.tasks import task_files as tasks_lib

  base = pocket.base_folder()
  found = base_and_adapters.load(str(base))
  evaluator = Evaluator(
    Tokenizer.from_folder(base),
    [tasks_lib.load_task(pocket.task_file(pocket.stage('main')[0]))],
    limits={'dev': 5, 'test': None},
  )
  first = evaluator.evaluate(found.space, found.population)
  other = evaluator.redraw(1)
  second = other.evaluate(found.space, found.population)
  assert first.tasks[0].ids != second.tasks[0].ids
  again = other.redraw(0).evaluate(found.space, found.population)
  assert again.tasks[0].ids == first.tasks[0].ids
  assert again.fitness == first.fitness
  assert evaluator.ledger is other.ledger
