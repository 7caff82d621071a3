"""Reads rows of a task file as items; refuses what cannot be right."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import itertools
import os
import string
import sys
from typing import Any

from absl import logging

from evojax_llm.files import is_text
from evojax_llm.models.image_tokens import MARK
from evojax_llm.models.images import Image
from evojax_llm.models.images import ImageError
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.tables import Unread
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import shown
from evojax_llm.tasks.task import typed

QUESTIONS = ('question', 'input', 'prompt')
_ANSWERS = ('answer', 'output')
# Of code tasks, whose gold answers are tests.
_TESTS = ('test', 'test_code')
# What other files call them.
_MEANT = {
  'question': ('problem', 'query', 'instruction', 'text', 'sentence'),
  'answer': tuple(
    'response completion target label gold solution reference'.split()
  ),
  'test': (),
}
_MOST_OPTIONS = 1000
_LARGEST = sys.float_info.max
_LETTERS = string.ascii_uppercase
_SHOWN = 3


def _text(value: Any) -> str | None:
  """Returns a JSON string or number as text; None for anything else."""
  if isinstance(value, str):
    return value if is_text(value) else None
  number = isinstance(value, int | float) and not isinstance(value, bool)
  # Rows written in Python may hold numbers that no file does.
  return str(value) if number and abs(value) <= _LARGEST else None


def _filled(value: Any) -> str | None:
  """Returns what `_text` does; None for a blank text, too."""
  text = _text(value)
  return text if text and text.strip() else None


def field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
  """Returns the one field of `names` that a row has, as non-empty text."""
  present = [name for name in names if name in row]
  wanted = ' or '.join(f"'{name}'" for name in names)
  if not present:
    given = list(itertools.islice(map(str, row), 20))
    close = difflib.get_close_matches(names[0], given, n=1)
    close = close or [name for name in given if name in _MEANT[names[0]]]
    advice = f" Rename '{close[0]}' to '{names[0]}'." if close else ''
    if not close and names is _ANSWERS:
      advice = (
        ' What is scored without a gold answer names its kind in "format": '
        'judge or reward.'
      )
    given = ', '.join(given) or 'nothing'
    raise TaskError(f'{where}: no field {wanted}; the row has {given}.{advice}')
  if len(present) > 1:
    raise TaskError(f'{where}: fields {wanted} say the same thing: keep one.')
  value = row[present[0]]
  text = _filled(value)
  if text is None:
    quoted = ' Put it in quotes.' if isinstance(value, bool) else ''
    raise TaskError(
      f"{where}, field '{present[0]}': expected text that is not empty, got "
      f'{shown(value)}.{quoted}'
    )
  return text


def _choices(
  value: Any, where: str, id_is_key: bool
) -> tuple[tuple[str, str], ...]:
  where = f"{where}, field 'choices'"
  if isinstance(value, list) and len(value) <= len(_LETTERS):
    given = list(zip(_LETTERS, value, strict=False))
  elif labels := _labels(value):
    given = list(zip(labels, value['text'], strict=True))
  elif isinstance(value, Mapping):
    given = list(value.items())
  else:
    raise TaskError(
      f'{where}: expected an object {{"A": text, "B": text, ...}} or a list of '
      f'{len(_LETTERS)} texts at most, got {shown(value)}.'
    )
  if len(given) > _MOST_OPTIONS:
    raise TaskError(
      f'{where}: {len(given)} options; expected {_MOST_OPTIONS} at most.'
    )
  pairs: list[tuple[str, str]] = []
  for key, option in given:
    # Files pad options with null, and some put the row's id among them.
    if option is None or (key == 'id' and not id_is_key):
      continue
    name, text = _filled(key), _filled(option)
    if name is None or text is None:
      raise TaskError(
        f'{where}: expected a text that is not empty for each key, got '
        f'{shown(key)}: {shown(option)}.'
      )
    pairs.append((name, text))
  if len(dict(pairs)) < len(pairs):
    raise TaskError(f'{where}: two options have one key: {shown(value)}.')
  if len(pairs) < 2:
    raise TaskError(f'{where}: expected at least 2 options, got {len(pairs)}.')
  return tuple(pairs)


def _labels(choices: Any) -> list[Any] | None:
  """Returns the keys of {"text": [...], "label": [...]}; None if not that."""
  if not isinstance(choices, Mapping) or not {'text', 'label'} <= set(choices):
    return None
  texts, labels = choices['text'], choices['label']
  lists = isinstance(texts, list) and isinstance(labels, list)
  return labels if lists and len(texts) == len(labels) else None


def _key(
  answer: str, raw: Any, choices: Sequence[tuple[str, str]], where: str
) -> str:
  """Returns the key that an answer beside a list of options means.

  It is the index from 0, the text of an option, or its letter; `raw` is the
  same as it stands in the file, where a number is an index only.
  """
  places = {str(_LETTERS.index(key)): key for key, _ in choices}
  meant = {places[answer]} if answer in places else set()
  if not isinstance(raw, int):
    meant |= {key for key, text in choices if answer in (key, text)}
  if len(meant) > 1:
    raise TaskError(
      f"{where}, field 'answer': {shown(answer)} may be any of the options "
      f'{", ".join(sorted(meant))}: write the index, from 0, as a number.'
    )
  return meant.pop() if meant else answer


def _answers(row: Mapping[str, Any], where: str, scorer: Any) -> list[str]:
  """Returns gold answers: a text, or a list of which any is right."""
  fields = _ANSWERS
  if scorer.runs_code and not any(name in row for name in _ANSWERS):
    fields = _TESTS
  names = [name for name in fields if name in row]
  if not scorer.gold and not names:
    return ['']
  if len(names) != 1 or not isinstance(row[names[0]], list):
    return [field(row, fields if names else _ANSWERS, where)]
  values = row[names[0]]
  texts = [_filled(value) for value in values]
  if not texts or None in texts:
    raise TaskError(
      f"{where}, field '{names[0]}': expected a text or a list of texts that "
      f'are not empty, got {shown(values)}.'
    )
  return texts


def read_images(
  row: Mapping[str, Any], folder: str, where: str
) -> tuple[Image, ...]:
  """Returns the images that a row names, beside its file."""
  names = [name for name in ('image', 'images') if row.get(name) is not None]
  if not names:
    return ()
  value = row[names[0]]
  listed = value if isinstance(value, list) else [value]
  right = listed and all(isinstance(path, str) and path for path in listed)
  if len(names) > 1 or not right or (names[0] == 'image' and listed is value):
    given = ', '.join(f'{name}: {shown(row[name])}' for name in names)
    raise TaskError(
      f"{where}: expected a file name as 'image', or a list of them as "
      f"'images', got {given}."
    )
  found = []
  for path in listed:
    try:
      path = os.path.join(folder, os.path.expanduser(path))
      found.append(Image.from_file(path))
    except ImageError as error:
      raise TaskError(f"{where}, field '{names[0]}': {error}") from error
  return tuple(found)


def marked(question: str, images: Sequence[Image], where: str) -> str:
  """Returns a question with the place of each image; in front by default."""
  marks = question.count(MARK)
  if images and marks not in (0, len(images)):
    raise TaskError(
      f'{where}: {len(images)} images, and the question has {MARK} {marks} '
      'times; expected one for each, or none for images in front.'
    )
  return question if marks else MARK * len(images) + question


def _item(
  row: Any, index: int, where: str, scorer: Any, id_is_key: bool, folder: str
) -> Item:
  if isinstance(row, Unread):
    raise TaskError(row.message)
  if not isinstance(row, Mapping):
    raise TaskError(f'{where}: expected an object, got {shown(row)}.')
  if _labels(row.get('choices')) and 'answerKey' in row:
    row = {'answer': row['answerKey'], **row}
  question = ''
  if scorer.question or any(name in row for name in QUESTIONS):
    question = field(row, QUESTIONS, where)
  images = read_images(row, folder, where)
  question = marked(question, images, where)
  answer, *also = _answers(row, where, scorer)
  choices = None
  if row.get('choices') is not None:
    choices = _choices(row['choices'], where, id_is_key)
    if also:
      raise TaskError(
        f"{where}, field 'answer': expected the key of one option, got "
        f'{shown([answer, *also])}.'
      )
    if isinstance(row['choices'], list):
      raw = row['answer'] if 'answer' in row else row.get('output')
      answer = _key(answer, raw, choices, where)
    if scorer.gold and answer not in dict(choices):
      folded = answer.strip().casefold()
      meant = [k for k, t in choices if t == answer or k.casefold() == folded]
      advice = f" Write its key, '{meant[0]}'." if meant else ''
      if not meant and answer.isdecimal():
        advice = ' Only a list of options takes an index, from 0.'
        if isinstance(row['choices'], list):
          advice = f' As an index, from 0, it is {len(choices) - 1} at most.'
      raise TaskError(
        f"{where}, field 'answer': expected one of the keys "
        f'{", ".join(key for key, _ in choices[:20])}, got {shown(answer)}.'
        f'{advice}'
      )
  name = row.get('id')
  if name is not None and _text(name) is None:
    raise TaskError(
      f"{where}, field 'id': expected text or a number, got {shown(name)}."
    )
  name = str(index) if name is None else str(name)
  return Item(name, question, answer, choices, tuple(also), images)


def _unique_ids(items: list[Item], where: str) -> tuple[Item, ...]:
  """Returns items with 'id#index' for each id that an earlier row has."""
  given = {item.id for item in items}
  if len(given) == len(items):
    return tuple(items)
  seen, unique = set(), []
  for index, item in enumerate(items):
    name = item.id
    while name in seen or (name != item.id and name in given):
      name = f'{item.id}#{index}' if name == item.id else name + '#'
    seen.add(name)
    unique.append(dataclasses.replace(item, id=name))
  logging.warning(
    "%s: repeated ids, in %d of %d rows, become 'id#index'.",
    where,
    len(items) - len(given),
    len(items),
  )
  return tuple(unique)


def _warn_of_same_texts(items: Sequence[Item], where: str) -> None:
  same = [
    item.id
    for item in items
    if len({text.strip() for _, text in item.choices or ()})
    < len(item.choices or ())
  ]
  if same:
    logging.warning(
      "%s: options of the same text in %d of %d items, such as '%s': which of "
      'them is right cannot be told by their text.',
      where,
      len(same),
      len(items),
      same[0],
    )


def refuse(bad: Sequence[str], total: int, where: str, skip: bool) -> None:
  """Raises, or logs where they are left out, what is wrong with `bad` rows.

  Raises:
    TaskError: the first messages, and how many of `total` rows are like these,
      unless they are to be left out and some are not bad.
  """
  if not bad:
    return
  lines = [*bad[:_SHOWN]]
  if len(bad) > _SHOWN:
    lines.append(f'... and {len(bad) - _SHOWN} more.')
  if skip and len(bad) < total:
    count = f'{len(bad)} of {total} rows are left out'
    logging.warning('%s: %s:\n%s', where, count, '\n'.join(lines))
    return
  if total > 1:
    way = f' Mend them, or leave them out ({typed("skip_bad_rows")}).'
    way = way if len(bad) < total else ''
    lines.append(f'{len(bad)} of {total} rows cannot be used.{way}')
  raise TaskError('\n'.join(lines))


def read_items(
  rows: Any, path: str, split: str, scorer: Any = Scorer, skip: bool = False
) -> tuple[Item, ...]:
  """Reads the items of one split, in file order and with unique ids.

  The scorer, or its class, says which fields a row needs; `skip` leaves out
  rows that cannot be used, unless none can.

  Raises:
    TaskError: names the file, the split, the row and the field.
  """
  where = f"{path}, '{split}'"
  if not isinstance(rows, Sequence) or isinstance(rows, str):
    raise TaskError(f'{where}: expected a list of rows, got {shown(rows)}.')
  id_is_key = any(
    isinstance(row, Mapping) and row.get('answer') == 'id' for row in rows
  )
  items: list[Item] = []
  bad, folder = [], os.path.dirname(os.path.expanduser(path))
  for index, row in enumerate(rows):
    place = f'{where} row {index}'
    try:
      item = _item(row, index, place, scorer, id_is_key, folder)
      if items and (item.choices is None) != (items[0].choices is None):
        has = 'no' if item.choices is None else 'a'
        raise TaskError(
          f"{place}: it has {has} field 'choices', unlike row 0. A task is "
          'either multiple choice or not: split the file in two.'
        )
      items.append(item)
    except TaskError as error:
      bad.append(str(error))
  refuse(bad, len(rows), where, skip)
  _warn_of_same_texts(items, where)
  return _unique_ids(items, where)
