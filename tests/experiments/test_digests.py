"""Two generations of every preset leave the members that they left before.

What is proposed, from which parents, by what operator and with what scores is
compared with digests.json. The runs are small ones of the evolve program on the pocket
stage `main`, and only their flags and their folders are read, so that anything
behind them may be rebuilt.

Last bits differ from one jax to another and may turn a greedy answer. Under
another jax than the recorded one, only the initial population is compared.

Where results are meant to change, or a preset is new, record it, or all:

  python -m tests.experiments.test_digests -k genome_as_published
  python -m tests.experiments.test_digests

Arguments are those of pytest. What is recorded before a change and after it
differs in that change alone: read the difference.
"""

import hashlib
import importlib
import itertools
import json
import os
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from tests.experiments import runs

EXPERIMENTS = runs.ROOT / 'experiments'
STORED = pathlib.Path(__file__).with_name('digests.json')
RECORD = 'EVOJAX_LLM_RECORD_DIGESTS'
HOW = (
  'If that is meant, record it: python -m tests.experiments.test_digests -k '
)
# The presets that are run of a system that takes any name.
CHOSEN = {'evosax_algorithms': ('SimpleGA', 'PSO', 'SNES')}
# Ten experts, and a few members of the other recipes.
MOST_MEMBERS = 14
FLAGS = (
  '--config.tasks=main',
  '--config.strategy.generations=2',
  '--config.dev_limit=20',
  '--config.test_limit=1',
  '--config.ensemble.size=0',
)

# How ml_collections reads a configuration file.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)


def get_config(system: str, name: str):
  """The configuration that --config=experiments/<system>/config.py:<name> is.

  Raises:
    ValueError: there is no preset of that name; the message lists all.
  """
  module = importlib.import_module(f'experiments.{system}.config')
  return module.get_config(name)


def names(system: str) -> list[str]:
  """The presets of a system, which an unknown one is answered with."""
  if system in CHOSEN:
    return list(CHOSEN[system])
  try:
    get_config(system, '?')
  except ValueError as error:
    listed = str(error).partition('expected ')[2]
    return re.findall(r'\w+', listed.removeprefix('one of').replace(' or ', ''))
  raise AssertionError(
    f'experiments/{system}/config.py takes any name: say in CHOSEN of '
    f'{pathlib.Path(__file__).name} which of them are run.'
  )


PRESETS = [
  f'{file.parent.name}:{name}'
  for file in sorted(EXPERIMENTS.glob('*/config.py'))
  for name in names(file.parent.name)
]


def flags(system: str, name: str) -> list[str]:
  """Flags of a short run of a preset, without --workdir."""
  strategy = get_config(system, name).strategy
  found = [f'--config={EXPERIMENTS / system / "config.py"}:{name}', *FLAGS]
  if strategy.population > MOST_MEMBERS:
    found.append(f'--config.strategy.population={MOST_MEMBERS}')
  if strategy.options.get('members'):
    found.append('--config.strategy.options.members=10')
  return found


def digest(folder: pathlib.Path) -> dict:
  """What is kept of a finished run.

  Returns:
    `fitness` of the members of each generation, `lines`, the beginnings of the
    SHA-256 of their lines in members.jsonl, `sha256` of all lines, and `best`:
    its id, and two numbers that follow from the exported weights.
  """
  text = (folder / 'members.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  generations = [
    list(group)
    for _, group in itertools.groupby(rows, lambda row: row['generation'])
  ]
  best = json.loads((folder / 'summary.json').read_text())['best']
  return {
    'fitness': [[row['fitness'] for row in group] for group in generations],
    'lines': [
      ' '.join(_sha256(row)[:8] for row in group) for group in generations
    ],
    'sha256': _sha256(rows),
    'best': {'id': best['id'], **_weights(folder / 'best')},
  }


def _sha256(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _weights(folder: pathlib.Path) -> dict[str, float]:
  """The length of all weights as one vector, and its share along a direction.

  Both hardly change with last bits; the second depends on signs and order.
  """
  tensors = safetensors.load_file(folder / 'adapter_model.safetensors')
  flat = np.concatenate(
    [tensors[name].astype(np.float64).ravel() for name in sorted(tensors)]
  )
  norm = float(np.linalg.norm(flat))
  signs = np.sign(np.random.default_rng(0).random(flat.size) - 0.5)
  return {'norm': norm, 'share': float(flat @ signs) / norm}


def read_stored() -> dict:
  if not STORED.exists():
    return {'jax': jax.__version__, 'presets': {}}
  return json.loads(STORED.read_text())


def record(preset: str, found: dict) -> None:
  """Puts a digest into the file, and drops those of presets that are gone."""
  stored = read_stored()
  if stored['jax'] != jax.__version__:
    # One file is of one jax.
    stored = {'jax': jax.__version__, 'presets': {}}
  known = {**stored['presets'], preset: found}
  stored['presets'] = {name: known[name] for name in PRESETS if name in known}
  STORED.write_text(json.dumps(stored, indent=1) + '\n')


def first_difference(rows: list[dict], found: dict, stored: dict, last: int):
  """The first member that is not as stored, in words; None if there is none.

  Args:
    rows: the lines of members.jsonl.
    found: a digest.
    stored: the one of before.
    last: number of the last generation to look at.
  """
  members = iter(rows)
  for number in range(last + 1):
    here, there = (
      list(zip(d['lines'][number].split(), d['fitness'][number], strict=True))
      if number < len(d['lines'])
      else []
      for d in (found, stored)
    )
    for slot, (new, old) in enumerate(itertools.zip_longest(here, there)):
      member = next(members) if new else None
      if new == old:
        continue
      where = f'generation {number}, slot {slot}'
      if new is None:
        return f'{where}: no member; a fitness of {old[1]} was stored'
      if old is None:
        return f'{where}: none was stored; now {json.dumps(member)}'
      fitness = (
        f'a fitness of {old[1]} was stored'
        if new[1] != old[1]
        else 'the fitness is the stored one, another field is not'
      )
      return f'{where}: {fitness}; now {json.dumps(member)}'
  return None


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_leaves_the_members_of_before(preset, tmp_path):
  stored = read_stored()
  recording = bool(os.environ.get(RECORD))
  if not recording and preset not in stored['presets']:
    pytest.fail(f'No digest of {preset} is stored. {HOW}{preset}', False)
  assert runs.evolve(flags(*preset.split(':')), tmp_path / 'run') is None
  found = digest(tmp_path / 'run')
  if recording:
    record(preset, found)
    return
  known = stored['presets'][preset]
  same_jax = stored['jax'] == jax.__version__
  lines = (tmp_path / 'run' / 'members.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  last = max(len(found['lines']), len(known['lines'])) - 1
  difference = first_difference(rows, found, known, last if same_jax else 0)
  if difference:
    pytest.fail(f'{preset}, {difference}. {HOW}{preset}', False)
  if not same_jax:
    pytest.skip(
      f'jax is {jax.__version__}, and {stored["jax"]} in {STORED.name}: only '
      'the initial population was compared'
    )
  assert found['sha256'] == known['sha256']
  assert found['best'] == pytest.approx(known['best'], rel=1e-4, abs=1e-4)


def test_only_presets_that_there_are_have_digests():
  gone = set(read_stored()['presets']) - set(PRESETS)
  assert not gone, f'{HOW}{PRESETS[0]} drops them.'


if __name__ == '__main__':
  os.environ[RECORD] = '1'
  sys.exit(pytest.main(['-n0', __file__, *sys.argv[1:]]))
