"""Programs that are compiled ahead."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine.runtime import Runtime


def test_what_fails_to_compile_ahead_is_compiled_when_it_is_asked_for(
  monkeypatch,
):
  runtime, x = Runtime(devices=jax.devices()[:1]), jnp.arange(3.0)
  compile_ = Runtime._compile
  tried = []

  def fails_once(self, *work):
    tried.append(threading.current_thread().name)
    if len(tried) == 1:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: beside others')
    return compile_(self, *work)

  monkeypatch.setattr(Runtime, '_compile', fails_once)
  runtime.ahead('double', lambda x: 2 * x, x)
  program = runtime.compiled('double', lambda x: 2 * x, x)
  np.testing.assert_array_equal(program(x), [0, 2, 4])
  assert runtime.compiled('double', None, x) is program
  assert runtime.ledger.programs == 1 and len(tried) == 2
  assert tried[0] != tried[1] == 'MainThread'
