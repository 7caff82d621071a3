"""Reads rows of a task file as items; refuses what cannot be right."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
from typing import Any

from absl import logging

from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError


def shown(value: Any) -> str:
  """Returns a value as it may stand in a message, shortened."""
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + '...'


def _text(value: Any) -> str | None:
  """Returns a JSON string or number as text; None for anything else."""
  if isinstance(value, bool):
    return None
  return str(value) if isinstance(value, str | int | float) else None


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
  """Returns the one field of `names` that a row has, as non-empty text."""
  present = [name for name in names if name in row]
  wanted = ' or '.join(f"'{name}'" for name in names)
  if not present:
    given = ', '.join(map(str, row)) or 'nothing'
    close = difflib.get_close_matches(names[0], list(map(str, row)), n=1)
    advice = f" Rename '{close[0]}' to '{names[0]}'." if close else ''
    raise TaskError(f'{where}: no field {wanted}; the row has {given}.{advice}')
  if len(present) > 1:
    raise TaskError(f'{where}: fields {wanted} say the same thing: keep one.')
  value = row[present[0]]
  text = _text(value)
  if text is None or not text.strip():
    quoted = ' Put it in quotes.' if isinstance(value, bool) else ''
    raise TaskError(
      f"{where}, field '{present[0]}': expected text that is not empty, got "
      f'{shown(value)}.{quoted}'
    )
  return text


def _choices(value: Any, where: str) -> tuple[tuple[str, str], ...]:
  where = f"{where}, field 'choices'"
  if not isinstance(value, Mapping):
    raise TaskError(
      f'{where}: expected an object {{"A": text, "B": text, ...}}, got '
      f'{shown(value)}. Give each option a key, which the answer then names.'
    )
  if len(value) < 2:
    raise TaskError(f'{where}: expected at least 2 options, got {len(value)}.')
  pairs = []
  for key, option in value.items():
    text = _text(option)
    if not key.strip() or text is None or not text.strip():
      raise TaskError(
        f'{where}: expected a text that is not empty for each key, got '
        f'{shown(key)}: {shown(option)}.'
      )
    pairs.append((key, text))
  return tuple(pairs)


def _answers(row: Mapping[str, Any], where: str, needed: bool) -> list[str]:
  """Returns gold answers: a text, or a list of which any is right."""
  names = [name for name in ('answer', 'output') if name in row]
  if not needed and not names:
    return ['']
  if len(names) != 1 or not isinstance(row[names[0]], list):
    return [_field(row, ('answer', 'output'), where)]
  values = row[names[0]]
  texts = [_text(value) for value in values]
  if not texts or not all(text is not None and text.strip() for text in texts):
    raise TaskError(
      f"{where}, field '{names[0]}': expected a text or a list of texts that "
      f'are not empty, got {shown(values)}.'
    )
  return texts


def _item(row: Any, index: int, where: str, scorer: Any) -> Item:
  if not isinstance(row, Mapping):
    raise TaskError(f'{where}: expected an object, got {shown(row)}.')
  names = ('question', 'input', 'prompt')
  if scorer.question or any(name in row for name in names):
    question = _field(row, names, where)
  else:
    question = ''
  answer, *also = _answers(row, where, scorer.gold)
  choices = None
  if row.get('choices') is not None:
    choices = _choices(row['choices'], where)
    keys = [key for key, _ in choices]
    if also:
      raise TaskError(
        f"{where}, field 'answer': expected the key of one option, got "
        f'{shown([answer, *also])}.'
      )
    if answer not in keys and scorer.gold:
      folded = answer.strip().casefold()
      meant = [
        key
        for key, text in choices
        if text == answer or key.casefold() == folded
      ]
      advice = f" Write its key, '{meant[0]}'." if meant else ''
      if not meant and answer.isdecimal():
        advice = ' An option is named by its key, not by its place.'
      raise TaskError(
        f"{where}, field 'answer': expected one of the keys "
        f'{", ".join(keys)}, got {shown(answer)}.{advice}'
      )
  name = row.get('id')
  if name is not None and _text(name) is None:
    raise TaskError(
      f"{where}, field 'id': expected text or a number, got {shown(name)}."
    )
  name = str(index) if name is None else str(name)
  return Item(name, question, answer, choices, tuple(also))


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
    "%s: %d rows repeat the id of an earlier row; they are called 'id#index'.",
    where,
    len(items) - len(given),
  )
  return tuple(unique)


def read_items(
  rows: Any, path: str, split: str, scorer: Any = Scorer
) -> tuple[Item, ...]:
  """Reads the items of one split, in file order and with unique ids.

  Args:
    rows: what the file holds under the split's name.
    path: the file, for messages.
    split: 'dev' or 'test', for messages.
    scorer: the scorer, or its class: says which fields a row needs.

  Raises:
    TaskError: names the file, the split, the row and the field.
  """
  where = f"{path}, '{split}'"
  if not isinstance(rows, Sequence) or isinstance(rows, str):
    raise TaskError(f'{where}: expected a list of rows, got {shown(rows)}.')
  items = [
    _item(row, index, f'{where} row {index}', scorer)
    for index, row in enumerate(rows)
  ]
  for index, item in enumerate(items):
    if (item.choices is None) != (items[0].choices is None):
      has = 'no' if item.choices is None else 'a'
      raise TaskError(
        f"{where} row {index}: it has {has} field 'choices', unlike row 0. "
        'A task is either multiple choice or not: split the file in two.'
      )
  return _unique_ids(items, where)
