"""What members learn from: texts and pairs of texts, of files and of tasks.

A file is JSONL. Texts are rows {"prompt", "completion"}, pairs are rows
{"prompt", "chosen", "rejected"}; a completion follows its prompt as it stands,
white space included. A row may have images, as those of task files. Of a task,
a row is an item's prompt and its gold answer, as the task puts them to a model:
an option whose likelihood is scored, or a text that the end of a text follows.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from evojax_llm import files
from evojax_llm.models.image_tokens import reader
from evojax_llm.models.images import Image
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import prompts
from evojax_llm.tasks.rows import marked
from evojax_llm.tasks.rows import read_images
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import shown
from evojax_llm.tasks.tokens import encode_options

TEXTS = ('completion',)
PAIRS = ('chosen', 'rejected')
# How an answer may have to be marked.
_FORMS = ('{}', 'Answer: {}', 'The answer is {}', '#### {}', '\\boxed{{{}}}')


@dataclasses.dataclass(frozen=True)
class TrainingRow:
  """A prompt, and the text that follows, or the chosen and the rejected one."""

  prompt: str
  completions: tuple[str, ...]
  images: tuple[Image, ...] = ()


@dataclasses.dataclass(frozen=True)
class EncodedRow:
  """A row as token ids; completions are what is learnt of it."""

  prompt: tuple[int, ...]
  completions: tuple[tuple[int, ...], ...]


def read(
  path: str | os.PathLike, keys: Sequence[str] = TEXTS
) -> list[TrainingRow]:
  """Reads a JSONL file of texts or of pairs.

  Args:
    path: of the file, which may be packed, .gz.
    keys: TEXTS or PAIRS.

  Raises:
    TaskError: names the file, the line and the key.
  """
  path = pathlib.Path(os.path.expanduser(path))
  wanted = ('prompt', *keys)
  rows = []
  # Not splitlines: JSON strings may hold other line separators.
  lines = files.read_text(path, TaskError).split('\n')
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    where = f'{path} line {number}'
    advice = f'Expected an object with {", ".join(wanted)} on each line.'
    row = files.parse_json(line, where, TaskError, advice, unique_keys=True)
    if not isinstance(row, dict):
      raise TaskError(f'{where}: got {shown(row)}. {advice}')
    for key in wanted:
      if key not in row:
        there = ', '.join(map(shown, list(row)[:20])) or 'nothing'
        raise TaskError(f'{where}: no key {key!r}; the row has {there}.')
      value = row[key]
      if not isinstance(value, str) or not value.strip():
        raise TaskError(
          f'{where}, key {key!r}: expected text that is not empty, got '
          f'{shown(value)}.'
        )
    texts = tuple(row[key] for key in keys)
    if len(set(texts)) < len(texts):
      raise TaskError(
        f'{where}: {" and ".join(map(repr, keys))} are the same text; expected '
        'one that is better. Leave such rows out.'
      )
    images = read_images(row, path.parent, where)
    rows.append(
      TrainingRow(marked(row['prompt'], images, where), texts, images)
    )
  if not rows:
    raise TaskError(f'{path}: the file has no rows.')
  return rows


def encode(
  rows: Sequence[TrainingRow],
  tokenizer: Tokenizer,
  max_length: int | None = None,
  chat: bool = False,
) -> list[EncodedRow]:
  """Encodes rows; the end of a text is learnt as well.

  With `chat` the prompt is a turn of the user and a completion the reply. Rows
  that are longer than `max_length` tokens are left out.

  Raises:
    TaskError: all of them are.
  """
  found = []
  for row in rows:
    reads = reader(tokenizer, row.images)
    if chat:
      turns = [{'role': 'user', 'content': row.prompt}]
      prompt = prompts.encode_prompt(turns, reads)
      texts = [tokenizer.encode(c, bos=False) for c in row.completions]
    else:
      prompt, texts = encode_options(row.prompt, row.completions, reads)
    ends = _end(tokenizer, chat)
    made = EncodedRow(tuple(prompt), tuple((*text, *ends) for text in texts))
    longest = len(made.prompt) + max(map(len, made.completions))
    if max_length is None or longest <= max_length:
      found.append(made)
  if not found:
    raise TaskError(
      f'All {len(rows)} rows to learn from are longer than {max_length} '
      'tokens; expected some that fit in the context.'
    )
  return found


def has_targets(task: Task) -> bool:
  """Returns whether items of a task have a text that a member can learn.

  Those that a judge or a reward model scores have none, and of code there are
  tests and no solution.
  """
  scorer = scorer_of(task)
  return bool(scorer.gold and not scorer.runs_code)


def encode_task(
  task: Task,
  items: Sequence[Item],
  tokenizer: Tokenizer,
  chat: bool = False,
  max_length: int | None = None,
) -> list[EncodedRow]:
  """Returns rows of a task's items, as many as fit; none without targets."""
  if not has_targets(task):
    return []
  found: list[EncodedRow] = []
  for item in items:
    row = _of_item(task, item, tokenizer, chat)
    if row is None:
      continue
    length = len(row.prompt) + len(row.completions[0])
    if max_length is None or length <= max_length:
      found.append(row)
  return found


def _of_item(
  task: Task, item: Item, tokenizer: Tokenizer, chat: bool
) -> EncodedRow | None:
  entry = prompts.encode_passes(task, item, tokenizer, chat)[0]
  if entry.options is not None:
    keys: list[Any] = [key for key, _ in item.choices or ()]
    gold = keys.index(item.answer) if keys else 0
    # A scorer may read something else in place of the options.
    if gold >= len(entry.options):
      return None
    return EncodedRow(entry.prompt, (entry.options[gold],))
  answer = _as_scored(task, item)
  tokenizer = prompts.reader_of(task, item, tokenizer)
  if chat:
    prompt, text = list(entry.prompt), tokenizer.encode(answer, bos=False)
  else:
    stem = prompts.write_prompt(task, item)
    # Nothing parts an answer from a line's start or what opens it.
    close = not stem or stem[-1] in '\n\t([{"='
    prompt, (text,) = encode_options(
      stem.rstrip(' '), [answer if close else f' {answer}'], tokenizer
    )
  return EncodedRow(tuple(prompt), ((*text, *_end(tokenizer, chat)),))


def _as_scored(task: Task, item: Item) -> str:
  """The gold answer in the first form that the task's scorer finds right."""
  gold, scorer = prompts.shown_answer(task, item), scorer_of(task)
  for form in _FORMS:
    text = form.format(gold)
    with contextlib.suppress(TaskError, LookupError):
      if scorer.score(item, Answer(texts=(text,))).value > 0:
        return text
  return gold


def _end(tokenizer: Tokenizer, chat: bool) -> tuple[int, ...]:
  """The token that ends a text, or a turn."""
  ends = tokenizer.stop_ids
  return ends[-1:] if chat else ends[:1]
