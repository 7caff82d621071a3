"""A small set of adapters, and models, made without files."""

import numpy as np

from evojax_llm.genomes import merged_weights
from evojax_llm.genomes import weights
from evojax_llm.genomes.space import Model
from evojax_llm.models import peft
from evojax_llm.models.expression import LowRank

LAYERS, RANK = 3, 2
SHAPES = {'q_proj': (6, 5), 'o_proj': (5, 6)}


def adapter_set(num_experts: int = 10, seed: int = 0) -> peft.AdapterSet:
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  factors = {
    name: {
      'a': normal(num_experts, LAYERS, rows, RANK),
      'b': normal(num_experts, LAYERS, RANK, columns),
    }
    for name, (rows, columns) in SHAPES.items()
  }
  scale = {name: np.asarray([2.0, 1.0, 0.5], np.float32) for name in SHAPES}
  return peft.AdapterSet(
    names=tuple(f'expert{n}' for n in range(num_experts)),
    factors={'layers': {'self_attn': factors}},
    scale={'layers': {'self_attn': scale}},
    rank=RANK,
  )


def base() -> Model:
  """A base whose parameters no test reads, but for their modules."""
  modules = {
    name: {'kernel': np.zeros((LAYERS, *s))} for name, s in SHAPES.items()
  }
  return Model(None, {'layers': {'self_attn': modules}})


def delta(member: LowRank, name: str = 'q_proj') -> np.ndarray:
  """The change (L, in, out) of one matrix by a member, in f64."""
  factors = member.factors['layers']['self_attn'][name]
  return np.einsum(
    '...ir,...ro->...io',
    np.asarray(factors['a'], np.float64),
    np.asarray(factors['b'], np.float64),
  )


def expert_delta(adapters, expert: int, name: str = 'q_proj') -> np.ndarray:
  factors = adapters.factors['layers']['self_attn'][name]
  product = np.einsum(
    'lir,lro->lio',
    factors['a'][expert].astype(np.float64),
    factors['b'][expert].astype(np.float64),
  )
  scale = adapters.scale['layers']['self_attn'][name]
  return product * scale[:, None, None]


def dense(num: int, dtype=np.float32):
  rng = np.random.default_rng(num)
  kernel = {'kernel': rng.normal(size=(4, 3, 2)).astype(dtype)}
  return {
    'final_norm': {'scale': rng.normal(size=3).astype(dtype)},
    'layers': {'self_attn': {'q_proj': kernel}},
  }


def dense_space(**given):
  """The space of two models, which are merged as tensors."""
  model = Model(None, dense(0))
  plain = weights.WeightSpace(('x', 'y'), [dense(1), dense(2)], model)
  return merged_weights.MergedWeightSpace(plain, **given)
