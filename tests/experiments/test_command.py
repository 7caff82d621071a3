"""What the programs do before jax starts: help, mistakes, configurations."""

import json
import logging
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import jax
import pytest

from evojax_llm import pocket
from evojax_llm import systems
from evojax_llm.commands import command
from evojax_llm.commands import compiled_programs
from evojax_llm.commands import main
from evojax_llm.models import folders
from evojax_llm.runs import inputs
from evojax_llm.runs.errors import UserError
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.systems import genome as genome_config
from tests.experiments import running
from tests.experiments import runs


def test_a_device_a_core_and_no_more_than_members(
  tiny_gemma_folder, tmp_path, monkeypatch
):
  asked = []
  monkeypatch.setattr(
    jax.config, 'update', lambda _, count: asked.append(count)
  )
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  monkeypatch.delenv('JAX_NUM_CPU_DEVICES', raising=False)
  cores = len(os.sched_getaffinity(0))
  folder = tiny_gemma_folder()
  command.use_cores(folder, 64)
  command.use_cores(folder, 1)
  assert asked == [min(cores, 64), 1]
  with open(tmp_path / 'model.safetensors', 'wb') as file:
    file.truncate((1 << 28) + 1)
  command.use_cores(tmp_path, 64)
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '3')
  command.use_cores(folder, 64)
  assert len(asked) == 2


def test_the_end_of_the_work_is_told_once(capsys):
  progress = command.Progress(seconds=100.0)
  for share in (0.2, 1.0, 0.5, 1.0):
    progress(share)
  assert capsys.readouterr().err.count('done after') == 1


PROGRAMS = tuple(main.COMMANDS)


@pytest.mark.parametrize('program', PROGRAMS)
def test_every_command_answers_mistakes_alike(program, capsys):
  assert running.run_program(program, '--no_such=3') == 1
  said = capsys.readouterr().err
  assert said.startswith('error: Got unknown flag --no_such; expected some of')
  assert 'See --help.' in said


@pytest.mark.parametrize(
  'program, flag, message',
  [
    ('evolve', '--seed=3', '--seed. Did you mean --config.seed? Expected some'),
    ('evolve', '--population=3', 'Did you mean --config.strategy.population?'),
    ('evolve', '--wrokdir=x', 'Did you mean --workdir?'),
    ('evolve', '--config.strategy.name=genom', "Did you mean 'genome'?"),
    ('evolve', '--config.space=gate', "Did you mean 'gates'?"),
    ('evolve', '--config.tasks=mian', "Did you mean 'main'?"),
    ('evolve', 'word', "Unexpected argument 'word'"),
    ('sweep', '--workers=many', "workers=many: no whole number: 'many'"),
    ('evolve', '--workdir=/dev/null', 'is a file; expected a run folder'),
    ('sweep', '--workers=0', 'workers'),
    ('score', '--split=train', 'dev|test'),
    ('export', '--out=x', '--run is missing: Run folder.'),
    ('evolve', '--config=genom', "Did you mean 'genome'?"),
    ('evolve', '--config=genom', 'genome_as_published'),
    ('evolve', '--config=genome:swarm', "preset 'swarm'; expected one of"),
    ('evolve', '--config=experiments/genom/config.py', 'there is no file'),
    ('evolve', '--config=nowhere/config.json', 'no such file'),
  ],
)
def test_a_mistake_is_one_message(program, flag, message, capsys):
  assert running.run_program(program, flag) == 1
  said = capsys.readouterr().err
  assert said.startswith('error: ') and message in said


def test_help_lists_settings_presets_and_flags_and_is_searched(capsys):
  for program in PROGRAMS:
    assert running.run_program(program, '-h') == 0
    assert f'evojax-llm {program} ' in capsys.readouterr().out
  assert running.run_program('evolve', '--help') == 0
  shown = capsys.readouterr().out
  for line in (
    '--workdir ',
    '--config.dev_limit=50 ',
    '--config.strategy.patience=None ',
    '--config.strategy.options.sigma=0.3 ',
    'genome_plus_as_published_cli',
    'model_swarms ',
  ):
    assert f'  {line}' in shown or f' {line},' in shown
  assert running.run_program('evolve', '--help=PATIENCE') == 0
  shown = capsys.readouterr().out
  assert shown.startswith('Settings') and 'strategy.patience=None' in shown
  assert 'dev_limit' not in shown
  assert running.run_program('evolve', '--help=config.space') == 0
  assert 'what evolves (adapters, gates,' in capsys.readouterr().out


def test_a_home_folder_is_found_in_flags_and_settings(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert running.run_program('export', '--run=~/run', '--out=~/out') == 1
  assert f'{tmp_path}/run' in capsys.readouterr().err
  config = RunConfig(adapters='~/a, ~/b', warm_start='~/run', tasks='a~/b')
  assert config.adapters == f'{tmp_path}/a,{tmp_path}/b'
  assert config.warm_start == f'{tmp_path}/run' and config.tasks == 'a~/b'
  flags = '--config.adapters=~/a', '--config.model=pocket'
  assert running.run_program('evolve', *flags) == 1
  assert f'error: {tmp_path}/a: ' in capsys.readouterr().err


def test_what_is_embedded_has_names_in_every_command(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'pocket').mkdir()
  assert folders.existing_folder('pocket', '') == pocket.base_folder()
  assert inputs.task_files(['sor', 'a:b', 'c.json', 'mixed']) == (
    pocket.task_file('sor'),
    'a:b',
    'c.json',
    *map(pocket.task_file, pocket.stage('mixed')),
  )


def test_a_configuration_is_found_by_name_and_from_any_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  wanted = genome_config.get_config('genome').to_dict()
  for source in (
    'genome',
    'genome:genome',
    'experiments/genome/config.py:genome',
    f'{runs.GENOME}:genome',
  ):
    assert systems.load(source).to_dict() == wanted
  changed = systems.load('genome_plus+sigma=0.5')
  assert changed.strategy.options.sigma == 0.5
  assert systems.load('SNES').strategy.name == 'SNES'
  assert systems.load('coefficients').strategy.name == 'cma_es'
  run = tmp_path / 'config.json'
  config = RunConfig.from_config(changed)
  run.write_text(json.dumps({'config': config.to_dict(), 'inputs': {}}))
  assert RunConfig.from_config(systems.load(str(run))) == config
  run.write_text('{}')
  with pytest.raises(UserError, match='not the config.json of a run'):
    systems.load(str(run))


def test_one_name_has_all_commands(monkeypatch, capsys):
  def called(*arguments):
    monkeypatch.setattr(sys, 'argv', ['evojax-llm', *arguments])
    with pytest.raises(SystemExit) as ended:
      main.main()
    return ended.value.code, capsys.readouterr()

  for argument in ('', '-h', '--help'):
    code, shown = called(*filter(None, [argument]))
    assert code == 0 and all(f'  {name} ' in shown.out for name in PROGRAMS)
  with pytest.raises(SystemExit) as ended:
    runpy.run_module('evojax_llm', run_name='__main__')
  assert ended.value.code == 0 and 'evolve' in capsys.readouterr().out
  code, shown = called('evolv')
  assert code == 1 and "Did you mean 'evolve'?" in shown.err
  for name in PROGRAMS:
    with running.fresh_program(f'evojax_llm.commands.{name}'):
      code, shown = called(name, '--no_such=1')
    assert code == 1 and shown.err.startswith('error: Got unknown flag --no_')


@pytest.mark.parametrize(
  'line, message',
  [
    (
      "config.modell = 'gemma'",
      "config.modell. Did you mean 'model'? Expected",
    ),
    ('config.strategy.sigma = 1', 'unknown config.strategy.sigma; expected'),
    ('config.seed = "x"', "Could not override field 'seed'"),
    ('config = None', 'returns None; expected a ConfigDict or'),
    ('config = missing', "NameError: name 'missing' is not defined"),
    ('import no_such_module', "No module named 'no_such_module'"),
    ('config config', 'SyntaxError: '),
  ],
)
def test_a_mistake_in_a_configuration_file_is_one_message(
  tmp_path, capsys, line, message
):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from evojax_llm import systems\n'
    'def get_config():\n'
    "  config = systems.load('genome')\n"
    f'  {line}\n'
    '  return config\n'
  )
  assert running.run_program('evolve', f'--config={file}') == 1
  said = capsys.readouterr().err
  assert said.startswith('error: ') and message in said


def test_a_configuration_file_may_return_the_typed_one(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from evojax_llm import RunConfig\n'
    'def get_config():\n'
    "  return RunConfig(tasks='a', seed=4)\n"
  )
  config = RunConfig.from_config(systems.load(str(file)))
  assert config == RunConfig(tasks='a', seed=4)


def test_a_reader_may_leave_before_the_end():
  code = (
    'from evojax_llm.commands import command\n'
    "command.launch(lambda _: print('line\\n' * 100000))\n"
  )
  with subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  ) as process:
    assert process.stdout.readline() == b'line\n'
    process.stdout.close()
    assert process.stderr.read() == b''
  assert process.returncode == 128 + signal.SIGPIPE


def test_a_device_that_is_not_there_is_one_message(monkeypatch, capsys):
  code = compile('raise AssertionError', 'jax/_src/xla_bridge.py', 'exec')
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with running.fresh_program('experiments.export'):
    flags = ['export', '--run=x', '--out=y']
    assert command.run(lambda _: exec(code), flags) == 1
  said = capsys.readouterr().err
  assert said.startswith('error: JAX_PLATFORMS=cuda names devices that')


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_stopped_run_says_how_it_goes_on(
  number, code, tmp_path, monkeypatch, capsys
):
  def main(_):
    command.new_workdir('pocket')
    os.kill(os.getpid(), number)
    time.sleep(5)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(command.logging, 'use_absl_handler', lambda: None)
  before = signal.getsignal(signal.SIGTERM)
  # A shell starts what is in its background with interrupts ignored.
  ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
  for more in ([], ['--workdir=runs/mine']):
    given = ['--config.system=a b', *more]
    monkeypatch.setattr(sys, 'argv', ['evolve', *given])
    monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'evolve', *given])
    with running.fresh_program('experiments.evolve'):
      with pytest.raises(SystemExit) as end:
        command.launch(main)
    assert end.value.code == code
    said = capsys.readouterr().err
    folder = 'runs/mine' if more else 'runs/pocket'
    assert said.endswith(
      'stopped; it goes on with\n'
      f"  python -m evolve '--config.system=a b' --workdir={folder}\n"
    )
    assert (f'with --workdir={folder}' in said) == (not more)
  logged = {'msg': '%d rows', 'args': (3,), 'levelname': 'WARNING'}
  record = logging.makeLogRecord(logged)
  handler = command.logging.get_absl_handler()
  assert handler.format(record) == 'warning: 3 rows'
  signal.signal(signal.SIGTERM, before)
  signal.signal(signal.SIGINT, ignored)


def test_compiled_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
  updated = {}
  monkeypatch.setattr(jax.config, 'update', updated.__setitem__)
  compiled_programs.keep()  # The tests' own folder stays.
  assert not updated
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '7')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  compiled_programs.keep()
  folder = pathlib.Path(updated.pop('jax_compilation_cache_dir'))
  assert folder.is_dir() and folder.is_relative_to(tmp_path / 'cache')
  assert set(updated) == {'jax_compilation_cache_max_size'}
  # Before jax is there, its own variables say the same.
  monkeypatch.delitem(sys.modules, 'jax')
  for name in ('DIR', 'MAX_SIZE'):
    monkeypatch.setenv(f'JAX_COMPILATION_CACHE_{name}', 'x')
    monkeypatch.delenv(f'JAX_COMPILATION_CACHE_{name}')
  compiled_programs.keep()
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(folder)
  # A place that cannot be written is no error.
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  compiled_programs.keep()
  assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ
