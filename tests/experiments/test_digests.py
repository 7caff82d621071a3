"""Two generations of presets leave the members that they left before.

What is proposed, from which parents, by what operator and with what scores is
compared with digests.json. The runs are small ones on the pocket stage `main`;
they share what they read, what they compile and the scores of the baselines.

Last bits differ from one jax to another and may turn a greedy answer. Under
another jax than the recorded one, only the initial population is compared.

Where results are meant to change, or a preset is new, record one or all:

  EVOJAX_LLM_RECORD_DIGESTS=1 pytest -n0 tests/experiments/test_digests.py \
      -k '[genome:genome_as_published]'
  EVOJAX_LLM_RECORD_DIGESTS=1 pytest -n0 tests/experiments/test_digests.py

Under another jax than the file's, this begins the file anew: record all.
"""

import hashlib
import itertools
import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from evojax_llm import systems
from evojax_llm.engine import runtime
from evojax_llm.runs import preparation
from evojax_llm.runs import runner

STORED = pathlib.Path(__file__).with_name('digests.json')
RECORD = 'EVOJAX_LLM_RECORD_DIGESTS'
# Of systems whose presets differ in names or numbers alone, those that are run:
# those that propose most members, of GENOME and Model Swarms.
CHOSEN = {
  # `adapters` is genome_plus under another name.
  'pocket': ('gates',),
  'genome': (
    'genome',
    'genome_plus',
    'genome_as_published_cli',
    'genome_plus_as_published_cli',
  ),
  'model_swarms': (
    'model_swarms',
    'model_swarms_as_published',
    'model_swarms_as_published_light',
    'model_swarms_by_genome',
  ),
  # One that keeps a population, and one that keeps a mean.
  'evosax_algorithms': ('SimpleGA', 'SNES'),
  'pso_merging': ('pso_merging',),
  'coefficients': ('cma_es', 'random_search', 'ga_sbx'),
  'lorahub': ('lorahub',),
  'low_rank_es': ('low_rank_es',),
  'randopt': (),
  'evogm': ('evogm',),
  'm2n2': ('m2n2',),
  'pareto': ('nsga2',),
  'evomerge': ('evomerge',),
  'sakana': ('parameter_space', 'data_flow'),
}
# After the first round the covariance of 20 genes is one of 12 members: most of
# its axes are as good as any others, and the last bit of it chooses them.
ROUNDS = {
  'sakana:parameter_space': 1,
  'sakana:data_flow': 1,
  'evomerge:evomerge': 1,
}
# Ten experts, and a few members of the other recipes.
MOST_MEMBERS = 14

PRESETS = [
  f'{system}:{name}'
  for system, module in sorted(systems.systems().items())
  for name in CHOSEN.get(system, module.PRESETS)
]


@pytest.fixture(scope='module', autouse=True)
def models_are_optimised():
  """Models run for long what they compile; strategies do not."""
  compiled = runtime.Runtime.compiled

  def optimised(self, *arguments, **options):
    jax.config.update('jax_disable_most_optimizations', False)
    try:
      return compiled(self, *arguments, **options)
    finally:
      jax.config.update('jax_disable_most_optimizations', True)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runtime.Runtime, 'compiled', optimised)
    yield


@pytest.fixture(scope='module')
def shared():
  """What runs share, as the trials of a sweep do: see `run`."""
  return {}, {}


def run(preset: str, folder: pathlib.Path, shared) -> None:
  """Makes a short run of a preset.

  Args:
    preset: system:name.
    folder: of the run.
    shared: what earlier runs have read and compiled, and by what they read
      the folders of those that scored the baselines.
  """
  config = systems.load(preset)
  config.tasks, config.ensemble.size = 'main', 0
  # Groups of one size, and as many test items: what scores them is compiled
  # once, and not again for the test and for other populations.
  config.dev_limit = config.test_limit = 10
  config.execution.members_per_group = 4
  # Runs that go on have tests of their own.
  config.checkpoint_every = 10
  strategy = config.strategy
  strategy.generations = ROUNDS.get(preset, 2)
  strategy.population = min(strategy.population, MOST_MEMBERS)
  if 'epochs' in strategy.options:
    strategy.options.epochs = 5
  if strategy.options.get('members'):
    strategy.options.members = 10
  if config.refine.loss:
    # Steps and whole models take long to compile, and have tests of their own.
    config.refine.loss, strategy.options.mutation = '', 'gaussian'
    config.space = 'adapters'
  # The mixes of these experts are the same ones in every space.
  cache, scored = shared
  prepared = preparation.prepare(config, cache=cache)
  key = preparation.data_key(prepared.config, 'space')
  runner.run_prepared(prepared, folder, share=scored.get(key))
  scored.setdefault(key, folder)


def read_lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def read_members(folder: pathlib.Path) -> list[dict]:
  """The lines of members.jsonl but for what their genomes are."""
  rows, own = read_lines(folder / 'members.jsonl'), ('recipe', 'model')
  return [{k: v for k, v in row.items() if k not in own} for row in rows]


def digest(folder: pathlib.Path) -> dict:
  """What is kept of a finished run.

  Returns:
    By generation the `fitness` of its members, the beginnings of the SHA-256 of
    their `lines` in members.jsonl, and how many `tokens` were read and written;
    the `sha256` of all lines; the id of the `best`, and numbers that follow
    from its weights.
  """
  rows = read_members(folder)
  metrics = read_lines(folder / 'metrics.jsonl')
  generations = [
    [row for row in rows if row['generation'] == line['generation']]
    for line in metrics
  ]
  best = json.loads((folder / 'summary.json').read_text())['best']
  return {
    'fitness': [[row['fitness'] for row in group] for group in generations],
    'lines': [
      ' '.join(_sha256(row)[:8] for row in group) for group in generations
    ],
    'tokens': [line['tokens'] for line in metrics],
    'sha256': _sha256(rows),
    'best': {'id': best['id'], **_weights(folder / 'best')},
  }


def _sha256(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _weights(folder: pathlib.Path) -> dict[str, float]:
  """The length of all weights as one vector, and its share in one direction.

  Last bits hardly change them; the second depends on signs and order as well.
  """
  (path,) = folder.glob('*model.safetensors')
  tensors = safetensors.load_file(path)
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
  known = stored['presets'] if stored['jax'] == jax.__version__ else {}
  known = {**known, preset: found}
  kept = {name: known[name] for name in PRESETS if name in known}
  text = json.dumps({'jax': jax.__version__, 'presets': kept}, indent=1)
  # A list of numbers is one line.
  text = re.sub(r'\[[^][{}"]*\]', lambda m: ' '.join(m[0].split()), text)
  STORED.write_text(text + '\n')


def first_difference(
  rows: list[dict], found: dict, stored: dict, last: int
) -> str | None:
  """Says who is the first member that is not as stored; None if none is.

  Args:
    rows: the lines of members.jsonl.
    found: the digest of them.
    stored: the one of before.
    last: the last generation to look at.
  """

  def members(digest):
    return [
      (number, fitness, line)
      for number, (values, lines) in enumerate(
        zip(digest['fitness'], digest['lines'], strict=True)
      )
      for fitness, line in zip(values, lines.split(), strict=True)
      if number <= last
    ]

  for row, new, old in itertools.zip_longest(
    rows, members(found), members(stored)
  ):
    if new == old:
      continue
    before = 'none was stored'
    if old is not None:
      before = f'one of generation {old[0]} with fitness {old[1]} was stored'
      if new is not None and new[:2] == old[:2]:
        before = 'its generation and fitness are as stored, the rest is not'
    here = 'no member' if new is None else json.dumps(row)
    return f'the first that differs: {here}; {before}'
  return None


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_leaves_the_members_of_before(preset, shared, tmp_path):
  how = (
    f'If that is meant: {RECORD}=1 pytest -n0 '
    f"tests/experiments/{pathlib.Path(__file__).name} -k '[{preset}]'"
  )
  stored, recording = read_stored(), bool(os.environ.get(RECORD))
  known = stored['presets'].get(preset)
  if known is None and not recording:
    pytest.fail(f'{preset} has no digest. {how}', pytrace=False)
  folder = tmp_path / 'run'
  run(preset, folder, shared)
  found = digest(folder)
  if recording:
    record(preset, found)
    return
  same_jax = stored['jax'] == jax.__version__
  rows = read_members(folder)
  last = max(row['generation'] for row in rows)
  difference = first_difference(rows, found, known, last if same_jax else 0)
  if difference:
    pytest.fail(f'{preset}, {difference}. {how}', pytrace=False)
  if not same_jax:
    pytest.skip(
      f'jax is {jax.__version__}, and {stored["jax"]} in {STORED.name}: only '
      'the initial population was compared'
    )
  for name in ('fitness', 'lines', 'sha256', 'tokens'):
    assert found[name] == known[name], how
  assert found['best'] == pytest.approx(known['best'], rel=1e-4, abs=1e-4), how


@pytest.mark.parametrize('system', ['genome', 'model_swarms'])
def test_presets_that_are_not_run_differ_in_numbers_alone(system):
  module = systems.systems()[system]

  def ways(name):
    options = module.get_config(name).strategy.options.to_dict().items()
    return {k: v for k, v in options if isinstance(v, str | bool)}

  run = [ways(name) for name in CHOSEN[system]]
  assert all(ways(name) in run for name in module.PRESETS)


def test_the_adapters_of_the_pocket_are_genome_plus():
  of_pocket, plain = map(systems.load, ('pocket:adapters', 'genome_plus'))
  for name in ('name', 'tasks', 'dev_limit', 'test_limit'):
    of_pocket[name] = plain[name]
  assert of_pocket == plain


def test_every_digest_is_of_a_preset():
  gone = set(read_stored()['presets']) - set(PRESETS)
  assert not gone, f'recording any preset with {RECORD}=1 drops them'
