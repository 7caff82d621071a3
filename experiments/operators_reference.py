"""Writes the reference page of the operators from their table.

  python -m experiments.operators_reference

writes evojax_llm/operators/README.md; a test says when it is out of date.
"""

import pathlib

from absl import app
from absl import flags

from evojax_llm.operators import reference

_OUT = flags.DEFINE_string('out', str(reference.PAGE), 'Markdown file.')


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1:]} is not understood; see --help.')
  pathlib.Path(_OUT.value).write_text(reference.page())


if __name__ == '__main__':
  app.run(main)
