"""What tells the settings and inputs of a run from those that it is given."""

from collections.abc import Mapping
import json
from typing import Any

from evojax_llm.runs.run_config import RunConfig


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns settings as JSON has them, those that are not there by default.

  A run of an earlier version lacks the settings that have come since.
  """
  return _over(json.loads(json.dumps(RunConfig().to_dict())), values)


def _over(defaults: Any, values: Any) -> Any:
  if not (isinstance(values, dict) and isinstance(defaults, dict)):
    return values
  over = {k: _over(defaults.get(k), v) for k, v in values.items()}
  return {**defaults, **over}


def compare(old: Any, new: Any, name: str = '') -> list[str]:
  """Lists 'strategy.population: 10 there, 20 here' for all that differs."""
  if isinstance(old, dict) and isinstance(new, dict):
    inner = f'{name}.' if name else ''
    return [
      line
      for key in sorted(old.keys() | new.keys())
      for line in compare(old.get(key), new.get(key), f'{inner}{key}')
    ]
  both = (old, new)
  if all(isinstance(v, list) and v and isinstance(v[0], dict) for v in both):
    # Stages, by their numbers.
    return compare(
      *({str(i): one for i, one in enumerate(v, 1)} for v in both), name
    )
  return [] if old == new else [f'{name}: {old!r} there, {new!r} here']


def inputs(
  old: Mapping[str, Any], new: Mapping[str, Any], files: Mapping[str, Any]
) -> list[str]:
  """Lists the inputs whose fingerprints differ, by path where it is known."""
  lines = []
  for kind in sorted(old.keys() | new.keys()):
    there, here, path = old.get(kind), new.get(kind), files.get(kind)
    if there == here:
      continue
    if isinstance(here, str) and isinstance(path, str):
      there, here, path = [there], [here], [path]
    if not path or not there or len(there) != len(here):
      lines += compare(there, here, f'inputs.{kind}')
      continue
    lines += [
      f'{name}: not what the run has read of it ({kind})'
      for a, b, name in zip(there, here, path, strict=True)
      if a != b
    ]
  return lines
