"""What the programs do before jax starts."""

import os
import subprocess
import sys

from tests.experiments import runs

_PROGRAM = """
import sys
from evojax_llm.commands import command
command.use_cores(sys.argv[1], int(sys.argv[2]))
import jax
print(len(jax.devices()))
"""


def devices(folder, members, **environment):
  inherited = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(folder), str(members)],
    cwd=runs.ROOT,
    env=inherited | environment,
    check=True,
    capture_output=True,
    text=True,
  )
  return int(done.stdout)


def test_a_device_a_core_and_no_more_than_members(tiny_gemma_folder, tmp_path):
  folder = tiny_gemma_folder()
  cores = len(os.sched_getaffinity(0))
  assert devices(folder, 64) == min(cores, 64)
  assert devices(folder, 1) == 1
  assert devices(folder, 64, JAX_NUM_CPU_DEVICES='3') == 3
  large = tmp_path / 'model.safetensors'
  with open(large, 'wb') as file:
    file.truncate((1 << 28) + 1)
  assert devices(tmp_path, 64) == 1
