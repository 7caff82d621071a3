"""The fields of a Hugging Face configuration that define a model.

`ModelConfig` is hashable: a static argument of jitted functions and a field of
Flax modules. What the forward pass does not have is refused.
"""

import dataclasses

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

  @property
  def num_params(self) -> int:
    """Number of parameters of the text model; a tied output counts once."""
    d, h = self.embed_dim, self.head_dim
    norms = (4 if self.post_norms else 2) * d + (2 * h if self.qk_norm else 0)
    layer = norms + sum(
      d_in * d_out + d_out * (name in self.biases)
      for (_, name), (d_in, d_out) in self.linear_shapes().items()
    )
    matrices = 1 if self.tied else 2
    return matrices * self.vocab_size * d + self.num_layers * layer + d

  def linear_shapes(self) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns (in, out) of each linear map, by (block, projection)."""
    d, f = self.embed_dim, self.ffn_dim
    q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
    return {
      ('self_attn', 'q_proj'): (d, q),
      ('self_attn', 'k_proj'): (d, kv),
      ('self_attn', 'v_proj'): (d, kv),
      ('self_attn', 'o_proj'): (q, d),
      ('mlp', 'gate_proj'): (d, f),
      ('mlp', 'up_proj'): (d, f),
      ('mlp', 'down_proj'): (f, d),
    }
