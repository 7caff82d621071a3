"""The fields of a Hugging Face configuration that define a model.

`ModelConfig` is hashable: a static argument of jitted functions and a field of
Flax modules. What the forward pass does not have is refused.
"""

import dataclasses
import math

from evojax_llm.models.errors import ModelError
from evojax_llm.models.rope import Rope

MODEL_FOLDER = 'a model folder in Hugging Face layout'
# Ends the model_type of a folder of `path_files`.
PATH = '_path'
LAYER_TYPES = ('full_attention', 'sliding_attention')
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'silu': 'silu',
  'swish': 'silu',
}
# Projections of a layer.
ATTENTION = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
MLP = ('gate_proj', 'up_proj', 'down_proj')


@dataclasses.dataclass(frozen=True)
class Stack:
  """The layers of one shape, in a model whose layers differ (Gemma 4).

  Attributes:
    name: key below 'layers' in trees of parameters and factors.
    layers: indices in the model, ascending.
    layer_type: of LAYER_TYPES.
    head_dim: width of one head.
    num_kv_heads: key and value heads.
    ffn_dim: F.
    absent: projections that the layers lack. Without v_proj values are the
      projected keys; without k_proj the layers have no keys of their own, and
      see those of the last layer before them that has the type and has keys.
  """

  name: str
  layers: tuple[int, ...]
  layer_type: str
  head_dim: int
  num_kv_heads: int
  ffn_dim: int
  absent: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and mathematics of one text model.

  Attributes:
    model_type: of `families.FAMILIES`.
    vocab_size: V.
    num_layers: L.
    embed_dim: D.
    ffn_dim: F.
    num_heads: H, query heads.
    num_kv_heads: key and value heads; divides H.
    head_dim: width of one head; need not be D / H.
    query_pre_attn_scalar: its power -1/2 multiplies the scores.
    attn_softcap: c in c * tanh(scores / c), or None.
    final_softcap: the same for logits, or None.
    sliding_window: keys that a sliding layer sees, the query's included.
    layer_types: (L,) of 'full_attention' and 'sliding_attention'.
    rope_full: rotary embedding of full layers.
    rope_sliding: rotary embedding of sliding layers.
    activation: 'gelu' (exact), 'gelu_tanh' or 'silu'.
    norm_eps: added to the mean square in RMSNorm.
    post_norms: whether norms follow attention and MLP too (Gemma 2 and 3).
    qk_norm: whether query and key heads are normalised (Gemma 3, Qwen 3).
    max_position_embeddings: longest context the model was made for.
    norm_offset: added to the scales of norms.
    scale_embedding: whether embeddings are multiplied by sqrt(D).
    tied: whether the output matrix is the embedding.
    biases: projections that have one.
    absent: projections that layers lack; see `Stack`.
    stacks: of the layers, where these differ in shape; else (). Then head_dim,
      num_kv_heads, ffn_dim and absent are those of `parts` alone.
    v_norm: whether value heads are divided by their root mean square.
    layer_scalar: whether a number multiplies what leaves a layer.
    input_dim: width of the embedding of a token that each layer adds; 0 for
      none.
    input_vocab_size: tokens that have one.
  """

  model_type: str
  vocab_size: int
  num_layers: int
  embed_dim: int
  ffn_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  query_pre_attn_scalar: float
  attn_softcap: float | None
  final_softcap: float | None
  sliding_window: int | None
  layer_types: tuple[str, ...]
  rope_full: Rope
  rope_sliding: Rope
  activation: str
  norm_eps: float
  post_norms: bool
  qk_norm: bool
  max_position_embeddings: int
  norm_offset: float = 1.0
  scale_embedding: bool = True
  tied: bool = True
  biases: tuple[str, ...] = ()
  absent: tuple[str, ...] = ()
  stacks: tuple[Stack, ...] = ()
  v_norm: bool = False
  layer_scalar: bool = False
  input_dim: int = 0
  input_vocab_size: int = 0

  def __post_init__(self):
    if len(self.layer_types) != self.num_layers:
      raise ModelError(
        f'layer_types names {len(self.layer_types)} layers; '
        f'num_hidden_layers is {self.num_layers}.'
      )
    unknown = set(self.layer_types) - set(LAYER_TYPES)
    if unknown:
      raise ModelError(
        f'layer_types has {sorted(unknown)}; expected only {LAYER_TYPES}.'
      )
    if self.num_heads % self.num_kv_heads:
      raise ModelError(
        f'num_attention_heads is {self.num_heads}, which num_key_value_heads '
        f'{self.num_kv_heads} does not divide.'
      )
    if 'sliding_attention' in self.layer_types and not self.sliding_window:
      raise ModelError(
        'layer_types has sliding_attention but sliding_window is '
        f'{self.sliding_window!r}; expected a positive number of tokens.'
      )
    if self.head_dim % 2:
      raise ModelError(
        f'head_dim is {self.head_dim}; rotary embedding needs an even one.'
      )
    if self.stacks:
      self.parts()  # Each is checked.

  def parts(
    self,
  ) -> tuple[tuple[tuple[str, ...], tuple[int, ...], 'ModelConfig'], ...]:
    """Returns the stacks of layers, one of a model whose layers are alike.

    Of each the keys below 'layers' in trees, the indices of its layers, and a
    configuration of these alone.
    """
    if not self.stacks:
      return (((), tuple(range(self.num_layers)), self),)
    return tuple(
      (
        (stack.name,),
        stack.layers,
        dataclasses.replace(
          self,
          stacks=(),
          num_layers=len(stack.layers),
          layer_types=(stack.layer_type,) * len(stack.layers),
          head_dim=stack.head_dim,
          num_kv_heads=stack.num_kv_heads,
          ffn_dim=stack.ffn_dim,
          absent=stack.absent,
        ),
      )
      for stack in self.stacks
    )

  def places(self) -> list[tuple[tuple[str, ...], int, 'ModelConfig']]:
    """Returns stack, index in it and its configuration, of each of L layers."""
    found = {
      layer: (stack, i, part)
      for stack, layers, part in self.parts()
      for i, layer in enumerate(layers)
    }
    return [found[layer] for layer in range(self.num_layers)]

  @property
  def key_heads(self) -> int:
    """What divides the number of key heads of every layer."""
    return math.gcd(*(c.num_kv_heads for _, _, c in self.parts()))

  @property
  def embedding_params(self) -> int:
    """Number of parameters that tokens choose from; a tied output once."""
    inputs = self.num_layers * self.input_dim * self.input_vocab_size
    matrices = 1 if self.tied else 2
    return matrices * self.vocab_size * self.embed_dim + inputs

  @property
  def num_params(self) -> int:
    """Number of parameters of the text model; a tied output counts once."""
    d, p = self.embed_dim, self.input_dim
    total = self.embedding_params + d
    if p:
      total += self.num_layers * p * d + p
    for _, layers, c in self.parts():
      norms = (4 if c.post_norms else 2) * d
      if c.qk_norm:
        norms += (2 - ('k_proj' in c.absent)) * c.head_dim
      layer = norms + c.layer_scalar + (2 * p * d + d if p else 0)
      layer += sum(
        d_in * d_out + d_out * (name in self.biases)
        for (_, name), (d_in, d_out) in c.linear_shapes().items()
      )
      total += len(layers) * layer
    return total

  def linear_shapes(
    self, inputs: bool = False
  ) -> dict[tuple[str, ...], tuple[int, int]]:
    """Returns (in, out) of each linear map, by (block, projection).

    Of a model with stacks by (stack, block, projection). With `inputs` also the
    two maps in no block, by (name,): between a layer and what it adds of each
    token. Adapters that are read may have them, those made here do not.
    """
    if self.stacks:
      return {
        (*stack, *module): shape
        for stack, _, c in self.parts()
        for module, shape in c.linear_shapes(inputs).items()
      }
    d, f = self.embed_dim, self.ffn_dim
    q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
    shapes = {
      ('self_attn', 'q_proj'): (d, q),
      ('self_attn', 'k_proj'): (d, kv),
      ('self_attn', 'v_proj'): (d, kv),
      ('self_attn', 'o_proj'): (q, d),
      ('mlp', 'gate_proj'): (d, f),
      ('mlp', 'up_proj'): (d, f),
      ('mlp', 'down_proj'): (f, d),
    }
    shapes = {m: s for m, s in shapes.items() if m[1] not in self.absent}
    if inputs and self.input_dim:
      shapes['per_layer_input_gate',] = d, self.input_dim
      shapes['per_layer_projection',] = self.input_dim, d
    return shapes

  def within_layer(self, module: tuple[str, ...]) -> tuple[str, ...]:
    """Returns a key of `linear_shapes` without its stack, if it has one."""
    return module[1:] if self.stacks else module

  def module_layers(self, module: tuple[str, ...]) -> tuple[int, ...]:
    """Returns the layers that have a linear map, by index in the model."""
    return next(
      layers
      for stack, layers, _ in self.parts()
      if stack == module[: len(stack)]
    )

  def key_layers(self) -> tuple[int, ...]:
    """Returns of each of L layers the one whose keys and values it sees."""
    own, of = {}, {}
    lacks = {i for s in self.stacks for i in s.layers if 'k_proj' in s.absent}
    for layer, kind in enumerate(self.layer_types):
      own[kind] = own.get(kind, layer) if layer in lacks else layer
      of[layer] = own[kind]
    return tuple(of.values())
