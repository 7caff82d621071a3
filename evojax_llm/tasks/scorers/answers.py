r"""Answers in generated text: the first line, the last box, without dress."""

from collections.abc import Sequence
import re

_LEAD_IN = re.compile(
  r'^(?:(?:so|thus|therefore|hence),?\s+)?(?:the\s+)?'
  r'(?:final\s+|correct\s+)?answer(?:\s+is\b\s*:?|\s*:)\s*',
  re.IGNORECASE,
)
_MARK = re.compile(r'\banswer\s*:\**[ \t]*([^\n]*)', re.IGNORECASE)
_CLAUSE_END = re.compile(r'[.,;:!?](?=\s|$)')
_WRAPPERS = (
  *((mark, mark) for mark in ('**', '__', '`', '"', "'")),
  *(('\u201c', '\u201d'), ('(', ')'), ('[', ']')),
)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
  """Returns the text before the first occurrence of any stop string."""
  ends = [text.find(string) for string in stop if string]
  return text[: min((end for end in ends if end >= 0), default=len(text))]


def bare(text: str) -> str:
  """Returns text without lead-in, wrappers and final punctuation.

  Each step is taken only where a letter or digit is left: ')' stays ')'.
  """
  text = ' '.join(text.split())
  while True:
    shorter = text
    for left, right in _WRAPPERS:
      if text.startswith(left) and text.endswith(right):
        shorter = text[len(left) : -len(right)].strip()
        break
    else:
      shorter = without_lead_in(text.rstrip('.,;:!')).strip()
    if shorter == text or not any(letter.isalnum() for letter in shorter):
      return text
    text = shorter


def without_lead_in(text: str) -> str:
  """Returns text without 'The answer is' and the like at its beginning."""
  return _LEAD_IN.sub('', text)


def first_line(text: str) -> str | None:
  """Returns the first line that is not blank, without its lead-in, or None."""
  for line in text.splitlines():
    if line.strip():
      # The lead-in goes first: in 'Answer: No' the colon ends no clause.
      return without_lead_in(line.strip())
  return None


def first_clause(line: str) -> str:
  """Returns a line up to the punctuation that ends its first clause."""
  end = _CLAUSE_END.search(line)
  return line[: end.start()] if end and end.start() else line


def marked(text: str, last: bool = True) -> str | None:
  """Returns the rest of the line after the last (or first) 'Answer:'."""
  rests = _MARK.findall(text)
  return rests[-1 if last else 0].strip() or None if rests else None


def last_boxed(text: str) -> str | None:
  r"""Returns the contents of the last \boxed{...}, braces balanced, or None."""
  _, mark, rest = text.rpartition('\\boxed{')
  if not mark:
    return None
  depth = 1
  for end, letter in enumerate(rest):
    depth += {'{': 1, '}': -1}.get(letter, 0)
    if depth == 0:
      return rest[:end]
  return rest  # decoding ended before the brace closed
