"""The evolve program from end to end on a tiny random model."""

import re
import subprocess
import sys

import pytest

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.runs import checkpoint
from tests.experiments import runs
from tests.terminal import terminal


def test_a_finished_run_is_shown_and_not_run_again(
  finished, settings, capsys, monkeypatch
):
  folder, _ = finished
  before = runs.result(folder)
  monkeypatch.setattr(Evaluator, 'evaluate', None)
  assert runs.evolve(settings, folder) is None
  assert 'scaled best expert' in capsys.readouterr().out
  assert runs.result(folder) == before


def test_on_a_terminal_the_table_stands_below_the_last_line(
  settings, tmp_path, monkeypatch
):
  monkeypatch.setenv('TERM', 'xterm')
  with terminal(60) as (stream, shown), monkeypatch.context() as patch:
    patch.setattr(sys, 'stdout', stream)
    patch.setattr(sys, 'stderr', stream)
    generations = '--config.strategy.generations=1'
    assert runs.evolve(settings, tmp_path / 'run', generations) is None
    lines = shown()
  for start in ('generation 0/1  best', 'generation 1/1  best', '| model'):
    assert sum(line.startswith(start) for line in lines) == 1, lines
  # What was shown on the way is gone.
  assert not any(re.search(r'\d/\d+ members', line) for line in lines)


def test_other_settings_are_refused_for_a_folder(finished, settings, capsys):
  assert runs.evolve(settings, finished[0], '--config.seed=1') == 1
  message = capsys.readouterr().err
  assert 'seed: 0 there, 1 here' in message and 'Traceback' not in message


def test_a_folder_in_use_is_refused(finished, settings, capsys):
  lock = checkpoint.WorkdirLock(finished[0])
  assert runs.evolve(settings, finished[0]) == 1
  assert 'Another process' in capsys.readouterr().err
  lock.release()


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--config.tasks=nothing', "Got task 'nothing'"),
    ('--config.tasks=', 'No tasks'),
    ('--config.adapters=', 'No experts'),
    ('--config.adapters=nowhere', 'nowhere: does not exist'),
    ('--config.model=nowhere', 'nowhere: does not exist'),
    ('--config.strategy.name=genom', "Got strategy 'genom'"),
    ('--config.strategy.population=0', 'strategy.population 0'),
    ('--config.strategy.generations=-1', 'strategy.generations -1'),
    ('--config.strategy.options.mask=no', "Got mask 'no'"),
    ('--config.initial=experts,nobody', "Got recipe 'nobody'"),
    ('--config.initial=experts', 'makes 3 members'),
    ('--config.initial=(3,)', 'Got the entry 3 of a recipe'),
    ('--config.weights=1', '2 numbers of at least 0'),
    ("--config.weights=(1,'a')", 'config: could not convert string'),
    ("--config.dev_limits=(1,'a')", "limits are (1, 'a')"),
    ('--config.space=matrix', "space 'matrix'; expected one of"),
    ('--config.execution.form=fast', "execution.form 'fast'"),
    ('--config.execution.memory_budget_gib=0.0001', 'budget is'),
    ('--config.execution.max_length=3', ''),
    ('--config.seed=-1', 'seed -1'),
    ('--config.dev_limit=0', 'dev_limit 0'),
    ('--config.strategy.populaton=3', "Did you mean 'strategy.population'?"),
    ('--config.population=3', "Did you mean 'strategy.population'?"),
    ('--config.strateg.population=3', 'one of adapters, allow_code'),
    ('--config.strategy.population=many', 'expected a value of type int'),
    ('--config=nowhere.py', 'there is no file nowhere.py'),
    (f'--config={runs.GENOME}:x', "preset 'x'; expected one of genome"),
  ],
)
def test_mistakes_are_one_message_before_anything_is_made(
  settings, tmp_path, capsys, flag, message
):
  assert runs.evolve(settings, tmp_path / 'run', flag) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ') and message in error
  assert not (tmp_path / 'run').exists()


def test_help_loads_nothing_heavy():
  code = (
    'import sys\n'
    'from experiments import evolve\n'
    "heavy = {'jax', 'transformers', 'evosax', 'orbax', 'matplotlib'}\n"
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
    'from evojax_llm.systems import genome as config\n'
    'config.get_config()\n'
    "heavy.remove('jax')  # hyperparameters are declared as arrays\n"
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], cwd=runs.ROOT, check=True)
