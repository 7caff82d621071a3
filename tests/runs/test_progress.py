"""Timing and the lines people see."""

import io
import time

import jax
import jax.numpy as jnp
import pytest

from evojax_llm.engine.ledger import Ledger
from evojax_llm.runs import progress
from tests.terminal import terminal


def test_compilation_is_taken_out_of_the_phase_that_caused_it():
  start = time.monotonic()
  with progress.Stopwatch() as watch:
    with watch.phase('score'):
      # Never compiled before: the constant is in the program.
      constant = time.time()
      jax.jit(lambda x: jnp.sin(x) @ x * constant)(jnp.ones((8, 8)))
      time.sleep(0.05)
    seconds = watch.take()
  assert seconds['compile'] > 0 and seconds['score'] >= 0.05
  assert sum(seconds.values()) <= time.monotonic() - start + 0.01
  assert watch.take() == {'compile': 0.0}


def test_what_is_compiled_side_by_side_takes_its_time_once(monkeypatch):
  watch, now = progress.Stopwatch(), [0.0]
  monkeypatch.setattr(progress.time, 'perf_counter', lambda: now[0])
  for now[0], seconds in ((6.0, 1.0), (8.0, 1.0), (10.0, 9.0), (30.0, 5.0)):
    watch._listen(progress._COMPILING[1], seconds)
  assert watch.compiled == watch.take()['compile'] == 14.0


def test_a_stopwatch_stops_listening():
  with progress.Stopwatch() as watch:
    pass
  jax.jit(lambda x: x * time.time())(jnp.ones(3))
  assert watch.take() == {'compile': 0.0}


def test_phases_add_up_even_when_one_fails():
  watch = progress.Stopwatch()
  for _ in range(2):
    with pytest.raises(RuntimeError), watch.phase('a'):
      time.sleep(0.01)
      raise RuntimeError
  assert watch.take()['a'] >= 0.02


def test_off_a_terminal_there_is_a_plain_line_a_generation():
  stream = io.StringIO()
  with progress.Progress(3, stream=stream) as bar:
    bar.begin(4)
    bar.update(0.5)
    assert stream.getvalue() == ''
    bar.generation(0, 0.5, 4, 'mean 0.1')
    bar.generation(3, 0.75, 16, 'mean 0.2')
    bar.begin(10, 'test')
  lines = stream.getvalue().splitlines()
  assert lines[0].startswith('generation 0/3  best 50.0 %  mean 0.1')
  assert lines[0].endswith('left')
  assert lines[1] == 'generation 3/3  best 75.0 %  mean 0.2'
  # What follows the search takes long, too.
  assert lines[2:] == ['test: 10 members']


def test_off_a_terminal_a_long_batch_says_now_and_then_how_far_it_is(
  monkeypatch,
):
  monkeypatch.setattr(progress, '_QUIET_SECONDS', 0.0)
  stream = io.StringIO()
  bar = progress.Progress(3, stream=stream)
  bar.begin(4)
  bar.update(0.5)
  assert stream.getvalue().startswith('generation 0/3  2/4 members  ')


@pytest.mark.parametrize('columns', [60, 100])
def test_on_a_terminal_one_line_changes_and_is_gone_at_the_end(
  columns, monkeypatch
):
  monkeypatch.setenv('TERM', 'xterm')
  ledger = Ledger()
  with terminal(columns) as (stream, shown):
    with progress.Progress(3, ledger, stream=stream) as bar:
      for number in range(2):
        bar.begin(4)
        for share in (0.25, 0.5, 1.0):
          ledger.new_tokens += 123456789
          bar.update(share)
          assert len(shown()) == number + 1
          assert shown()[-1].startswith(f'generation {number}/3')
          assert len(shown()[-1]) < columns
          # Generations later a line is longer, and 60 columns are too few.
          assert ('tokens/s' in shown()[-1]) == (columns > 60 or not number)
        bar.generation(number, 0.5, 4, 'mean 0.1')
    stream.write('the table\n')
    stream.flush()
    assert shown()[-2:] == ['the table', '']
    assert sum('generation' in line for line in shown()) == 2


def test_a_batch_with_a_label_says_how_far_it_is_before_a_minute(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  now = 100.0
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
  stream = io.StringIO()
  bar = progress.Progress(3, stream=stream)
  bar.begin(17, 'baselines')
  for share in (0.3, 0.5):
    now += 9.0
    bar.update(share)
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'baselines: 17 members'
  assert [line[:24] for line in lines[1:]] == ['baselines  8/17 members ']
  with terminal(60) as (stream, shown):
    progress.Progress(3, stream=stream).begin(17, 'baselines')
    assert shown()[-1].startswith('baselines  0/17 members')


@pytest.mark.parametrize('term', ['dumb', ''])
def test_a_terminal_without_control_codes_is_written_as_a_file_is(
  term, monkeypatch
):
  monkeypatch.setenv('TERM', term)
  with terminal(60) as (stream, shown):
    with progress.Progress(3, stream=stream) as bar:
      bar.begin(4)
      bar.update(0.5)
      bar.line('a line')
    assert shown() == ['a line', '']


def test_after_a_resume_time_is_judged_by_this_process(monkeypatch):
  monkeypatch.setattr(progress, '_QUIET_SECONDS', 0.0)
  stream = io.StringIO()
  bar = progress.Progress(10, stream=stream)
  bar.resume(4, 0.4, 100)
  bar.begin(4)
  bar.update(0.5)
  assert 'generation 5/10' in stream.getvalue()
  assert 'best 40.0 %' in stream.getvalue()
  assert 'left' not in stream.getvalue()


def test_the_time_left_is_judged_by_work_on_generations_alone(monkeypatch):
  now = 100.0
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
  stream, watch = io.StringIO(), progress.Stopwatch()
  bar = progress.Progress(10, watch=watch, stream=stream)
  bar.begin(17, 'baselines')
  now += 1000.0
  bar.begin(20)
  now += 30.0
  watch.compiled += 24.0
  bar.generation(0, 0.5, 20, 'mean')
  assert stream.getvalue().endswith('mean  1:00 left\n')


def test_the_time_left_is_that_of_the_limit_that_comes_first(monkeypatch):
  now = 0.0
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now)
  stream = io.StringIO()
  bar = progress.Progress(250, stream=stream, evaluations=25)
  bar.begin(10)
  now += 10.0
  bar.generation(0, 0.5, 10, 'mean')
  assert stream.getvalue() == (
    'generation 0  10/25 evaluations  best 50.0 %  mean  0:15 left\n'
  )


@pytest.mark.parametrize(
  'seconds, text',
  [(0, '0:00'), (42.4, '0:42'), (725, '12:05'), (10810, '3:00:10')],
)
def test_clock(seconds, text):
  assert progress.clock(seconds) == text
