"""What a task is: items in two splits, and how they are put to a model."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import hashlib
import inspect
import os
import pathlib
from typing import Any

from evojax_llm import lookup
from evojax_llm.models.images import Image
from evojax_llm.options import option

SPLITS = ('dev', 'test')


class TaskError(ValueError):
  """A task file, or a use of a task, that cannot be right."""


def find(name: str, table: Mapping[str, Any], what: str) -> Any:
  """Returns what `lookup.find` does, and raises TaskError where it refuses."""
  try:
    return lookup.find(name, table, what)
  except ValueError as error:
    raise TaskError(str(error)) from error


def find_function(name: str) -> Callable:
  """Returns the function 'module:function' or 'file.py:function'.

  Raises:
    TaskError: there is no such function of two arguments, written in Python.
  """
  function = find(name, {}, 'function') if ':' in name else None
  try:
    inspect.signature(function).bind('', '')
    fits = not inspect.isbuiltin(function)
  except (TypeError, ValueError):
    fits = False
  if not fits:
    raise TaskError(
      f'Got {name!r}; expected a function of two arguments as '
      "'module:function' or 'file.py:function'."
    )
  return function


def typed(name: str) -> str:
  """Returns how an option of reading tasks is given on a command line."""
  return f'--config.{name} of a run, --{name} of other commands'


def shown(value: Any) -> str:
  """Returns a value as it may stand in a message, shortened."""
  if isinstance(value, str):
    value = value[:60]  # The representation of a long text takes long.
  try:
    text = repr(value)
  except ValueError:  # An integer of thousands of digits.
    text = f'a huge {type(value).__name__}'
  return text if len(text) <= 60 else text[:57] + '...'


def normalise(text: str) -> str:
  """Returns text without differences of case and white space."""
  return ' '.join(text.casefold().split())


@dataclasses.dataclass(frozen=True)
class Item:
  """One question with its gold answer.

  Attributes:
    id: unique within its split.
    question: the text of the question, as in the file.
    answer: the gold answer; for multiple choice the *key* of the right option;
      '' where a kind needs none, such as a judge.
    choices: ((key, text), ...) in file order, or None.
    also: other gold answers, of which any is as good as the first.
    images: those that the marks in the question stand for, in their order.
  """

  id: str
  question: str
  answer: str
  choices: tuple[tuple[str, str], ...] | None = None
  also: tuple[str, ...] = ()
  # Not in what it is shown as, which tells items without images apart.
  images: tuple[Image, ...] = dataclasses.field(default=(), repr=False)

  @property
  def golds(self) -> tuple[str, ...]:
    """All gold answers."""
    return (self.answer, *self.also)

  @property
  def identity(self) -> tuple[str, tuple[str, ...]]:
    """What makes two items the same: question, images and options' texts.

    Order and keys of the options do not count, nor does the gold answer: a
    shuffled copy is the same item. Items with one question and other options
    differ (Knowledge Crosswords asks one question many times). An item without
    a question, such as a text for perplexity, is its gold answer.
    """
    texts = [normalise(text) for _, text in self.choices or ()]
    text = self.question if self.question.strip() else self.answer
    text = '\0'.join([normalise(text), *(i.digest for i in self.images)])
    return text, tuple(sorted(texts))


@dataclasses.dataclass(frozen=True)
class Format:
  """How items become prompts, and outputs become answers.

  The default prompts are those of `prompts`.
  """

  prompt: str | None = option(
    None, 'template with {question} and {choices}', kind=str
  )
  instruction: str | None = option(
    None, "line above a multiple-choice question; '' for none", kind=str
  )
  choice: str = option(
    'letter',
    'what of an option is scored: its key or its text',
    choices=('letter', 'text'),
  )
  max_new_tokens: int = option(32, 'tokens to decode at most', low=0)
  stop: tuple[str, ...] = option((), 'strings at which an output is cut')
  system: str = option('', 'text before everything else')
  # Whether max_new_tokens was asked for; its default follows the context.
  # Left out of `Task.fingerprint`: it decides nothing that fits.
  limited: bool = dataclasses.field(default=True, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Task:
  """Items in two splits: `dev` for the search, `test` for the final report.

  Attributes:
    name: from the file, else the file's name.
    kind: how it is scored; see `scorers.registry.scorer_class`.
    dev: items that a search may see.
    test: sealed items, read once at the end; may be empty.
    format: prompt and answer options.
    icl_prompt: worked examples put before every question, or ''.
    source: the file it was read from, for messages.
    options: (name, value) pairs for the scorer of `kind`; its strict defaults
      hold for the others.
    scorer: an instance that takes the place of the table's, as tasks written
      in Python have it.
    shots: items of dev that are shown with their answers before every
      question, and that `dev` no longer holds.
    left_out: number of 'bad rows' and of 'overlapping items' of dev and test,
      where some were left out.
  """

  name: str
  kind: str
  dev: tuple[Item, ...]
  test: tuple[Item, ...] = ()
  format: Format = Format()
  icl_prompt: str = ''
  source: str = ''
  options: tuple[tuple[str, Any], ...] = ()
  scorer: Any = None
  shots: tuple[Item, ...] = ()
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def items(self, split: str) -> tuple[Item, ...]:
    """Returns the items of a split; raises TaskError where there are none."""
    if split not in SPLITS:
      raise TaskError(f"Split '{split}' does not exist: use 'dev' or 'test'.")
    items = self.dev if split == 'dev' else self.test
    if not items:
      where = f' ({self.source})' if self.source else ''
      raise TaskError(
        f"Task '{self.name}'{where} has no {split} items. Add them to the "
        f'file (\'{split}\': [...], or "split": "{split}" on lines of a '
        'JSONL file), or use the other split.'
      )
    return items

  def fingerprint(self) -> str:
    """Returns a digest of all that decides scores, code in files included."""
    fields = [
      (field.name, getattr(self, field.name))
      for field in dataclasses.fields(self)
      if field.name not in ('source', 'scorer', 'left_out')
    ]
    digest = hashlib.sha256(repr(fields).encode())
    for item in (*self.dev, *self.test, *self.shots):
      for image in item.images:
        digest.update(f'{item.id}\0{image.digest}\0'.encode())
    for path in (self.source, self.kind.rpartition(':')[0]):
      if path.endswith('.py'):
        digest.update(pathlib.Path(os.path.expanduser(path)).read_bytes())
    return digest.hexdigest()[:16]

  def subset(
    self, split: str, limit: int | None = None, draw: int = 0
  ) -> tuple[Item, ...]:
    """Returns a seeded choice of `limit` items, in file order.

    An item's rank in a draw depends on the draw, the task's name and the
    item's id alone: the same draw gives the same items on every machine, and
    a smaller limit gives a part of what a larger one gives. All are given for
    None, or more than there are.

    Raises:
      TaskError: empty or unknown split, or a limit below 1.
    """
    items = self.items(split)
    if limit is not None and limit < 1:
      raise TaskError(f'limit={limit} leaves no items: it must be at least 1.')
    if limit is None or limit >= len(items):
      return items
    chosen = ranked(items, f'{draw}\0{self.name}\0{split}')[:limit]
    return tuple(items[index] for index in sorted(chosen))


def ranked(items: tuple[Item, ...], seed: str) -> list[int]:
  """Returns indices of the items, in an order that `seed` and ids decide."""

  def rank(index: int) -> bytes:
    text = f'{seed}\0{items[index].id}'
    return hashlib.sha256(text.encode()).digest()

  return sorted(range(len(items)), key=rank)
