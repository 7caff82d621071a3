"""What every member did on every item, kept in the run folder.

One compressed file a generation, `items/00012.npz`, written whole or not at
all. For each task it holds the ids of the items, the values (bits where items
are right or wrong, f32 else), the predictions, each text once, and which items
each member was asked where not all were asked all, as in a race. Votes,
intervals and item-response estimates read it back by `read`.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from evojax_llm.fitness import intervals

# What numpy and zipfile raise at a file with a bit that has changed.
_DAMAGES = (OSError, LookupError, EOFError, ValueError, zipfile.BadZipFile)
_DAMAGES += (zlib.error, RuntimeError, TypeError, SyntaxError, MemoryError)


@dataclasses.dataclass
class TaskItems:
  """What M members did on the items of one task.

  Attributes:
    task: its name.
    metric: name of its score.
    maximise: whether more of it is better.
    binary: whether an item is right or wrong and nothing between.
    ids: ids of the items.
    values: (M, items) f32; 0 and 1 where binary, NaN where not asked.
    predictions: M lists or (M, items) of strings, None where there is none.
    asked: (M, items) bool, the items that a member was asked; None for all.
    loglikelihoods: of M members {option: value} an item; None when generated,
      and in the log.
  """

  task: str
  metric: str
  maximise: bool
  binary: bool
  ids: list[str]
  values: np.ndarray
  predictions: Sequence[Sequence[str | None]]
  asked: np.ndarray | None = None
  loglikelihoods: Sequence[list[dict[str, float]]] | None = None

  @property
  def correct(self) -> np.ndarray:
    """(M, items) bool: what has the full score of a binary task."""
    return self.values == 1

  def intervals(self) -> list[tuple[float, float] | None]:
    """Returns the 95 % interval of each member's mean over items it was asked.

    Wilson's where items are right or wrong, else normal; None where a member
    was asked too little for one.
    """

    def interval(seen: np.ndarray) -> tuple[float, float] | None:
      if not self.binary:
        return intervals.mean_interval(seen)
      right = int(seen.sum())
      return intervals.wilson_interval(right, len(seen)) if len(seen) else None

    members = zip(self.values, self.asked, strict=True)
    return [interval(values[asked]) for values, asked in members]


def take(result: Any, slots: Sequence[int]) -> Any:
  """Returns a task's result, such as `TaskItems`, of the members in slots."""
  return dataclasses.replace(
    result,
    values=result.values[list(slots)],
    predictions=[result.predictions[slot] for slot in slots],
    asked=None if result.asked is None else result.asked[list(slots)],
  )


@dataclasses.dataclass(frozen=True)
class GenerationItems:
  """K results of the members (M,) i32 that were scored in one generation."""

  number: int
  members: np.ndarray
  tasks: list[TaskItems]


class ItemLog:
  """The folder of per-item results of a run."""

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)

  def append(self, number: int, members: Sequence[int], scores: Any) -> None:
    """Keeps the `Evaluation` or `Raced` of members; replaces that generation's.

    Raises:
      ValueError: another number of members than of scores.
    """
    arrays = {'members': np.asarray(members, np.int32)}
    arrays['tasks'] = np.array([result.task for result in scores.tasks])
    for k, result in enumerate(scores.tasks):
      if len(members) != len(result.values):
        raise ValueError(
          f'{len(members)} members, but scores of {len(result.values)}.'
        )
      arrays[f'ids{k}'] = np.array(result.ids)
      arrays[f'kind{k}'] = np.array(
        [result.metric, str(result.maximise), str(result.binary)]
      )
      values = result.values
      bits = np.packbits(values == 1, axis=1)
      arrays[f'values{k}'] = bits if result.binary else values.astype('f4')
      if result.asked is not None and not result.asked.all():
        arrays[f'asked{k}'] = np.packbits(result.asked, axis=1)
      texts = {None: 0}
      predictions = [text for member in result.predictions for text in member]
      indices = [texts.setdefault(text, len(texts)) for text in predictions]
      arrays[f'said{k}'] = np.array(indices, np.int32).reshape(values.shape)
      # UTF-8 bytes and not an array of strings, in which all are as long as
      # the longest one.
      encoded = [text.encode() for text in list(texts)[1:]]
      arrays[f'texts{k}'] = np.frombuffer(b''.join(encoded), np.uint8)
      arrays[f'lengths{k}'] = np.array([len(t) for t in encoded], np.int32)
    self.folder.mkdir(parents=True, exist_ok=True)
    path = self._path(number)
    part = path.with_suffix('.part')
    with open(part, 'wb') as file:
      np.savez_compressed(file, **arrays)
    os.replace(part, path)

  def generations(self) -> list[int]:
    """Returns the generations that are kept, oldest first."""
    return [int(path.stem) for path in self._files()]

  def rewind(self, generation: int) -> None:
    """Drops the files of later generations; -1 drops all."""
    for path in self._files():
      if int(path.stem) > generation:
        path.unlink()
    for left in self.folder.glob('*.part'):
      left.unlink()

  def read(self, number: int | None = None) -> Iterator[GenerationItems]:
    """Yields the generations, oldest first; reads each when it is its turn.

    Args:
      number: of one generation, which is yielded alone if it is there.

    Raises:
      ValueError: a file is damaged.
    """
    if number is None:
      paths = self._files()
    else:
      paths = [path for path in [self._path(number)] if path.exists()]
    for path in paths:
      try:
        with (
          open(path, 'rb') as file,
          np.load(file, allow_pickle=False) as arrays,
        ):
          generation = _generation(int(path.stem), arrays)
      except _DAMAGES as error:
        raise ValueError(f'{path} is damaged: {error}.') from error
      yield generation

  def matrix(self, task: str) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Returns values (M, items) f32 of all members on all items of a task.

    With the member ids (M,) i32 and item ids in front; NaN where a member was
    not scored on an item. One that was scored again has its last values.
    """
    known: dict[int, dict[str, float]] = {}
    ids: dict[str, None] = {}
    for generation in self.read():
      for result in generation.tasks:
        if result.task == task:
          ids.update(dict.fromkeys(result.ids))
          for m, member in enumerate(generation.members.tolist()):
            row = zip(result.ids, result.values[m].tolist(), strict=True)
            asked = itertools.compress(row, result.asked[m])
            known.setdefault(member, {}).update(asked)
    values = [[row.get(i, np.nan) for i in ids] for row in known.values()]
    values = np.array(values, np.float32).reshape(len(known), len(ids))
    return np.array(list(known), np.int32), list(ids), values

  def _path(self, number: int) -> pathlib.Path:
    return self.folder / f'{number:05}.npz'

  def _files(self) -> list[pathlib.Path]:
    return sorted(self.folder.glob('[0-9]*.npz'), key=lambda p: int(p.stem))


def _generation(number: int, arrays: Any) -> GenerationItems:
  members = arrays['members']
  tasks = []
  for k, task in enumerate(arrays['tasks'].tolist()):
    metric, maximise, binary = arrays[f'kind{k}'].tolist()
    ids = arrays[f'ids{k}'].tolist()
    values = arrays[f'values{k}']
    if binary == 'True':
      values = np.unpackbits(values, axis=1, count=len(ids))
    asked = np.ones(values.shape, bool)
    if f'asked{k}' in arrays:
      asked = np.unpackbits(arrays[f'asked{k}'], axis=1, count=len(ids)) == 1
    whole = arrays[f'texts{k}'].tobytes()
    ends = [0, *np.cumsum(arrays[f'lengths{k}']).tolist()]
    texts = [whole[a:b].decode() for a, b in itertools.pairwise(ends)]
    texts = np.array([None, *texts], object)
    tasks.append(
      TaskItems(
        task=task,
        metric=metric,
        maximise=maximise == 'True',
        binary=binary == 'True',
        ids=ids,
        values=np.where(asked, values, np.nan).astype(np.float32),
        predictions=texts[arrays[f'said{k}']],
        asked=asked,
      )
    )
  return GenerationItems(number, members, tasks)
