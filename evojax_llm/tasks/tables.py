"""Reads the files that tasks come in, each as what a JSON file would hold.

JSON is one object, or a list of rows. JSONL has an object a line, CSV and TSV a
row a line below one of names; each row says its split, `dev` or `test`, or all
are dev. The options of a row of CSV are in columns A, B, ... (or choices.A,
...), where an empty cell is none. Their format, name and icl_prompt are in a
first line `{"format": {...}}` of JSONL, or the format is in `name.format.json`
beside `name.jsonl`. All of them may be packed, `.gz`.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import difflib
import io
import pathlib
import re
from typing import Any

from evojax_llm import files
from evojax_llm.tasks.task import SPLITS
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import shown

ENDINGS = ('.json', '.jsonl', '.csv', '.tsv')
TOP_KEYS = tuple('name dataset task_type dev test icl_prompt format'.split())
_OPTION = re.compile(r'(?:choices[./])?([A-Z])|choices[./](.+)')


@dataclasses.dataclass(frozen=True)
class Unread:
  """A line that holds no row, and the message that says why."""

  message: str


def ending(path: pathlib.Path) -> str:
  """Returns the ending of a file's name in lower case, without '.gz'."""
  name = path.name.lower().removesuffix('.gz')
  return pathlib.PurePath(name).suffix


def stem(path: pathlib.Path) -> str:
  """Returns a file's name without its endings."""
  unpacked = re.sub(r'\.gz$', '', path.name, flags=re.IGNORECASE)
  return unpacked[: -len(ending(path)) or None]


def read(path: pathlib.Path) -> Any:
  """Returns what a JSON file of the same task would hold.

  Raises:
    TaskError: no file of these endings, or one that cannot be read.
  """
  if not path.exists() and not path.is_symlink():
    there = [p for p in path.parent.glob('*') if ending(p) in ENDINGS]
    by_stem = {stem(p): p for p in there}
    # Not by the endings, which are the same of files that were not meant.
    near = difflib.get_close_matches(stem(path), by_stem, n=1, cutoff=0.7)
    meant = f' Did you mean {by_stem[near[0]]}?' if near else ''
    raise TaskError(f'{path}: no such file.{meant}')
  kind = ending(path)
  head: dict[str, Any] = {}
  if kind not in ENDINGS:
    if path.is_dir():
      inside = sorted(p.name for p in path.glob('*') if ending(p) in ENDINGS)
      there = f'it has {", ".join(inside[:8])}' if inside else 'it has none'
      raise TaskError(f'{path}: is a folder; expected a task file: {there}.')
    raise TaskError(
      f'{path}: expected a file that ends in {", ".join(ENDINGS)}, or in '
      'one of these and .gz. Write rows of other tables as an object a line.'
    )
  if kind == '.json':
    text = files.read_text(path, TaskError)
    if not text.strip():
      raise TaskError(f'{path}: the file is empty.')
    advice = (
      'Is there a comma too many, or is the file cut off? A file with an '
      'object a line ends in .jsonl.'
    )
    top = files.parse_json(text, path, TaskError, advice, unique_keys=True)
    if not isinstance(top, list):
      return top
    rows = list(enumerate(top))
  elif kind == '.jsonl':
    rows = list(_objects(path))
    first = rows[0][1]
    if isinstance(first, dict) and {'format'} <= set(first) <= set(TOP_KEYS):
      head = rows.pop(0)[1]
  else:
    rows = list(_cells(path, ',' if kind == '.csv' else '\t'))
  sidecar = path.with_name(f'{stem(path)}.format.json')
  if sidecar.exists():
    if 'format' in head:
      raise TaskError(
        f'{path} line 1 and {sidecar} both give a format: keep one of them.'
      )
    head['format'] = files.read_object(sidecar, TaskError)
  place = f'{path} {"row" if kind == ".json" else "line"}'
  return {**head, **_by_split(rows, place)}


def _objects(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
  """Yields line numbers and rows of a JSONL file."""
  # Not splitlines: JSON strings may hold U+2028 and other line separators.
  lines = files.read_text(path, TaskError).split('\n')
  lines = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
  if not lines:
    raise TaskError(f'{path}: the file is empty.')
  advice = 'Each line is an object; a file that is one object ends in .json.'
  for number, line in lines:
    where = f'{path} line {number}'
    try:
      row = files.parse_json(line, where, TaskError, advice, unique_keys=True)
      if not isinstance(row, dict):
        row = Unread(f'{where}: expected an object, got {shown(row)}.')
    except TaskError as error:
      row = Unread(str(error))
    yield number, row


def _cells(path: pathlib.Path, delimiter: str) -> Iterator[tuple[int, Any]]:
  """Yields line numbers and rows of a CSV or TSV file."""
  text = files.read_text(path, TaskError)
  reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
  try:
    header = [name.strip() for name in next(reader, [])]
    if not any(header):
      raise TaskError(f'{path}: the file is empty.')
    for mark in ';,\t|':
      if len(header) == 1 and mark in header[0]:
        raise TaskError(
          f'{path} line 1: one column, {shown(header[0])}: is it separated by '
          f'{mark!r}? Expected {delimiter!r}.'
        )
    if len(set(header)) < len(header):
      raise TaskError(f'{path} line 1: two columns have one name: {header}.')
    for cells in filter(None, reader):
      where = f'{path} line {reader.line_num}'
      yield reader.line_num, _of_cells(header, cells, where)
  except csv.Error as error:
    raise TaskError(f'{path} line {reader.line_num}: {error}.') from error


def _of_cells(header: Sequence[str], cells: Sequence[str], where: str) -> Any:
  """Returns the row of a JSON file for the cells of a line."""
  if len(cells) != len(header):
    return Unread(
      f'{where}: {len(cells)} cells below {len(header)} columns '
      f'({shown(header)}). Put texts that hold the separator in quotes.'
    )
  row: dict[str, Any] = {}
  choices = {}
  for name, cell in zip(header, cells, strict=True):
    if name == 'choices' and cell.strip():
      try:
        row[name] = files.parse_json(cell, f"{where}, 'choices'", TaskError)
      except TaskError as error:
        return Unread(str(error))
    elif found := _OPTION.fullmatch(name):
      choices[found[1] or found[2]] = cell if cell.strip() else None
    elif cell.strip() or name not in ('id', 'split', 'choices'):
      row[name] = cell
  return row | ({'choices': choices} if choices else {})


def _by_split(
  rows: Sequence[tuple[int, Any]], place: str
) -> Mapping[str, list[Any]]:
  splits: dict[str, list[Any]] = {split: [] for split in SPLITS}
  marked = set()
  for number, row in rows:
    split = row.get('split') if isinstance(row, dict) else None
    if split not in (None, *SPLITS):
      raise TaskError(
        f"{place} {number}, field 'split': expected 'dev', which a search "
        f"may see, or 'test', got {shown(split)}. Rename it to one of them: "
        "'train' and 'validation' are 'dev' here."
      )
    if isinstance(row, dict):
      marked.add(split is None)
    if len(marked) > 1:
      raise TaskError(
        f"{place} {number}: either all rows say their 'split' or none does."
      )
    splits[split or 'dev'].append(row)
  return splits
