"""Runs that had ended, and are given more."""

import json

import pytest

from tests.experiments import running
from tests.experiments import runs

pytestmark = pytest.mark.usefixtures('shared_reading')


def test_an_ended_run_goes_on_as_if_it_had_had_more(
  finished, settings, tmp_path, capsys
):
  """It had ended within generation 1, whose members were not all scored."""
  folder, said = tmp_path / 'run', []
  assert (
    runs.evolve(settings, folder, '--config.strategy.evaluations=7') is None
  )
  summary = runs.summary(folder)
  assert (summary['evaluations'], summary['generations']) == (7, 1)
  spent = [row['reason'] for row in runs.lines(folder / 'members.jsonl')]
  assert 'the budget is spent' in spent
  capsys.readouterr()
  # The settings are those of the folder, but for those that are given.
  for evaluations, words in (
    (6, 'strategy.evaluations: 7 there, 6 here'),
    (1000, 'generation 1 had no budget: it is made again'),
  ):
    flag = f'--config.strategy.evaluations={evaluations}'
    said.append(running.run_program('evolve', f'--workdir={folder}', flag))
    assert words in capsys.readouterr().err
  assert said == [1, None]
  assert runs.summary(folder)['earlier_ends'] == [1]
  assert json.loads((folder / 'summary_1.json').read_text()) == summary
  text = (folder / 'summary.md').read_text()
  assert 'had ended after generation 1, where test was read' in text
  found, wanted = runs.result(folder), runs.result(finished[0])
  del found['summary']['earlier_ends']
  for part in (found, wanted):
    del part['summary']['name']
  assert found == wanted
