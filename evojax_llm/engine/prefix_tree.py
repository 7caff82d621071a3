"""Texts that begin alike, laid out as trees so that no token is read twice.

A row of tokens need not be one text. Here it is a forest of texts in
depth-first order: what texts have in common at their start stands once, and
each branches off behind it. In that order the descendants of a token are the
columns right of it up to a bound, so that one number a token, `until`, says
which queries see it: those in columns c to until - 1. Positions are depths in
the tree. What a token sees is then what it would see in a row of its own, and
so are its hidden state and its logits.

    columns    0     1     2    3     4     5
    tokens     BOS   is    it   hot   or    cold       'BOS is it hot'
    positions  0     1     2    3     2     3          'BOS is or cold'
    until      6     6     4    4     6     6

The options of an item share their prompt in this way, and the items of a task
the instruction or the worked examples that all of them begin with.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

# A text as two parts, what is given and what is scored.
Continuation = tuple[Sequence[int], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Row:
  """A forest of texts.

  Attributes:
    tokens: (n,) ids in depth-first order.
    positions: (n,) depths.
    until: (n,) one more than the last column of the token's descendants.
    reads: (column, target, owner) of each log-probability to be read: that of
      the token `target` behind the text that ends in `column`.
  """

  tokens: list[int]
  positions: list[int]
  until: list[int]
  reads: list[tuple[int, int, int]]


class _Node:
  """A token, what is read behind it, and the tokens that follow it."""

  __slots__ = ('children', 'reads')

  def __init__(self):
    self.children: dict[int, _Node] = {}
    self.reads: list[tuple[int, int]] = []


def lay_out(
  continuations: Sequence[Continuation], owners: Sequence[int]
) -> Row:
  """The row of some texts, with the owner of each continuation for its reads.

  The last token of a text is read and not computed on; it takes no column.
  """
  root = _Node()
  for owner, (given, scored) in zip(owners, continuations, strict=True):
    node = root
    for token in given:
      node = node.children.setdefault(token, _Node())
    for i, token in enumerate(scored):
      node.reads.append((token, owner))
      if i + 1 < len(scored):
        node = node.children.setdefault(token, _Node())
  row = Row([], [], [], [])
  # Depth first without recursion: a text may be longer than the stack is deep.
  # None closes the column that is on the top of `opened`.
  todo: list[tuple[int, _Node] | None] = list(_reversed_children(root))
  opened: list[int] = []
  while todo:
    entry = todo.pop()
    if entry is None:
      row.until[opened.pop()] = len(row.tokens)
      continue
    token, node = entry
    column = len(row.tokens)
    row.tokens.append(token)
    row.positions.append(len(opened))
    row.until.append(0)
    row.reads.extend((column, target, owner) for target, owner in node.reads)
    opened.append(column)
    todo.append(None)
    todo.extend(_reversed_children(node))
  return row


def _reversed_children(node: _Node) -> list[tuple[int, _Node]]:
  return list(reversed(node.children.items()))


def size(continuations: Sequence[Continuation]) -> int:
  """Columns that the continuations of one prompt take, the prompt included."""
  prompt = continuations[0][0]
  branches = {
    tuple(scored[:end])
    for _, scored in continuations
    for end in range(1, len(scored))
  }
  return len(prompt) + len(branches)


def fill(
  sizes: Sequence[int], capacity: int, shared: int = 0
) -> list[list[int]]:
  """Puts trees of some sizes into as few rows as it can: best fit, largest
  first.

  The first `shared` columns of every tree are the same for all.
  """
  rows: list[list[int]] = []
  # Rows by the columns that they have left.
  by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
  for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    need = sizes[index] - shared
    room = next((r for r in range(need, capacity + 1) if by_room[r]), None)
    if room is None:
      room = capacity - shared
      by_room[room].append(len(rows))
      rows.append([])
    row = by_room[room].pop()
    rows[row].append(index)
    by_room[room - need].append(row)
  return [sorted(row) for row in rows]


def arrays(
  rows: Sequence[Row], count: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tokens, positions and `until` of rows, each (count, length) i32.

  Padding stands right and below: `pad_id`, position -1, until 0.
  """
  tokens = np.full((count, length), pad_id, np.int32)
  positions = np.full((count, length), -1, np.int32)
  until = np.zeros((count, length), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row.tokens)] = row.tokens
    positions[i, : len(row.tokens)] = row.positions
    until[i, : len(row.tokens)] = row.until
  return tokens, positions, until
