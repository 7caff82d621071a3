"""Gemma with a classification head, as transformers stores it.

The folder of a Gemma2ForSequenceClassification (or of its Gemma 1 or 3 sibling)
has a matrix `score.weight` (labels, D) in place of an output matrix.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.models import hub
from evojax_llm.models.config import MODEL_FOLDER
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.errors import ModelError
from evojax_llm.models.folders import TensorFiles
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.names import HEAD
from evojax_llm.models.transformer import Transformer


class Classifier:
  """A classification model.

  Attributes:
    config: of the text model.
    params: its parameters.
    head: (labels, D) f32.
    labels: number of labels.
  """

  def __init__(
    self, config: ModelConfig, params: Any, head: np.ndarray, dtype: Any
  ):
    self.config, self.params = config, params
    self.head, self.labels = jnp.asarray(head, jnp.float32), len(head)
    self._model = Transformer(config, dtype)

  def logits(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns logits (B, labels) f32 at the last token of each row.

    Args:
      tokens: (B, T) i32.
      positions: (B, T) i32, -1 for padding.
    """
    return np.asarray(self._logits(self.params, self.head, tokens, positions))

  @functools.partial(jax.jit, static_argnums=0)
  def _logits(self, params, head, tokens, positions):
    hidden, _ = self._model.apply({'params': params}, tokens, positions)
    last = jnp.argmax(positions, axis=-1)
    pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return jnp.einsum(
      'bd,ld->bl',
      pooled,
      head.astype(pooled.dtype),
      preferred_element_type=jnp.float32,
    )


def load_classifier(
  folder: str | os.PathLike, dtype: Any = jnp.float32
) -> Classifier:
  """Loads a classification folder; `dtype` is that of parameters and products.

  Raises:
    ModelError: what `hub.load_checkpoint` refuses, or no `score.weight` of the
      model's width.
  """
  dtype = jnp.dtype(dtype)
  path = existing_folder(folder, MODEL_FOLDER)
  with TensorFiles.of_model(path) as files:
    if HEAD not in files.names:
      raise ModelError(
        f'{path}: has no tensor {HEAD}; expected the folder of a '
        'Gemma2ForSequenceClassification.'
      )
    head = files.read(HEAD).astype(np.float32)
    files.check_finite(HEAD, head)
  config, params = hub.load_checkpoint(folder, dtype, head=True)
  if head.ndim != 2 or head.shape[1] != config.embed_dim:
    raise ModelError(
      f'{path}: tensor {HEAD} has shape {head.shape}; expected (labels, '
      f'{config.embed_dim}).'
    )
  return Classifier(config, params, head, dtype)
