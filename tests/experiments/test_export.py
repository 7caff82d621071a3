"""The export program, on runs of the evolve program."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes.space import make_space
from evojax_llm.models import hub
from evojax_llm.models.expression import variables
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import stack
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import checkpoint
from evojax_llm.runs import export as export_lib
from evojax_llm.runs import model_card
from evojax_llm.runs import report
from evojax_llm.runs import rows
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.errors import UserError
from tests.experiments import running


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma2')


@pytest.fixture(scope='module')
def run_folder(finished):
  return finished[0]


@pytest.fixture(scope='module')
def voting(run_folder, tmp_path_factory):
  """The run, had dev chosen votes of three members."""
  copy = shutil.copytree(run_folder, tmp_path_factory.mktemp('voting') / 'run')
  _, state = checkpoint.Checkpoints(copy / 'checkpoints').read()
  summary = json.loads((copy / 'summary.json').read_text())
  groups = summary['ensembles']
  best = run_state.best_members(state, 3)
  groups[report.OF_EVOLVED].update(
    members=[best.ids[i] for i in (0, 2, 1)], fitness=[0.3, 0.2, 0.1]
  )
  groups[report.OF_EXPERTS].update(members=[2, 0, 1], fitness=[3.0, 2.0, 1.0])
  (copy / 'summary.json').write_text(json.dumps(summary))
  return copy


def plurality(predictions):
  """By item the first member of those whose answer most have given."""
  stands = []
  for answers in zip(*predictions, strict=True):
    most = max(answers, key=answers.count)
    stands.append(answers.index(most))
  return stands


@pytest.fixture
def unfinished(run_folder, tmp_path):
  folder = tmp_path / 'unfinished'
  shutil.copytree(run_folder, folder)
  (folder / 'summary.json').unlink()
  shutil.rmtree(folder / 'best')
  return folder


def export(run, out, *more):
  return running.run_program('export', f'--run={run}', f'--out={out}', *more)


def test_the_adapter_is_that_of_the_run(run_folder, tmp_path):
  assert export(run_folder, tmp_path / 'out') is None
  for file in (run_folder / 'best').glob('adapter*'):
    assert (tmp_path / 'out' / file.name).read_bytes() == file.read_bytes()


def test_without_checkpoints_it_is_that_of_best(run_folder, tmp_path):
  copy = shutil.copytree(run_folder, tmp_path / 'run')
  shutil.rmtree(copy / 'checkpoints')
  assert export(copy, tmp_path / 'out') is None
  name = 'adapter_model.safetensors'
  expected = (run_folder / 'best' / name).read_bytes()
  assert (tmp_path / 'out' / name).read_bytes() == expected


def changes(space, genomes):
  """a b of every member and linear map, leaves (M, L, in, out)."""
  factors = jax.vmap(space.express)(genomes).factors
  return jax.tree.map(
    lambda pair: np.asarray(pair['a']) @ np.asarray(pair['b']),
    factors,
    is_leaf=lambda node: 'a' in node,
  )


def test_every_row_scores_as_in_the_table_and_is_exported(
  voting, base, tmp_path
):
  run = rows.Run.open(voting)
  names = [row['name'] for row in run.summary['rows']]
  assert len(names) == 9
  found = [run.row(name, jnp.float32) for name in names]
  population = stack.concatenate(*(row.genomes for row in found))
  setup = setup_lib.load(run.config, run.files)
  evaluator = setup_lib.make_evaluator(run.config, setup)
  evaluator.prepare(setup.space, population)
  scores = evaluator.evaluate(setup.space, population, split='test')
  first = 0
  for row in found:
    if row.vote:
      assert len(row.members) == 3
    else:
      expected = [t['score'] for t in row.entry['test']['tasks'].values()]
      found_scores = scores.task_scores[first]
      assert found_scores == pytest.approx(expected, abs=1e-6), row.name
    first += len(row.members)
  for name in (*names, 'vote', 'expert1', 'Scaled_Average (x 2)'):
    row = run.row(name)
    out = tmp_path / name.replace(' ', '_')
    export_lib.export(voting, out, name)
    folders = [out]
    if row.vote:
      known = json.loads((out / rows.VOTE_FILE).read_text())
      assert [m['name'] for m in known['members']] == list(row.members)
      folders = [out / member['folder'] for member in known['members']]
    back = make_space('adapters', base, folders)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6),
      changes(back, back.experts()),
      changes(row.space, row.genomes),
    )


def test_a_vote_of_one_member_is_told(voting, tmp_path, capsys):
  copy = shutil.copytree(voting, tmp_path / 'run')
  summary = json.loads((copy / 'summary.json').read_text())
  for group in summary['ensembles'].values():
    group['members'] = group['members'][:1]
  (copy / 'summary.json').write_text(json.dumps(summary))
  run = rows.Run.open(copy)
  for name, alone in (('vote', 'evolved'), ('vote of experts', 'expert2')):
    run.row(name)
    said = capsys.readouterr().err
    assert 'dev chose one member' in said and f"--row='{alone}'" in said


def test_score_and_generate_take_a_vote(voting, tmp_path, capsys):
  known = json.loads((voting / 'summary.json').read_text())['ensembles']
  out = tmp_path / 'scores.json'
  flags = [f'--run={voting}', '--row=vote', '--split=test', '--per_item']
  assert running.run_program('score', *flags, f'--out={out}') is None
  base, *members, vote = json.loads(out.read_text())['members']
  assert base['name'] == 'base' and vote['name'] == 'vote of 3'
  ids = known[report.OF_EVOLVED]['members']
  assert [m['name'] for m in members] == [f'member {i}' for i in ids]
  for task, decided in vote['tasks'].items():
    items = [member['tasks'][task]['items'] for member in members]
    answers = [[item['prediction'] for item in one] for one in items]
    stands = plurality(answers)
    assert decided['items'] == [items[m][i] for i, m in enumerate(stands)]
    correct = [item['correct'] for item in decided['items']]
    assert decided['score'] == pytest.approx(np.mean(correct))

  # What is exported is a vote as well.
  export_lib.export(voting, tmp_path / 'vote', 'vote of experts')
  here, decides = base_and_adapters.of_row(str(tmp_path / 'vote'), '')
  there, expected = base_and_adapters.of_row(
    rows.Run.open(voting), 'vote of experts'
  )
  assert here.names == there.names == ('base', 'expert2', 'expert0', 'expert1')
  assert decides.rule == expected.rule
  assert decides.fitness.tolist() == expected.fitness.tolist() == [3, 2, 1]
  prompts, out = tmp_path / 'prompts.json', tmp_path / 'texts.json'
  prompts.write_text('["the tea", "in"]')
  flags = [f'--run={tmp_path / "vote"}', f'--out={out}']
  flags += [f'--prompts={prompts}', '--max_new_tokens=4']
  assert running.run_program('generate', *flags) is None
  assert running.run_program('score', *flags[:2]) == 1
  assert 'no tasks: name them with --tasks' in capsys.readouterr().err
  written = json.loads(out.read_text())
  assert written['row'] == report.OF_EXPERTS
  _, *members, vote = written['members']
  texts = {member['name']: member['outputs'] for member in members}
  assert tuple(texts) == here.names[1:]
  for i, name in enumerate(vote['of']):
    assert vote['outputs'][i] == texts[name][i]


def test_the_model_card(run_folder, base, tmp_path):
  export_lib.export(run_folder, tmp_path / 'out')
  card = (tmp_path / 'out' / 'README.md').read_text()
  _, front, text = card.split('---\n', 2)
  front = dict(line.split(': ', 1) for line in front.splitlines())
  assert front['base_model'] == f'"{base.name}"'
  assert front['library_name'] == '"peft"' and '"lora"' in front['tags']
  summary = json.loads((run_folder / 'summary.json').read_text())
  inputs = json.loads((run_folder / 'config.json').read_text())['inputs']
  for part in (
    f'# {summary["name"]}: evolved',
    'Strategy `genome_plus`',
    '`expert1`',
    '## Recipe',
    '## Scores',
    f'| {summary["best"]["id"]} ',
    inputs['model'],
    *inputs['tasks'],
    'Not stated',
  ):
    assert part in text, part
  said = (tmp_path / 'out' / 'mergekit.yaml').exists()
  assert said == (run_folder / 'best' / 'mergekit.yaml').exists()
  assert said == ('is the recipe in the format of mergekit' in text)
  assert said != ('No recipe of mergekit makes it again' in text)
  model = shutil.copytree(base, tmp_path / 'base')
  model.joinpath('README.md').write_text(
    '---\nlicense: gemma\nlicense_link: x\n---\nlicense: no\n'
  )
  assert model_card.licence(model) == {'license': 'gemma', 'license_link': 'x'}


def test_a_wide_adapter_is_brought_to_a_lower_rank(
  run_folder, base, tmp_path, capsys
):
  export_lib.export(run_folder, tmp_path / 'wide')
  narrow = export_lib.Options(max_rank=2)
  export_lib.export(run_folder, tmp_path / 'narrow', options=narrow)
  said = capsys.readouterr().err
  wide, small = (
    changes(space, space.experts())
    for name in ('wide', 'narrow')
    for space in [make_space('adapters', base, [tmp_path / name])]
  )
  lost = []
  for x, y in zip(jax.tree.leaves(wide), jax.tree.leaves(small), strict=True):
    values = np.linalg.svd(x, compute_uv=False)
    least = np.linalg.norm(values[..., 2:], axis=-1)
    norm = np.linalg.norm(values, axis=-1)
    error = np.linalg.norm(x - y, axis=(-2, -1))
    np.testing.assert_allclose(error, least, rtol=1e-3, atol=1e-4)
    lost += (error / norm).ravel().tolist()
  assert f'{np.mean(lost):.2%} of its Frobenius norm in the mean' in said
  assert f'{np.max(lost):.2%} at most' in said
  config = json.loads((tmp_path / 'narrow/adapter_config.json').read_text())
  assert config['r'] == 2


def test_what_a_stored_type_keeps_is_told(run_folder, tmp_path, capsys):
  flags = ['--merged', '--dtype=bfloat16']
  assert export(run_folder, tmp_path / 'model', *flags) is None
  said = capsys.readouterr().err
  assert 'bfloat16 keeps 100.0% of the change' in said
  assert export(run_folder, tmp_path / 'a', '--dtype=bfloat16') == 1
  assert '--merged' in capsys.readouterr().err


def test_the_merged_model_computes_what_base_and_adapter_do(
  run_folder, base, tmp_path
):
  out = tmp_path / 'model'
  code = running.run_program(
    'export', f'--run={run_folder}', f'--out={out}', '--merged'
  )
  assert code is None
  _, merged = hub.load_checkpoint(out)
  space = make_space('adapters', base, [run_folder / 'best'])
  params = space.model().params
  member = space.express(jax.tree.map(lambda leaf: leaf[0], space.experts()))
  tokens = jnp.arange(6, 18, dtype=jnp.int32)[None]
  positions = jnp.arange(12, dtype=jnp.int32)[None]
  model = Transformer(space.model().config)
  apart, _ = model.apply(variables(params, member), tokens, positions)
  together, _ = model.apply({'params': merged}, tokens, positions)
  alone, _ = model.apply({'params': params}, tokens, positions)
  np.testing.assert_allclose(together, apart, atol=2e-4)
  assert np.abs(np.asarray(alone) - np.asarray(apart)).max() > 1e-2
  assert (out / 'tokenizer.json').is_file()


def test_an_unfinished_run_needs_to_be_allowed(
  run_folder, unfinished, tmp_path, capsys
):
  out = tmp_path / 'out'
  flags = [f'--run={unfinished}', f'--out={out}']
  assert running.run_program('export', *flags) == 1
  assert '--allow_unfinished' in capsys.readouterr().err
  assert not out.exists()
  for program, *more in (('score',), ('generate', '--prompts=x')):
    assert running.run_program(program, *flags[:1], *more) == 1
    assert 'has not finished' in capsys.readouterr().err
  assert running.run_program('export', *flags, '--allow_unfinished') is None
  name = 'adapter_model.safetensors'
  assert (out / name).read_bytes() == (run_folder / 'best' / name).read_bytes()


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--row=scaled averge'], ["'scaled average'", 'vote', 'expert2']),
    (['--out={run}'], ['Nothing is overwritten']),
    (['--out={run}/best/new'], ['inside of', 'which this command reads']),
    (['--out={base}/new'], ['inside of', 'which this command reads']),
    (['--out={tmp}'], ['Nothing is overwritten']),
    (['--out={tmp}/nothing'], ['Nothing is overwritten']),
    (['--out={tmp}/loop'], ['no path to write to']),
    (['--out={tmp}/' + 'x' * 300], ['no path to write to']),
    (['--out={run}/config.json/x'], ['inside of']),
    (['--out={tmp}/seed_0/config.json/x'], ['cannot be written']),
    (['--max_rank=2', '--merged'], ['leave it out']),
    (['--run={tmp}'], ['several runs', 'seed_0']),
  ],
)
def test_mistakes_are_refused(run_folder, base, tmp_path, capsys, flags, words):
  (tmp_path / 'seed_0' / 'checkpoints').mkdir(parents=True)
  (tmp_path / 'seed_0' / 'config.json').touch()
  (tmp_path / 'nothing').symlink_to('absent')
  (tmp_path / 'loop').symlink_to('loop')
  places = {'run': run_folder, 'base': base, 'tmp': tmp_path}
  flags = [flag.format(**places) for flag in flags]
  assert export(run_folder, tmp_path / 'out', *flags) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  for word in words:
    assert word in error
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'text',
  [
    *('{', '[]', '{}', '{"base": "b", "rule": "auto", "members": []}'),
    '{"base": "b", "rule": "lot", "members": [{"folder": "a", "name": "a", '
    '"fitness": 1}]}',
    '{"base": "b", "rule": "auto", "members": [{"folder": "../a", "name": "a", '
    '"fitness": 1}]}',
    '{"base": "b", "rule": "auto", "members": [{"folder": 3, "name": "a", '
    '"fitness": 1}]}',
  ],
)
def test_a_damaged_vote_is_named(tmp_path, text):
  (tmp_path / rows.VOTE_FILE).write_text(text)
  with pytest.raises(UserError, match=rows.VOTE_FILE):
    base_and_adapters.of_row(str(tmp_path), '')


def test_a_task_that_has_changed_is_told(run_folder, tmp_path, capsys):
  copy = shutil.copytree(run_folder, tmp_path / 'run')
  known = json.loads((copy / 'config.json').read_text())
  known['inputs']['tasks'][1] = 'another'
  (copy / 'config.json').write_text(json.dumps(known))
  flags = [f'--run={copy}', '--row=none', f'--out={tmp_path / "o.json"}']
  assert running.run_program('score', *flags) == 1
  said = capsys.readouterr().err
  assert 'b: not as the run read it' in said and 'a: not' not in said
  assert "--row='none'; expected one of" in said


def test_code_that_a_run_folder_names_is_not_run(run_folder, tmp_path, capsys):
  copy = shutil.copytree(run_folder, tmp_path / 'run')
  known = json.loads((copy / 'config.json').read_text())
  known['config']['space'] = 'payload.py:Space'
  (copy / 'config.json').write_text(json.dumps(known))
  assert export(copy, tmp_path / 'out') == 1
  assert 'config.space names code' in capsys.readouterr().err
  assert export(copy, tmp_path / 'out', '--allow_code') == 1
  assert 'payload.py' in capsys.readouterr().err


def test_a_base_that_has_changed_is_noticed(run_folder, tmp_path, capsys):
  copy = shutil.copytree(run_folder, tmp_path / 'run')
  known = json.loads((copy / 'config.json').read_text())
  known['inputs']['model'] = 'another'
  (copy / 'config.json').write_text(json.dumps(known))
  assert export(copy, tmp_path / 'out', '--merged') == 1
  assert 'has changed' in capsys.readouterr().err
  assert export(copy, tmp_path / 'out', '--merged', '--allow_changed') is None


@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda run: shutil.rmtree(run), 'no config.json'),
    (lambda run: (run / 'config.json').write_text('{'), 'not valid JSON'),
    (lambda run: (run / 'config.json').write_text('{}'), 'not that of a run'),
    (lambda run: shutil.rmtree(run / 'checkpoints'), 'no readable checkpoint'),
  ],
)
def test_folders_that_are_no_runs(unfinished, tmp_path, capsys, spoil, message):
  spoil(unfinished)
  code = running.run_program(
    'export',
    f'--run={unfinished}',
    f'--out={tmp_path / "out"}',
    '--allow_unfinished',
  )
  assert code == 1
  assert message in capsys.readouterr().err
