"""Timing and the lines people see."""

import io
import time

import jax
import jax.numpy as jnp
import pytest

from evojax_llm.runs import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_compilation_is_taken_out_of_the_phase_that_caused_it():
  with progress.Stopwatch() as watch:
    with watch.phase('score'):
      # Never compiled before: the constant is in the program.
      constant = time.time()
      jax.jit(lambda x: jnp.sin(x) @ x * constant)(jnp.ones((8, 8)))
      time.sleep(0.05)
    seconds = watch.take()
  assert seconds['compile'] > 0
  assert 0.05 <= seconds['score'] < 0.05 + 2
  assert watch.take() == {'compile': 0.0}


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
  bar = progress.Progress(3, stream=stream)
  bar.begin(4)
  bar.update(0.5)
  assert stream.getvalue() == ''
  bar.generation(0, 0.5, 'mean 0.1')
  bar.generation(3, 0.75, 'mean 0.2')
  lines = stream.getvalue().splitlines()
  assert lines[0].startswith('generation 0/3  best 50.0 %  mean 0.1')
  assert lines[0].endswith('left')
  assert lines[1] == 'generation 3/3  best 75.0 %  mean 0.2'


def test_on_a_terminal_one_line_changes():
  stream, tokens = Terminal(), iter(range(0, 10000, 1000))
  bar = progress.Progress(3, lambda: next(tokens), stream)
  bar.begin(4)
  bar.update(0.5)
  text = stream.getvalue()
  assert text.startswith('\r') and '\n' not in text
  assert 'generation 0/3' in text and '2/4 members' in text
  assert 'tokens/s' in text


def test_after_a_resume_time_is_judged_by_this_process():
  stream = Terminal()
  bar = progress.Progress(10, stream=stream)
  bar.resume(4, 0.4)
  bar.begin(4)
  bar.update(0.5)
  assert 'generation 5/10' in stream.getvalue()
  assert 'best 40.0 %' in stream.getvalue()
  assert 'left' not in stream.getvalue()


@pytest.mark.parametrize(
  'seconds, text',
  [(0, '0:00'), (42.4, '0:42'), (725, '12:05'), (10810, '3:00:10')],
)
def test_clock(seconds, text):
  assert progress.clock(seconds) == text
