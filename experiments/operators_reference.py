"""Writes what of the documentation is made from declarations.

  python -m experiments.operators_reference

writes evojax_llm/operators/README.md, the reference page of the operators, and
the tables of options in experiments/<system>/README.md. Tests say when one is
out of date.
"""

import pathlib

from absl import app
from absl import flags

from evojax_llm.operators import reference
from evojax_llm.strategies import reference as strategies_reference

_OUT = flags.DEFINE_string(
  'out', str(reference.PAGE), 'Markdown file of the operators.'
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'{argv[1:]} is not understood; see --help.')
  pathlib.Path(_OUT.value).write_text(reference.page())
  for page in pathlib.Path(__file__).parent.glob('*/README.md'):
    page.write_text(strategies_reference.with_tables(page.read_text()))


if __name__ == '__main__':
  app.run(main)
