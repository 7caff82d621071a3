"""Rows that gradient steps read, as arrays."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.tasks.training_data import EncodedRow


@flax.struct.dataclass
class Rows:
  """N rows of S texts each: one, or two of a pair, the chosen one first.

  Attributes:
    tokens: (N, S, T) i32, padded right.
    start: (N, S) i32 column of the first token that is learnt.
    end: (N, S) i32 tokens of a text.
  """

  tokens: jax.Array
  start: jax.Array
  end: jax.Array

  @property
  def reads(self) -> int:
    """Most tokens of a text that are learnt; of numpy arrays."""
    return int((self.end - self.start).max())

  def take(self, index: jax.Array) -> 'Rows':
    """Returns the rows at some indices."""
    return jax.tree.map(lambda leaf: leaf[index], self)


def pack(rows: Sequence[EncodedRow], pad_id: int = 0) -> Rows:
  """Packs rows of one kind, single texts or pairs, into numpy arrays.

  T is the length of the longest, a multiple of 8.

  Raises:
    ValueError: there are none, or a text has no prompt or nothing to learn.
  """
  texts = [
    [(row.prompt, completion) for completion in row.completions] for row in rows
  ]
  if not texts:
    raise ValueError('Got no rows to learn from; expected one at least.')
  for number, row in enumerate(texts):
    if len(row) != len(texts[0]) or not all(map(all, row)):
      raise ValueError(
        f'Row {number} has {len(row)} texts; expected {len(texts[0])}, each '
        'with tokens of its prompt and of what follows.'
      )
  start = np.array([[len(p) for p, _ in row] for row in texts], np.int32)
  end = np.array([[len(p) + len(c) for p, c in row] for row in texts], np.int32)
  length = -(-int(end.max()) // 8) * 8
  tokens = np.full((*end.shape, length), pad_id, np.int32)
  for row, own in zip(tokens, texts, strict=True):
    for line, (prompt, completion) in zip(row, own, strict=True):
      both = [*prompt, *completion]
      line[: len(both)] = both
  return Rows(tokens, start, end)


def model_inputs(rows: Rows) -> tuple[jax.Array, jax.Array]:
  """Returns tokens and positions (N S, T) of rows, as a model reads them."""
  tokens = rows.tokens.reshape(-1, rows.tokens.shape[-1])
  column = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
  positions = jnp.where(column < rows.end.reshape(-1, 1), column, -1)
  return tokens, positions


def targets(rows: Rows, reads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns where tokens are learnt that follow, and which ones.

  Returns:
    Columns (N S, reads) i32 to be read, the tokens behind them, and bool, which
    of them count.
  """
  tokens, _ = model_inputs(rows)
  first = rows.start.reshape(-1, 1) - 1
  column = first + jnp.arange(reads, dtype=jnp.int32)
  counts = column + 1 < rows.end.reshape(-1, 1)
  column = jnp.where(counts, column, 0)
  return column, jnp.take_along_axis(tokens, column + 1, axis=1), counts
