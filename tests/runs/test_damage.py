"""Run folders that are damaged: made whole again, or named."""

import dataclasses
import json
import shutil

import pytest

from evojax_llm import runs as library
from evojax_llm.runs import analysis
from evojax_llm.runs import errors
from evojax_llm.runs import preparation
from evojax_llm.runs import runner
from tests.experiments import runs


@pytest.fixture(scope='module')
def prepared(finished):
  """What the finished run works with; compiled once for all damages."""
  kept = json.loads((finished[0] / 'config.json').read_text())['config']
  return preparation.prepare(library.RunConfig.from_config(kept))


def gone(name):
  def damage(folder):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()

  return damage


def cut(name):
  def damage(folder):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])

  return damage


def flipped(name):
  def damage(folder):
    data = bytearray((folder / name).read_bytes())
    # Longer than the header of an array in it, of which much tells nothing.
    for place in range(len(data) // 2, len(data) // 2 + 64):
      data[place] ^= 0x20
    (folder / name).write_bytes(bytes(data))

  return damage


def without(name, key):
  def damage(folder):
    content = json.loads((folder / name).read_text())
    del content[key]
    (folder / name).write_text(json.dumps(content))

  return damage


def line(name, number, text):
  def damage(folder):
    lines = (folder / name).read_text().splitlines(keepends=True)
    lines[number] = text
    (folder / name).write_text(''.join(lines))

  return damage


def of_another_kind(name):
  def damage(folder):
    was_folder = (folder / name).is_dir()
    gone(name)(folder)
    if was_folder:
      (folder / name).write_text('')
    else:
      (folder / name).mkdir()

  return damage


def all_of(*damages):
  def damage(folder):
    for one in damages:
      one(folder)

  return damage


UNFINISHED = gone('summary.json')
# Parents are named with the best.
LINEAGE = {'lineage', 'best'}


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (all_of(), 'is finished'),
    (cut('summary.json'), 'summary.json: not valid JSON'),
    (without('summary.json', 'rows'), "summary.json is damaged: no 'rows'"),
    (gone('best'), 'best of'),
    (all_of(gone('curve.png'), gone('summary.md')), 'summary.md, curve.png of'),
    (UNFINISHED, 'going on after generation 4'),
    (
      all_of(UNFINISHED, gone('checkpoints/4'), gone('best')),
      'going on after generation 3',
    ),
    (all_of(UNFINISHED, gone('checkpoints')), 'the run begins again'),
    (all_of(UNFINISHED, cut('baselines.json')), 'baselines.json is made again'),
    (
      all_of(UNFINISHED, without('baselines.json', 'experts')),
      "no 'experts'",
    ),
    (
      all_of(UNFINISHED, gone('baseline_items')),
      'baseline_items lacks answers',
    ),
    (all_of(UNFINISHED, flipped('baseline_items/00000.npz')), 'is damaged'),
    (
      all_of(UNFINISHED, flipped('items/00001.npz')),
      'The best members are scored again',
    ),
  ],
)
def test_what_can_be_made_again_is(
  finished, prepared, tmp_path, capsys, damage, message
):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  damage(folder)
  runner.run_prepared(prepared, folder)
  assert message in capsys.readouterr().err
  made, whole = runs.result(folder), runs.result(finished[0])
  damaged = [n for n in whole['items'] if whole['items'][n] != made['items'][n]]
  # What members did on items is not made again.
  assert not damaged or damaged == ['items/00001.npz']
  del made['items'], whole['items']
  assert made == whole


@pytest.mark.parametrize('limit', [{'tokens': 1}, {'seconds': 0.01}])
def test_what_a_search_has_spent_counts_when_it_goes_on(
  prepared, tmp_path, limit
):
  search = dataclasses.replace(prepared.config.strategy, **limit)
  config = dataclasses.replace(prepared.config, strategy=search)
  prepared = dataclasses.replace(prepared, config=config)
  folder = runner.run_prepared(prepared, tmp_path / 'run')
  before = runs.result(folder)
  assert before['summary']['generations'] == 0
  UNFINISHED(folder)
  runner.run_prepared(prepared, folder)
  assert runs.result(folder) == before


@pytest.mark.parametrize(
  ('damage', 'message', 'others'),
  [
    (gone('items'), '0, 1, 2, 3, 4 of {}/items are lost', set()),
    (gone('items/00002.npz'), 'generations 2 of {}/items are lost', set()),
    (cut('metrics.jsonl'), 'metrics.jsonl are lost', {'tokens'}),
    (gone('metrics.jsonl'), '4 of {}/metrics.jsonl', {'tokens'}),
    (
      line('metrics.jsonl', 1, '{"generation": 1}\n'),
      'generations 1 of {}/metrics.jsonl are lost',
      {'tokens'},
    ),
    (line('members.jsonl', 0, '\0\n'), '0 of {}/members.jsonl', LINEAGE),
    (gone('members.jsonl'), '4 of {}/members.jsonl', LINEAGE),
  ],
)
def test_what_is_lost_is_named_and_the_rest_is_the_same(
  finished, prepared, tmp_path, capsys, damage, message, others
):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  all_of(UNFINISHED, damage)(folder)
  runner.run_prepared(prepared, folder)
  message = message.format(folder)
  assert message in capsys.readouterr().err
  made, whole = map(runs.summary, (folder, finished[0]))
  assert len(lost := made.pop('lost')) == 1 and message in lost[0]
  assert f'Warning: {lost[0]}' in (folder / 'summary.md').read_text()
  differ = {key for key in whole if made[key] != whole[key]}
  assert differ - {'seconds', 'ledger'} <= others


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (of_another_kind('checkpoints'), 'checkpoints is a file; expected a fol'),
    (of_another_kind('items'), 'items is a file; expected a folder'),
    (of_another_kind('metrics.jsonl'), 'jsonl is a folder; expected a file'),
    (
      all_of(gone('checkpoints'), gone('best')),
      'no checkpoint from which the end of the run could be made',
    ),
    (
      all_of(
        UNFINISHED,
        gone('checkpoints/3/_CHECKPOINT_METADATA'),
        gone('checkpoints/4/_CHECKPOINT_METADATA'),
      ),
      'None of the checkpoints',
    ),
    (cut('config.json'), 'not valid JSON'),
    (without('config.json', 'inputs'), "config.json is damaged: no 'inputs'"),
  ],
)
def test_what_cannot_be_made_again_is_an_error_that_changes_nothing(
  finished, prepared, tmp_path, damage, message
):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  damage(folder)
  with pytest.raises(errors.UserError, match=message):
    runner.run_prepared(prepared, folder)
  lines = 'members.jsonl'
  assert (folder / lines).read_bytes() == (finished[0] / lines).read_bytes()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (gone('members.jsonl'), r'members\.jsonl is damaged: no \d+'),
    (without('baselines.json', 'fitness'), "damaged: no 'fitness'"),
    (gone('baselines.json'), 'no such file'),
    (flipped('items/00001.npz'), r'00001\.npz is damaged'),
  ],
  ids=('members', 'without fitness', 'no baselines', 'flipped bit'),
)
def test_an_analysis_names_what_is_damaged(finished, tmp_path, damage, message):
  folder = tmp_path / 'run'
  shutil.copytree(finished[0], folder)
  damage(folder)
  with pytest.raises(ValueError, match=message):
    analysis.analyse(folder)
