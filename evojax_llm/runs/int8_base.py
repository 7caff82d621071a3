"""What an eight-bit base changes: scores of the base with and without it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.runs import base_and_adapters
from evojax_llm.runs import errors
from evojax_llm.runs import record
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.run_config import RunConfig

_FILE = 'base_dtype.json'


def difference(whole: Any, eight: Any, model: Model) -> dict[str, dict]:
  """Scores the base on `dev`, in its own type and in eight bits.

  Args:
    whole, eight: evaluators of the same items; one with an eight-bit base.
    model: the base.

  Returns:
    For each task the scores `whole` and `eight`, and `agree`, the share of
    items with the same verdict.
  """
  base = base_and_adapters.alone(model.config)
  first, second = (
    evaluator.evaluate(Expressed(model), base) for evaluator in (whole, eight)
  )
  return {
    a.task: {
      'whole': float(first.task_scores[0, k]),
      'eight': float(second.task_scores[0, k]),
      'agree': float((a.values[0] == b.values[0]).mean()),
    }
    for k, (a, b) in enumerate(zip(first.tasks, second.tasks, strict=True))
  }


def describe(changed: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the difference in a line a task."""
  return '\n'.join(
    f'int8 base, {task}: {100 * v["eight"]:.1f} % after '
    f'{100 * v["whole"]:.1f} %, the same on {100 * v["agree"]:.1f} % of items'
    for task, v in changed.items()
  )


def report(
  run: record.RunFolder, config: RunConfig, setup: setup_lib.Setup
) -> None:
  """Measures the difference once a run, prints it, and keeps it."""
  execution = dataclasses.replace(config.execution, base_dtype=None)
  plain = dataclasses.replace(config, execution=execution)

  def make():
    whole = setup_lib.make_evaluator(plain, setup)
    eight = setup_lib.make_evaluator(config, setup)
    return difference(whole, eight, setup.experts.model())

  errors.say(record.kept(run.path / _FILE, describe, make))


def read(run: record.RunFolder) -> dict | None:
  """Returns the difference that was kept; None where the base is whole."""
  path = run.path / _FILE
  return record.read_json(path) if path.exists() else None
