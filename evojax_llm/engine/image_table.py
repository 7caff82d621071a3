"""Tables of the soft tokens of images, on the devices.

What is read of an image, and of the vision side of a model, is kept on the host
with the tokenizer of the model: all engines of a loaded model read it once.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine.runtime import Runtime
from evojax_llm.models import vision
from evojax_llm.models.images import Image
from evojax_llm.models.images import pixels
from evojax_llm.population import sharding
from evojax_llm.tasks.prompts import EncodedItem
from evojax_llm.tasks.training_data import EncodedRow

# Bytes at most of the attention weights of the images that are read together.
_ATTENTION_BYTES = 1 << 28
_MOST_TOGETHER = 32
# What has a `prompt` of token ids.
_Encoded = TypeVar('_Encoded', EncodedItem, EncodedRow)


class ImageTables:
  """Makes tables of soft tokens.

  Args:
    runtime: devices and programs.
    tokenizer: of a model, in whose folder its vision side is.
  """

  def __init__(self, runtime: Runtime, tokenizer: Any):
    self._runtime, self._tokenizer = runtime, tokenizer

  def take(
    self, encoded: Sequence[Sequence[_Encoded]]
  ) -> tuple[list[tuple[_Encoded, ...]], jax.Array | None]:
    """Makes the table of the images of some lists of items.

    Returns:
      The items, whose soft tokens are rows of the table, and the table
      (n, T, D) in the runtime's type, on all devices; None without images.

    Raises:
      ModelError: the vision side of the model's folder cannot be used.
      ImageError: an image has changed since it was named.
    """
    tokens = getattr(self._tokenizer, 'images', None)
    items = [tuple(task) for task in encoded]
    if tokens is None or not tokens.found:
      return items, None
    border, count = tokens.vocab_size, tokens.count
    used: dict[int, int] = {}  # numbers of images, by those that texts have.

    def own(i: int) -> int:
      number, at = divmod(i - border, count)
      return border + used.setdefault(number, len(used)) * count + at

    items = [
      tuple(
        dataclasses.replace(
          item, prompt=tuple(i if i < border else own(i) for i in item.prompt)
        )
        for item in task
      )
      for task in items
    ]
    if not used:
      return items, None
    table = self._soft_tokens([tokens.found[number] for number in used])
    # Few sizes, so that other items of as many images share a program.
    step = max(1, 1 << len(table).bit_length() >> 3)
    rest = np.zeros((-len(table) % step, *table.shape[1:]), table.dtype)
    table = jnp.asarray(np.concatenate([table, rest]), self._runtime.dtype)
    whole = sharding.replicated(self._runtime.mesh)
    return items, sharding.place(table, whole)

  def _soft_tokens(self, images: Sequence[Image]) -> np.ndarray:
    """Returns the soft tokens (n, T, D) f32 of images."""
    known = self._tokenizer.images.read
    new = [image for image in images if image.digest not in known]
    if new:
      side = self._tokenizer.vision
      config = side.config
      # On the devices as long as they read.
      params = jax.tree.map(jnp.asarray, side.params)
      together = _ATTENTION_BYTES // (4 * config.num_heads * config.grid**4)
      together = int(np.clip(together, 1, _MOST_TOGETHER))
      for start in range(0, len(new), together):
        part = new[start : start + together]
        batch = np.stack([pixels(image, side.how) for image in part])
        batch = np.resize(batch, (together, *batch.shape[1:]))
        program = self._runtime.compiled(
          ('vision', config), _read(config), params, batch
        )
        soft = sharding.to_host(program(params, batch))[: len(part)]
        known |= zip((image.digest for image in part), soft, strict=True)
    return np.stack([known[image.digest] for image in images])


def _read(config: vision.VisionConfig):
  module = vision.Vision(config)
  return lambda params, batch: module.apply({'params': params}, batch)
