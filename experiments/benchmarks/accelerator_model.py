"""A random model, adapters and tasks that need no files."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes.space import Model
from evojax_llm.models import families
from evojax_llm.models import names
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.model_files import put
from evojax_llm.models.peft import AdapterSet
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from experiments.benchmarks import shapes

_PIECE = re.compile(r'\s?\S{1,4}|\s')
# Tokens of questions, as those of mmlu and gsm8k: the median, the spread of the
# logarithm, least and most.
_QUESTIONS = {
  'multiple_choice': (48, 0.7, 12, 400),
  'numeric_match': (56, 0.35, 20, 200),
}
_FILES = {'multiple_choice': 'mmlu.json', 'numeric_match': 'gsm8k.json'}


def model_config(shape: str, layers: int | None) -> ModelConfig:
  """Returns the configuration of a shape of `shapes`, of all or some layers."""
  return families.config_from_hf(shapes.hf_config(shape, layers))


def random_model(config: ModelConfig, dtype: Any) -> Model:
  """Draws a model on the device, leaf by leaf: normal(0, 0.02), zero norms."""

  def draw(key, shape):
    return 0.02 * jax.random.normal(key, shape, dtype)

  drawn = jax.jit(draw, static_argnums=1)
  params: dict[str, Any] = {}
  # Of this generator drawing costs next to nothing, in code and in time.
  key = jax.random.key(0, impl='rbg')
  for i, leaf in enumerate(names.leaves(config)):
    shape = leaf.leaf_shape()
    if leaf.path[-1] == 'scale':
      value = jnp.zeros(shape, dtype)
    else:
      value = drawn(jax.random.fold_in(key, i), shape)
    put(params, leaf.path, value)
  return Model(config, jax.block_until_ready(params))


def random_adapters(config: ModelConfig, count: int, rank: int) -> AdapterSet:
  """Draws adapters of all linear maps, as if trained: b is not zero."""
  rng = np.random.default_rng(0)
  factors: dict[str, Any] = {}
  scale: dict[str, Any] = {}
  for (block, name), (fan_in, fan_out) in config.linear_shapes().items():
    lead = (count, config.num_layers)
    pair = {'a': (*lead, fan_in, rank), 'b': (*lead, rank, fan_out)}
    drawn = {
      key: 0.04 * (rng.random(shape, np.float32) - 0.5)
      for key, shape in pair.items()
    }
    put(factors, ('layers', block, name), drawn)
    put(
      scale, ('layers', block, name), np.full(config.num_layers, 2, np.float32)
    )
  return AdapterSet(
    tuple(f'expert{i}' for i in range(count)), factors, scale, rank
  )


@dataclasses.dataclass(frozen=True)
class Pieces:
  """A tokenizer of four characters a token; no token ends an answer."""

  vocab_size: int
  bos_id: int = 2
  pad_id: int = 0
  stop_ids: tuple[int, ...] = ()

  def encode(self, text: str, bos: bool = True) -> list[int]:
    """Returns a token for every piece of a text."""
    known = self.vocab_size - 8
    ids = [
      8 + zlib.crc32(piece.encode()) % known for piece in _PIECE.findall(text)
    ]
    return [self.bos_id, *ids] if bos else ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the numbers of the tokens: there are no words behind them."""
    return ' '.join(map(str, ids))


def task(kind: str, items: int, new_tokens: int, folder: str | None) -> Task:
  """Returns a task with so many items, of a file of the folder or made up.

  Args:
    kind: 'multiple_choice' or 'numeric_match'.
    items: in `dev`; those of a file are used again where it has fewer.
    new_tokens: that an answer takes.
    folder: with mmlu.json and gsm8k.json, or None.
  """
  made = Task('made_up', kind, tuple(_made_up(kind, items)))
  if folder:
    made = load_task(
      str(pathlib.Path(folder) / _FILES[kind]), Rules(allow_overlap=True)
    )
  found = made.test or made.dev
  chosen = tuple(
    dataclasses.replace(found[i % len(found)], id=str(i)) for i in range(items)
  )
  how = dataclasses.replace(
    made.format if folder else Format(), max_new_tokens=new_tokens
  )
  return dataclasses.replace(made, dev=chosen, test=(), format=how)


def _made_up(kind: str, items: int) -> Iterator[Item]:
  """Yields items of random words of one token, as long as real ones."""
  rng = np.random.default_rng(1)
  median, spread, least, most = _QUESTIONS[kind]

  def words(count: int) -> str:
    letters = rng.integers(97, 123, (count, 3), np.uint8)
    return ' '.join(row.tobytes().decode() for row in letters)

  for i in range(items):
    length = int(np.clip(median * rng.lognormal(0, spread), least, most))
    choices = None
    if kind == 'multiple_choice':
      choices = tuple((key, words(rng.integers(2, 16))) for key in 'ABCD')
    yield Item(str(i), words(length), 'A' if choices else '7', choices)
