"""Where each parameter stands in a Hugging Face folder, and its shape there.

A stored linear weight is (out, in) and one tensor a layer; here a kernel is
(L, in, out). Norm weights are kept as stored: the layer multiplies by 1 + w.
"""

import dataclasses
import re

from evojax_llm.models.config import GemmaConfig

# The text model of a multimodal folder stands under several spellings.
_TEXT = re.compile(
  r'^(?:(?:language_model|model|text_model)\.)*'
  r'((?:embed_tokens|layers\.\d+|norm|lm_head)\..+)$'
)
_OTHER_PARTS = re.compile(
  r'^(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector|'
  r'embed_vision)\.'
)
LM_HEAD = 'lm_head.weight'
# Of a classification model, which has it in place of an output matrix.
HEAD = 'score.weight'


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One leaf of the parameter tree and the stored tensors it is made of.

  Attributes:
    path: keys into the parameter tree.
    name: name of the stored tensor without the model's prefix; has `{}` for
      the layer when stacked.
    shape: of one stored tensor.
    stacked: one tensor a layer, on the leading axis L of the leaf.
    transposed: stored as (out, in).
  """

  path: tuple[str, ...]
  name: str
  shape: tuple[int, ...]
  stacked: bool = True
  transposed: bool = False

  def names(self, num_layers: int) -> list[str]:
    """Names of the stored tensors, by layer."""
    if not self.stacked:
      return [self.name]
    return [self.name.format(layer) for layer in range(num_layers)]

  def leaf_shape(self, num_layers: int) -> tuple[int, ...]:
    """Shape of the leaf in the parameter tree."""
    shape = self.shape[::-1] if self.transposed else self.shape
    return (num_layers, *shape) if self.stacked else shape


def leaves(config: GemmaConfig) -> list[Leaf]:
  """All leaves of a model's parameter tree."""
  width = (config.embed_dim,)
  table = [
    Leaf(
      ('embedder', 'embedding'),
      'embed_tokens.weight',
      (config.vocab_size, config.embed_dim),
      stacked=False,
    ),
    Leaf(('final_norm', 'scale'), 'norm.weight', width, stacked=False),
  ]
  for (block, projection), (d_in, d_out) in config.linear_shapes().items():
    table.append(
      Leaf(
        ('layers', block, projection, 'kernel'),
        f'layers.{{}}.{block}.{projection}.weight',
        (d_out, d_in),
        transposed=True,
      )
    )
  norms = ['input_layernorm', 'post_attention_layernorm']
  if config.post_norms:
    norms += ['pre_feedforward_layernorm', 'post_feedforward_layernorm']
  for norm in norms:
    table.append(
      Leaf(('layers', norm, 'scale'), f'layers.{{}}.{norm}.weight', width)
    )
  if config.qk_norm:
    for norm in ('q_norm', 'k_norm'):
      table.append(
        Leaf(
          ('layers', 'self_attn', norm, 'scale'),
          f'layers.{{}}.self_attn.{norm}.weight',
          (config.head_dim,),
        )
      )
  return table


def text_name(stored: str) -> str | None:
  """A stored name without the model's prefix; None if not of a text model."""
  match = _TEXT.match(stored)
  return match.group(1) if match else None


def is_other_part(stored: str) -> bool:
  """Whether a tensor belongs to the vision side of a multimodal model."""
  return bool(_OTHER_PARTS.match(stored))


def is_buffer(name: str) -> bool:
  """Whether old checkpoints stored a tensor that the model recomputes."""
  return name.endswith('.rotary_emb.inv_freq')
