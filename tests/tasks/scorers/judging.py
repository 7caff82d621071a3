"""Shared by the tests of scorers: one answer to one item."""

import platform
import sys

import pytest

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.task import Item

ON_LINUX = pytest.mark.skipif(
  not sys.platform.startswith('linux')
  or platform.machine() not in ('x86_64', 'aarch64'),
  reason='the limits are those of the Linux kernel',
)


def text_item(answer: str, *also: str, question: str = 'q') -> Item:
  """An item without options."""
  return Item('0', question, answer, None, also)


def letter_item(answer: str, count: int = 16) -> Item:
  """An item with the options A to P, whose texts are 'text a' to 'text p'."""
  keys = 'ABCDEFGHIJKLMNOP'[:count]
  choices = tuple((key, f'text {key.lower()}') for key in keys)
  return Item('0', 'q', answer, choices)


def judge(scorer, item: Item, *texts: str):
  """(prediction, value) of what a member wrote."""
  verdict = scorer.score(item, Answer(texts))
  return verdict.prediction, verdict.value
