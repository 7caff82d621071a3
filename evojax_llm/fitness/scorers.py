r"""From an output, or the likelihoods of the options, to right or wrong.

The rules are strict, and an answer is always extracted without a look at the
gold answer, so that predictions can be compared and put to a vote:

exact_match
  1. The text is cut at the first stop string.
  2. The first line that is not blank is the answer, with runs of white space
     made one space; with `match='clause'` only its part before the first of
     . , ; : ! ? that a space or the end follows.
  3. A lead-in ('The answer is', 'Answer:') goes, and so do wrapping quotes,
     brackets and Markdown emphasis, and punctuation at the end.
  4. The answer is right where it equals the gold answer (treated as in 3).
     Case counts. Nothing is right by being contained in something else.

numeric_match
  1. The text is cut at the first stop string.
  2. The last '#### number' (a number, perhaps with a unit, to the line's end)
     is the answer; else the last number of the last \boxed{...}; else the last
     number of the text. See evojax_llm/fitness/numerals.py for what a number
     is.
  3. The answer is right where it equals the gold number exactly.

multiple_choice
  The option with the largest log-likelihood; the first one of a tie. Where a
  value is NaN or +inf, or none is finite, there is no prediction, and no
  prediction is never right.
"""

from collections.abc import Sequence
import math
import re

import numpy as np

from evojax_llm.fitness import numerals
from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import Task
from evojax_llm.fitness.items import TaskError

_LEAD_IN = re.compile(
  r'^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?'
  r'(?:final\s+|correct\s+)?answer(?:\s+is\b\s*:?|\s*:)\s*',
  re.IGNORECASE,
)
_CLAUSE_END = re.compile(r'[.,;:!?](?=\s|$)')
_ENDING = '.,;:!'
_WRAPPERS = (
  ('**', '**'),
  ('__', '__'),
  ('`', '`'),
  ('"', '"'),
  ("'", "'"),
  ('\u201c', '\u201d'),
  ('(', ')'),
  ('[', ']'),
)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
  """The text before the first occurrence of any stop string."""
  ends = [text.find(string) for string in stop if string]
  return text[: min((end for end in ends if end >= 0), default=len(text))]


def _bare(text: str) -> str:
  """Text without lead-in, wrappers and final punctuation.

  Each step is taken only where a letter or digit is left: ')' stays ')'.
  """
  text = ' '.join(text.split())
  while True:
    shorter = text
    for left, right in _WRAPPERS:
      inner = text[len(left) : -len(right)]
      if text.startswith(left) and text.endswith(right):
        shorter = inner.strip()
        break
    else:
      shorter = _LEAD_IN.sub('', text.rstrip(_ENDING)).strip()
    if shorter == text or not any(letter.isalnum() for letter in shorter):
      return text
    text = shorter


def _last_boxed(text: str) -> str | None:
  r"""The contents of the last \boxed{...}, braces balanced, or None."""
  start = text.rfind('\\boxed{')
  if start < 0:
    return None
  start += len('\\boxed{')
  depth = 1
  for end in range(start, len(text)):
    depth += {'{': 1, '}': -1}.get(text[end], 0)
    if depth == 0:
      return text[start:end]
  return text[start:]  # decoding ended before the brace closed


def _line_answer(text: str, match: str) -> str | None:
  for line in text.splitlines():
    if line.strip():
      break
  else:
    return None
  # The lead-in goes first: in 'Answer: No' the colon ends no clause.
  line = _LEAD_IN.sub('', line.strip())
  if match == 'clause':
    end = _CLAUSE_END.search(line)
    line = line[: end.start()] if end and end.start() else line
  return _bare(line) or None


def _number_answer(text: str) -> str | None:
  for rest in reversed(re.findall(r'####([^\n]*)', text)):
    value = numerals.quantity(rest)
    if value is not None:
      return numerals.write_number(value)
  for part in (_last_boxed(text), text):
    numbers = numerals.find_numbers(part or '')
    if numbers:
      return numerals.write_number(numbers[-1])
  return None


def extract_answer(task: Task, text: str) -> str | None:
  """The answer that a generated text gives, without a look at the gold.

  Args:
    task: an exact_match or numeric_match task.
    text: the output alone, without the prompt.

  Returns:
    The answer in one spelling (numbers as 1000, 0.5 or 1/3), or None where the
    text holds none.

  Raises:
    TaskError: the task is multiple choice, which is scored by likelihood.
  """
  text = cut_at_stop(text, task.format.stop)
  if task.kind == 'exact_match':
    return _line_answer(text, task.format.match)
  if task.kind == 'numeric_match':
    return _number_answer(text)
  raise TaskError(
    f"Task '{task.name}' is {task.kind}: its options are scored by "
    'likelihood (score_options), there is no generated text to score.'
  )


def score_generation(
  task: Task, item: Item, text: str
) -> tuple[str | None, bool]:
  """Scores a generated text against the item's gold answer.

  Args:
    task: an exact_match or numeric_match task.
    item: one of its items.
    text: the output alone, without the prompt.

  Returns:
    (prediction, correct); the prediction is None where the text holds no
    answer, which is not correct.

  Raises:
    TaskError: multiple choice, or a numeric task whose gold is no number.
  """
  prediction = extract_answer(task, text)
  if prediction is None:
    return None, False
  if task.kind == 'exact_match':
    return prediction, prediction == _bare(item.answer)
  gold = numerals.whole_number(item.answer)
  if gold is None:
    raise TaskError(
      f"Task '{task.name}' is numeric_match, but the gold answer of item "
      f"'{item.id}' is no number: {item.answer!r}."
    )
  return prediction, prediction == numerals.write_number(gold)


def score_options(
  task: Task, item: Item, loglik: Sequence[float] | np.ndarray
) -> tuple[str | None, bool]:
  """Picks the likeliest option of a multiple-choice item.

  Args:
    task: a multiple_choice task.
    item: one of its items, with n options.
    loglik: (n,) log-likelihoods, in the order of `item.choices`. More values
      than options (padding) are refused rather than cut.

  Returns:
    (key of the option, correct); (None, False) where a value is NaN or +inf,
    or none is finite.

  Raises:
    TaskError: the item has no options, or another number of them.
  """
  values = [float(value) for value in np.asarray(loglik).reshape(-1)]
  if item.choices is None or len(values) != len(item.choices):
    given = 'no options' if item.choices is None else len(item.choices)
    raise TaskError(
      f"Item '{item.id}' of task '{task.name}' has {given}, but "
      f'{len(values)} log-likelihoods were given: one per option is needed.'
    )
  if any(math.isnan(value) or value == math.inf for value in values):
    return None, False
  best = max(range(len(values)), key=values.__getitem__)
  if values[best] == -math.inf:
    return None, False
  key = item.choices[best][0]
  return key, key == item.answer
