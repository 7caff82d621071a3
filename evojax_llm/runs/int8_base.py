"""What an eight-bit base changes: scores of the base with and without it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import config_dict

from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.models.expression import LowRank
from evojax_llm.runs import errors
from evojax_llm.runs import record
from evojax_llm.runs import setup as problem_lib

_FILE = 'base_dtype.json'


def difference(whole: Any, eight: Any, model: Model) -> dict[str, dict]:
  """Scores of the base on `dev`, in its own type and in eight bits.

  Args:
    whole: an evaluator with the base as it is.
    eight: one with the same tasks and items, and an eight-bit base.
    model: the base.

  Returns:
    For each task the scores `whole` and `eight`, and `agree`, the share of
    items with the same verdict.
  """
  config = model.config
  nothing = {
    'a': jnp.zeros((1, config.num_layers, config.embed_dim, 1)),
    'b': jnp.zeros((1, config.num_layers, 1, config.ffn_dim)),
  }
  base = LowRank({'layers': {'mlp': {'up_proj': nothing}}})
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


def describe(found: Mapping[str, Mapping[str, float]]) -> str:
  """The difference in a line a task."""
  return '\n'.join(
    f'int8 base, {task}: {100 * v["eight"]:.1f} % after '
    f'{100 * v["whole"]:.1f} %, the same on {100 * v["agree"]:.1f} % of items'
    for task, v in found.items()
  )


def report(
  run: record.RunFolder,
  config: Any,
  problem: problem_lib.Problem,
) -> None:
  """Measures the difference once a run, tells it, and keeps it."""
  path = run.path / _FILE
  if not path.exists():
    plain = config_dict.ConfigDict(config.to_dict())
    plain.execution.base_dtype = None
    whole = problem_lib.make_evaluator(plain, problem)
    eight = problem_lib.make_evaluator(config, problem)
    record.write_json(path, difference(whole, eight, problem.experts.model()))
  errors.say(describe(record.read_json(path)))


def read(run: record.RunFolder) -> dict | None:
  """The difference that was kept, or None where the base is as it was."""
  path = run.path / _FILE
  return record.read_json(path) if path.exists() else None
