"""Name and shape of each parameter in a Hugging Face folder.

A stored linear weight is (out, in), one tensor a layer; a kernel here is
(L, in, out). Norm weights w are kept as stored, around 0 or around 1.
"""

from collections.abc import Iterator
import dataclasses
import re

from evojax_llm.models.config import ModelConfig

# Multimodal folders spell the prefix of the text model in several ways.
_TEXT = re.compile(
  r'^(?:(?:language_model|model|text_model)\.)*'
  r'((?:embed_tokens|layers\.\d+|norm|lm_head|embed_tokens_per_layer|'
  r'per_layer_model_projection|per_layer_projection_norm)\..+)$'
)
_OTHER_PARTS = re.compile(
  r'^(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector|'
  r'embed_vision|vision_embedder|audio_tower|embed_audio)\.'
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
    layers: those whose tensors the leaf stacks on a leading axis L; None for
      one tensor without that axis.
    transposed: whether tensors are stored as (out, in).
  """

  path: tuple[str, ...]
  name: str
  shape: tuple[int, ...]
  layers: tuple[int, ...] | None = None
  transposed: bool = False

  def names(self) -> list[str]:
    """Returns the names of the stored tensors, by layer."""
    if self.layers is None:
      return [self.name]
    return [self.name.format(layer) for layer in self.layers]

  def leaf_shape(self) -> tuple[int, ...]:
    """Returns the shape of the leaf in the parameter tree."""
    shape = self.shape[::-1] if self.transposed else self.shape
    return shape if self.layers is None else (len(self.layers), *shape)


def leaves(config: ModelConfig) -> list[Leaf]:
  """Returns all leaves of a model's parameter tree."""
  width = (config.embed_dim,)
  embedding = (config.vocab_size, config.embed_dim)
  table = [
    Leaf(('embedder', 'embedding'), 'embed_tokens.weight', embedding),
    Leaf(('final_norm', 'scale'), 'norm.weight', width),
  ]
  if not config.tied:
    table.append(Leaf(('embedder', 'output'), LM_HEAD, embedding))
  inputs = config.num_layers * config.input_dim
  if inputs:
    table += [
      Leaf(
        ('embedder', 'inputs'),
        'embed_tokens_per_layer.weight',
        (config.input_vocab_size, inputs),
      ),
      Leaf(
        ('embedder', 'input_proj', 'kernel'),
        'per_layer_model_projection.weight',
        (inputs, config.embed_dim),
        transposed=True,
      ),
      Leaf(
        ('embedder', 'input_norm', 'scale'),
        'per_layer_projection_norm.weight',
        (config.input_dim,),
      ),
    ]
  for stack, layers, part in config.parts():
    for module, leaf, shape in _of_layer(part):
      kind = {'bias': '.bias', 'layer_scalar': ''}.get(leaf, '.weight')
      table.append(
        Leaf(
          ('layers', *stack, *module, leaf),
          '.'.join(('layers.{}', *(module or (leaf,)))) + kind,
          shape,
          layers,
          transposed=leaf == 'kernel',
        )
      )
  return table


def _of_layer(config: ModelConfig) -> Iterator[tuple[tuple, str, tuple]]:
  """Yields module, leaf and stored shape of the tensors of a layer."""
  width = (config.embed_dim,)
  for module, (d_in, d_out) in config.linear_shapes().items():
    yield module, 'kernel', (d_out, d_in)
    if module[1] in config.biases:
      yield module, 'bias', (d_out,)
  norms = ['input_layernorm', 'post_attention_layernorm']
  if config.post_norms:
    norms += ['pre_feedforward_layernorm', 'post_feedforward_layernorm']
  for norm in norms:
    yield (norm,), 'scale', width
  if config.qk_norm:
    for norm in ('q_norm', 'k_norm'):
      if norm == 'q_norm' or 'k_proj' not in config.absent:
        yield ('self_attn', norm), 'scale', (config.head_dim,)
  if config.input_dim:
    narrow = (config.input_dim, config.embed_dim)
    yield ('per_layer_input_gate',), 'kernel', narrow
    yield ('per_layer_projection',), 'kernel', narrow[::-1]
    yield ('post_per_layer_input_norm',), 'scale', width
  if config.layer_scalar:
    yield (), 'layer_scalar', (1,)


def unused(config: ModelConfig) -> set[str]:
  """Returns names of tensors that some folders store and no model reads.

  They are keys and values of layers that see those of another layer.
  """
  return {
    f'layers.{layer}.self_attn.{name}.weight'
    for _, layers, part in config.parts()
    if 'k_proj' in part.absent
    for layer in layers
    for name in ('k_proj', 'v_proj', 'k_norm')
  }


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
