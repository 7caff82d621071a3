"""Runs of several seeds in one process, and what they have in common."""

import contextlib
import os
from typing import Any

from evojax_llm.runs import errors
from evojax_llm.runs import preparation
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import runner


def run(search: preparation.Prepared, workdir: str | os.PathLike) -> None:
  """Runs every seed in workdir/seed_N and writes a summary over all.

  Each of these is a run folder as that of a single seed. Programs are compiled
  once, and the baselines, which no seed changes, are scored once.

  Raises:
    UserError: as a run of one seed.
  """
  config = search.config
  with contextlib.closing(search.open_folder(workdir, config)) as folder:
    if folder.finished:
      errors.say(f'{folder.path} is finished')
    else:
      rivals_of, summaries = None, {}
      for seed in range(config.seed, config.seed + config.seeds):
        path = runner.run_prepared(
          search, folder.path / f'seed_{seed}', seed, rivals_of
        )
        rivals_of = rivals_of or path
        summaries[seed] = record.read_json(path / 'summary.json')
      _write(folder, search.name, summaries)
  print(report.table_over_seeds(record.read_json(folder.path / 'summary.json')))
  print(f'\nreport: {folder.path / "summary.md"}')


def _write(
  folder: record.RunFolder, name: str, summaries: dict[int, dict[str, Any]]
) -> None:
  summary = report.over_seeds(name, summaries)
  record.write_text(
    folder.path / 'summary.md', report.markdown_over_seeds(summary)
  )
  record.write_json(folder.path / 'summary.json', summary)
