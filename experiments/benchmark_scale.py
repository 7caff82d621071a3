"""One population over several devices: times, what is sent, checkpoints.

Runs GENOME+ on adapters of the pocket model, for every --populations on every
--devices virtual devices of the CPU, each number of devices in a process of its
own. Devices of one machine share its cores, so that only ratios mean something.
What is sent between devices is read from the compiled programs, and holds on
other machines. Each process is started twice: the first one finds no compiled
programs on disk, the second one those of the first.

  python -m experiments.benchmark_scale --out=/tmp/scale

--smoke measures one small population on the devices of this process.
"""

from collections.abc import Sequence
import json
import os
import subprocess
import sys
import tempfile
import time

from absl import flags

from evojax_llm.commands import command
from experiments.benchmarks import tables

_POPULATIONS = flags.DEFINE_list('populations', ['8', '16', '32', '64'], 'P.')
_DEVICES = flags.DEFINE_list('devices', ['1', '2', '4', '8'], 'Virtual ones.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed generations of a kind.')
_DEV_LIMIT = flags.DEFINE_integer('dev_limit', 10, 'Dev items of each task.')
_PRESET = flags.DEFINE_string('preset', 'pocket:adapters', 'Of GENOME+.')
_TASKS = flags.DEFINE_string('tasks', 'main', 'Of the pocket.')
_WHERE = flags.DEFINE_string(
  'population_on', 'auto', 'execution.population of the configuration.'
)
_SMOKE = flags.DEFINE_bool('smoke', False, 'One population, here.')
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')
_WORKER = flags.DEFINE_bool('worker', False, 'Print what one process measures.')


def _measured(populations: Sequence[int], repeats: int, items: int) -> list:
  """Measures populations on the devices of this process."""
  from experiments.benchmarks import scale_worker

  how = {
    'preset': _PRESET.value,
    'tasks': _TASKS.value,
    'where': _WHERE.value,
  }
  return [
    scale_worker.measure(size, repeats, items, **how) for size in populations
  ]


def _in_process(devices: str, populations: Sequence[str], cache: str) -> dict:
  """Returns rows of a new process, and the seconds until its first one."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': devices,
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  environment.pop('XLA_FLAGS', None)
  given = {
    'populations': ','.join(populations),
    'repeats': _REPEATS.value,
    'dev_limit': _DEV_LIMIT.value,
    'population_on': _WHERE.value,
    'preset': _PRESET.value,
    'tasks': _TASKS.value,
  }
  begun = time.time()
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.benchmark_scale', '--worker']
    + [f'--{name}={value}' for name, value in given.items()],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  return {'rows': found['rows'], 'start': found['first'] - begun}


def markdown(result: dict) -> str:
  """Returns the tables of a result; of times the ratios alone."""
  rows = result['rows']
  lines = tables.heading(result, 'One population over several devices')
  devices = sorted({row['devices'] for row in rows})
  lines += [
    'Seconds of a generation, of those on the fewest devices:',
    '',
    '| population | members scored '
    + ''.join(f'| {n} device{"s" * (n > 1)} ' for n in devices)
    + '|',
    '|---|---' + '|---' * len(devices) + '|',
  ]
  for size in sorted({row['population'] for row in rows}):
    own = {r['devices']: r for r in rows if r['population'] == size}
    first = own[min(own)]['seconds']
    shown = (
      f'{own[n]["seconds"] / first:.2f}' if n in own else '' for n in devices
    )
    members = own[min(own)]['members']
    lines.append(f'| {size} | {members} | {" | ".join(shown)} |')
  lines += [
    '',
    'What a generation sends, by program: bytes of the results of collectives '
    'on each device, of one pass. Programs that are not there send nothing.',
    '',
    '| devices | population | genome KiB | program | sends |',
    '|---|---|---|---|---|',
  ]
  for row in rows:
    sent = row['sent'] or {'none': {}}
    for name, kinds in sent.items():
      parts = (
        f'{count} {kind}, {size / 1024:,.1f} KiB'
        for kind, (count, size) in kinds.items()
      )
      lines.append(
        f'| {row["devices"]} | {row["population"]} '
        f'| {row["genome_bytes"] / 1024:,.1f} | {name} '
        f'| {"; ".join(parts) or "nothing"} |'
      )
  lines += [
    '',
    'Checkpoints: all that a run needs to go on, of which members are one part '
    '(personal bests and velocities are others).',
    '',
    '| devices | population | state MiB | on disk MiB | seconds '
    '| of a generation |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    lines.append(
      f'| {row["devices"]} | {row["population"]} '
      f'| {row["state_bytes"] / 2**20:.1f} '
      f'| {row["checkpoint_bytes"] / 2**20:.1f} '
      f'| {row["checkpoint_seconds"]:.2f} '
      f'| {row["checkpoint_seconds"] / row["seconds"]:.2f} |'
    )
  if starts := result.get('starts'):
    lines += [
      '',
      'From the start of a process to the end of its first search of '
      f'{starts[0]["population"]} members, with compiled programs on disk, of '
      'the time without:',
      '',
      '| devices | of the time |',
      '|---|---|',
    ]
    lines += [
      f'| {start["devices"]} | {start["warm"] / start["cold"]:.2f} |'
      for start in starts
    ]
  return '\n'.join([*lines, ''])


def main(_: Sequence[str]) -> None:
  populations = [int(size) for size in _POPULATIONS.value]
  if _WORKER.value:
    rows = _measured(populations[:1], _REPEATS.value, _DEV_LIMIT.value)
    first = time.time()
    rows += _measured(populations[1:], _REPEATS.value, _DEV_LIMIT.value)
    print(json.dumps({'rows': rows, 'first': first}))
    return
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_scale'),
    'rows': [],
    'starts': [],
  }
  if _SMOKE.value:
    result['rows'] = _measured([4], 1, 2)
  for devices in [] if _SMOKE.value else _DEVICES.value:
    with tempfile.TemporaryDirectory() as cache:
      few = _POPULATIONS.value[:1]
      cold = _in_process(devices, few, cache)['start']
      found = _in_process(devices, _POPULATIONS.value, cache)
    result['rows'] += found['rows']
    result['starts'].append(
      {
        'devices': int(devices),
        'population': populations[0],
        'cold': cold,
        'warm': found['start'],
      }
    )
    command.say(f'{devices} devices are measured')
    if _OUT.value:  # Each time: a run that is stopped leaves what it has.
      tables.write(result, markdown(result), _OUT.value)
  if _OUT.value:
    tables.write(result, markdown(result), _OUT.value)
  print(markdown(result))


if __name__ == '__main__':
  command.launch(main, quiet=False)
