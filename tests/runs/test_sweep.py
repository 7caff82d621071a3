"""Sweeps on a tiny model: folders, shared programs, tables, going on."""

import collections
import json
import shutil

import jax
import pytest

from evojax_llm import runs as runs_lib
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.runs import checkpoint
from evojax_llm.runs import progress
from evojax_llm.runs import sweep_changes as changes
from evojax_llm.runs import sweeps
from evojax_llm.runs.errors import UserError
from evojax_llm.systems import genome as genome_config
from tests import tiny
from tests.experiments import running
from tests.experiments import runs

SIGMA = 'strategy.options.sigma'
SIGMAS = (0.05, 0.1, 1.0)


@pytest.fixture(scope='module')
def config(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  folder = tmp_path_factory.mktemp('tasks')
  made = genome_config.get_config('genome_plus')
  made.model = str(tiny_gemma_folder('gemma2'))
  adapters = tiny_adapter_folders(
    3, 'gemma2', alpha=32, modules=tiny.FEW_MODULES
  )
  made.adapters = ','.join(map(str, adapters))
  made.tasks = str(runs.write_task(folder / 'a.json'))
  made.strategy.population, made.strategy.generations = 4, 2
  made.ensemble.size = made.fine_tuning.steps = 0
  return made


def read(folder):
  return json.loads((folder / 'summary.json').read_text())


@pytest.fixture(scope='module')
def swept(config, tmp_path_factory):
  """(its result, compilations by trial, calls of the evaluator by split)."""
  folder = tmp_path_factory.mktemp('sweep') / 'out'
  compiled, calls, current = collections.Counter(), collections.Counter(), ['']
  run, evaluate = sweeps._run, Evaluator.evaluate

  def listen(event, seconds, **_):
    if event in progress._COMPILING:
      compiled[current[0]] += 1

  def spy(path, trial, *more):
    current[0] = trial.name
    return run(path, trial, *more)

  def count(self, space, population, members=None, split='dev', **kwargs):
    calls[split] += 1
    return evaluate(self, space, population, members, split, **kwargs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sweeps, '_run', spy)
      patch.setattr(Evaluator, 'evaluate', count)
      found = changes.product(
        changes.values(SIGMA, *SIGMAS), changes.values('seed', 0, 1)
      )
      result = runs_lib.sweep(changes.trials(config, found), folder)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  return result, compiled, calls


def test_arrays_and_seeds_share_programs_and_baselines(swept):
  result, compiled, calls = swept
  first, *others = result.summary['trials']
  assert compiled[first['name']] > 0
  assert {t['name']: compiled[t['name']] for t in others} == {
    t['name']: 0 for t in others
  }
  # Two calls for the baselines, then one a generation.
  assert calls == {'dev': 2 + 6 * 3, 'test': 6}


def test_a_trial_is_the_run_that_it_would_be_alone(swept, config, tmp_path):
  alone = config.copy_and_resolve_references()
  alone.strategy.options.sigma, alone.seed = 1.0, 1
  folder = runs_lib.run(alone, tmp_path / 'alone').path
  trial = swept[0].path / 'sigma=1.0,seed=1'
  assert runs.result(trial) == runs.result(folder)


def test_the_table_has_mean_spread_and_best(swept):
  result, _, _ = swept
  summary = read(result.path)
  assert result.finished and result.summary == summary
  assert [one['name'] for one in summary['settings']] == [
    f'sigma={sigma}' for sigma in SIGMAS
  ]
  for one, sigma in zip(summary['settings'], SIGMAS, strict=True):
    assert one['changes'] == {SIGMA: sigma} and one['runs'] == 2
    trials = [read(result.path / f'sigma={sigma},seed={n}') for n in (0, 1)]
    scores = [runs.row(t)['test']['fitness']['score'] for t in trials]
    assert one['test']['scores'] == scores
    assert one['test']['mean'] == pytest.approx(sum(scores) / 2)
    assert one['test']['highest'] == max(scores)
  best = max(summary['settings'], key=lambda one: one['dev']['mean'])
  assert summary['best'] == best['name']
  assert [row['name'] for row in summary['baselines']] == [
    'base',
    'best expert',
    'soup',
    'scaled average',
  ]
  text = (result.path / 'summary.md').read_text()
  assert result.table in text and text.count('| best on dev ') == 1
  assert (result.path / 'sigma.png').stat().st_size > 0


def test_a_sweep_goes_on_and_trials_join_it(
  swept, config, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  shutil.copytree(swept[0].path, out)
  # Stopped before the end of a trial, and a seed and a field more.
  (out / 'sigma=0.1,seed=1' / 'summary.json').unlink()
  ran = []
  run = sweeps._run

  def spy(path, trial, *more):
    ran.append(trial.name)
    return run(path, trial, *more)

  monkeypatch.setattr(sweeps, '_run', spy)
  found = changes.product(
    changes.values(SIGMA, 0.1), changes.values('seed', 0, 1, 2)
  )
  result = sweeps.sweep(changes.trials(config, found), out)
  assert ran == ['sigma=0.1,seed=1', 'sigma=0.1,seed=2']
  assert [one['runs'] for one in result.summary['settings']] == [2, 3, 2]
  again = out / 'sigma=0.1,seed=1'
  assert runs.result(again) == runs.result(swept[0].path / again.name)


def test_a_failed_trial_does_not_stop_the_rest(config, tmp_path, monkeypatch):
  out, share = tmp_path / 'out', []
  run = sweeps.launch.run_prepared

  def failing(prepared, *args, **kwargs):
    share.append(kwargs['share'])
    if prepared.config.seed == 0 and len(share) == 1:
      raise RuntimeError('lost\nmemory')
    return run(prepared, *args, **kwargs)

  monkeypatch.setattr(sweeps.launch, 'run_prepared', failing)
  trials = changes.trials(config, changes.values('seed', 0, 1))
  result = sweeps.sweep(trials, out)
  assert not result.finished
  first, second = result.summary['trials']
  assert (first['status'], second['status']) == ('failed', 'finished')
  assert first['error'] == 'RuntimeError: lost memory'
  assert 'Traceback' in (out / 'seed=0' / 'error.txt').read_text()
  assert 'seed=0: RuntimeError: lost memory' in (out / 'summary.md').read_text()
  assert result.summary['settings'][0]['runs'] == 1
  # It is tried again when the sweep goes on.
  assert sweeps.sweep(trials, out).finished
  assert not (out / 'seed=0' / 'error.txt').exists()
  assert share == [None, None, out / 'seed=1']


def test_a_trial_of_another_process_is_left_to_it(config, tmp_path, capsys):
  out = tmp_path / 'out'
  (out / 'seed=0').mkdir(parents=True)
  trials = changes.trials(config, changes.values('seed', 0))
  (out / 'lock').touch()
  lock = checkpoint.WorkdirLock(out / 'seed=0')
  with pytest.raises(UserError, match='not the folder of a sweep'):
    sweeps.sweep(trials, out)
  (out / 'sweep.json').write_text('{"settings": {}, "trials": {}}')
  result = sweeps.sweep(trials, out)
  lock.release()
  assert result.summary['trials'][0]['status'] == 'unfinished'
  assert 'seed=0 is run by another process' in capsys.readouterr().err
  lock = checkpoint.WorkdirLock(out)
  with pytest.raises(UserError, match='Another process'):
    sweeps.sweep(trials, out)
  lock.release()


def test_what_does_not_belong_together_is_refused(swept, config):
  other = config.copy_and_resolve_references()
  other.dev_limit = 5
  for change in ({SIGMA: 0.1, 'seed': 0}, {SIGMA: 7.0}):
    trials = changes.trials(other, [change])
    with pytest.raises(UserError, match='dev_limit: None there, 5 here'):
      sweeps.sweep(trials, swept[0].path)
  bad = changes.trials(config, changes.values('tasks', 'nothing'))
  with pytest.raises(UserError, match="Got task 'nothing'"):
    sweeps.sweep(bad, swept[0].path)
  for configs, message in (
    ([], 'Got no trials'),
    ({}, 'Got no trials'),
    ('pocket', "'pocket' for the trials of a sweep; expected a list"),
    (['pocket'], "the configuration 'pocket'; expected"),
  ):
    with pytest.raises(UserError, match=message):
      sweeps.sweep(configs, swept[0].path)


@pytest.mark.parametrize(
  'workers, slurm', [(2, None), (1, {'cluster': 'local'})]
)
def test_workers_and_jobs_give_the_same(
  swept, config, tmp_path, monkeypatch, workers, slurm
):
  if slurm:
    pytest.importorskip('submitit')
  # As many as here, so that they find what is compiled.
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', str(jax.device_count()))
  found = [{SIGMA: 0.1, 'seed': n} for n in range(workers)]
  trials = changes.trials(config, found)
  result = sweeps.sweep(trials, tmp_path / 'out', workers=workers, slurm=slurm)
  assert result.finished
  for trial in trials:
    here, there = result.path / trial.name, swept[0].path / trial.name
    assert read(here)['rows'] == read(there)['rows']
  assert (result.path / 'jobs').is_dir() == bool(slurm)


def test_the_command_reads_text_and_functions(config, tmp_path, capsys):
  file = tmp_path / 'config.py'
  file.write_text(
    'from evojax_llm.runs import sweep_changes\n'
    'from evojax_llm.systems import genome as config\n'
    'get_config = config.get_config\n'
    'def sweep():\n'
    '  return sweep_changes.product(\n'
    "    sweep_changes.values('strategy.options.cross_rate', 0.5, 0.8),\n"
    "    sweep_changes.values('strategy.options.sigma', 0.1, 0.2),\n"
    '  )\n'
  )
  settings = [
    f'--config={file}',
    *(f'--config.{n}={config[n]}' for n in ('model', 'adapters', 'tasks')),
    '--config.strategy.population=4',
    '--config.strategy.generations=1',
    '--config.ensemble.size=0',
  ]

  def command(*more):
    return running.run_program('sweep', *settings, *more)

  assert command('--sweep=sede=1', f'--workdir={tmp_path / "no"}') == 1
  assert "Did you mean 'seed'?" in capsys.readouterr().err
  assert not (tmp_path / 'no').exists()
  out = tmp_path / 'out'
  assert command(f'--workdir={out}') == 0
  shown = capsys.readouterr().out
  assert 'cross_rate' in shown and 'best expert' in shown
  assert (out / 'cross_rate_by_sigma.png').stat().st_size > 0
  # The same trials, in text.
  text = 'strategy.options.cross_rate=0.5,0.8;strategy.options.sigma=0.1,0.2'
  assert command(f'--sweep={text}', f'--workdir={out}') == 0
  assert f'all trials of {out} are finished' in capsys.readouterr().err
  assert running.run_program('sweep', f'--config={runs.GENOME}') == 1
  assert 'expected one of them' in capsys.readouterr().err
