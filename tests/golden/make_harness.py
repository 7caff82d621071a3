"""Writes harness.json: log-likelihoods by lm-evaluation-harness.

  EVOJAX_LLM_LM_EVAL=.lm_eval/bin/python python -m tests.golden.make_harness

The variable names the Python of an environment that has it (see
third_party/lm_eval).
"""

import json
import pathlib
import sys
import tempfile

from tests.tasks import harness

FILE = pathlib.Path(__file__).with_name('harness.json')


def main() -> None:
  """Writes the file."""
  if not harness.PYTHON:
    sys.exit('Set EVOJAX_LLM_LM_EVAL to the Python that has lm_eval.')
  stored = {}
  for model in harness.MODELS:
    with tempfile.TemporaryDirectory() as root:
      root = pathlib.Path(root)
      stored[model] = harness.ask(
        harness.PYTHON,
        harness.folder(model, root),
        harness.requests(model),
        root,
      )
  FILE.write_text(json.dumps(stored, indent=1) + '\n')
  print(f'{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
  main()
