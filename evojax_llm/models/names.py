"""Name and shape of each parameter in a Hugging Face folder.

A stored linear weight is (out, in), one tensor a layer; a kernel here is
(L, in, out). Norm weights w are kept as stored, around 0 or around 1.
"""

import dataclasses
import re

from evojax_llm.models.config import ModelConfig

# Multimodal folders spell the prefix of the text model in several ways.
_TEXT = re.compile(
  r'^(?:(?:language_model|model|text_model)\.)*'
  r'((?:embed_tokens|layers\.\d+|norm|lm_head)\..+)$'
)
_OTHER_PARTS = re.compile(
  r'^(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector|'
  r'embed_vision)\.'
)
LM_HEAD = 'lm_head.weight'
# A classification model has this in place of an output matrix.
HEAD = 'score.weight'


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One leaf of the parameter tree and the stored tensors it is made of.

  Attributes:
    path: keys into the parameter tree.
    name: of the stored tensor, without the model's prefix; `{}` stands for
      the layer if stacked.
    shape: of one stored tensor.
    stacked: whether the leaf stacks one tensor a layer on a leading axis L.
    transposed: whether tensors are stored as (out, in).
  """

  path: tuple[str, ...]
  name: str
  shape: tuple[int, ...]
  stacked: bool = True
  transposed: bool = False

  def names(self, num_layers: int) -> list[str]:
    """Returns the names of the stored tensors, by layer."""
    count = num_layers if self.stacked else 1
    return [self.name.format(layer) for layer in range(count)]

  def leaf_shape(self, num_layers: int) -> tuple[int, ...]:
    """Returns the shape of the leaf in the parameter tree."""
    shape = self.shape[::-1] if self.transposed else self.shape
    return (num_layers, *shape) if self.stacked else shape


def leaves(config: ModelConfig) -> list[Leaf]:
  """Returns all leaves of a model's parameter tree."""
  width = (config.embed_dim,)
  embedding = (config.vocab_size, config.embed_dim)
  table = [
    Leaf(('embedder', 'embedding'), 'embed_tokens.weight', embedding, False),
    Leaf(('final_norm', 'scale'), 'norm.weight', width, stacked=False),
  ]
  if not config.tied:
    table.append(Leaf(('embedder', 'output'), LM_HEAD, embedding, False))

  def add(module: tuple[str, ...], leaf: str, shape: tuple[int, ...]) -> None:
    kind = 'bias' if leaf == 'bias' else 'weight'
    name = '.'.join(('layers.{}', *module, kind))
    path = ('layers', *module, leaf)
    table.append(Leaf(path, name, shape, transposed=leaf == 'kernel'))

  for module, (d_in, d_out) in config.linear_shapes().items():
    add(module, 'kernel', (d_out, d_in))
    if module[1] in config.biases:
      add(module, 'bias', (d_out,))
  norms = ['input_layernorm', 'post_attention_layernorm']
  if config.post_norms:
    norms += ['pre_feedforward_layernorm', 'post_feedforward_layernorm']
  for norm in norms:
    add((norm,), 'scale', width)
  if config.qk_norm:
    for norm in ('q_norm', 'k_norm'):
      add(('self_attn', norm), 'scale', (config.head_dim,))
  return table


def text_name(stored: str) -> str | None:
  """Strips the model's prefix; returns None if not of a text model."""
  match = _TEXT.match(stored)
  return match.group(1) if match else None


def is_other_part(stored: str) -> bool:
  """Whether a tensor belongs to the vision side of a multimodal model."""
  return bool(_OTHER_PARTS.match(stored))


def is_buffer(name: str) -> bool:
  """Whether old checkpoints stored a tensor that the model recomputes."""
  return name.endswith('.rotary_emb.inv_freq')
