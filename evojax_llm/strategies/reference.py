"""Tables of the options of strategies, for the pages of the systems.

A page has a line '<!-- options: NAME -->' in front of each table and
'<!-- end -->' behind it.
"""

import re

from evojax_llm import options
from evojax_llm.strategies import registry

_TABLE = re.compile(r'<!-- options: (\S+) -->\n.*?<!-- end -->\n', re.DOTALL)


def with_tables(page: str) -> str:
  """Returns a Markdown page with the tables of options written anew."""

  def write(found: re.Match[str]) -> str:
    table = options.table(registry.options(found[1]))
    return f'<!-- options: {found[1]} -->\n{table}<!-- end -->\n'

  return _TABLE.sub(write, page)
