"""A small model, members and tasks that the tests of the engine share."""

import functools

import jax
import numpy as np

from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.expression import LowRank
from evojax_llm.models.rope import Rope
from evojax_llm.models.transformer import init_params
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task

MEMBERS = 5


class Letters:
  """A tokenizer of single characters."""

  bos_id, pad_id, stop_ids = 1, 0, (2,)

  def encode(self, text, bos=True):
    return [1] * bos + [3 + (ord(c) - 32) % 90 for c in text]

  def decode(self, ids):
    return ''.join(chr(32 + i - 3) for i in ids)


@functools.cache
def tiny_config() -> ModelConfig:
  return ModelConfig(
    model_type='gemma2',
    vocab_size=96,
    num_layers=2,
    embed_dim=16,
    ffn_dim=24,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    query_pre_attn_scalar=8.0,
    attn_softcap=50.0,
    final_softcap=30.0,
    sliding_window=6,
    layer_types=('sliding_attention', 'full_attention'),
    rope_full=Rope(),
    rope_sliding=Rope(),
    activation='gelu_tanh',
    norm_eps=1e-6,
    post_norms=True,
    qk_norm=False,
    max_position_embeddings=128,
  )


@functools.cache
def tiny_params():
  config = tiny_config()
  # Weights large enough that greedy choices are far from ties.
  return jax.tree.map(
    lambda leaf: leaf * 20.0, init_params(config, jax.random.key(0))
  )


def population_of(members: int):
  """Low ranks on the host."""
  config = tiny_config()
  tree = {'layers': {}}
  rng = np.random.default_rng(1)
  for (block, name), (fan_in, fan_out) in config.linear_shapes().items():
    shape = (members, config.num_layers)
    tree['layers'].setdefault(block, {})[name] = {
      'a': rng.normal(0, 0.3, (*shape, fan_in, 2)).astype(np.float32),
      'b': rng.normal(0, 0.3, (*shape, 2, fan_out)).astype(np.float32),
    }
  return LowRank(tree)


def tiny_tasks() -> list[Task]:
  choice = [
    Item(
      str(i),
      'pick ' + 'x' * i,
      'A',
      (('A', 'yes'), ('B', 'no'), ('C', 'no way')),
    )
    for i in range(7)
  ]
  exact = [Item(str(i), 'say ' + 'abcdefghij'[: i + 1], 'a') for i in range(9)]
  return [
    Task(
      'choice',
      'multiple_choice',
      tuple(choice),
      format=Format('{question}', choice='text'),
    ),
    Task('exact', 'exact_match', tuple(exact), format=Format(max_new_tokens=6)),
  ]


@functools.cache
def tiny_space() -> Expressed:
  """The space of `population_of`."""
  return Expressed(Model(tiny_config(), tiny_params()))


def make(tasks, tokenizer=None, **options) -> Evaluator:
  options.setdefault('devices', jax.devices()[:1])
  return Evaluator(tokenizer or Letters(), tasks, **options)


def raw(scores):
  """What must not depend on how the work was cut."""
  values = [
    list(v.values()) for row in scores.tasks[0].loglikelihoods for v in row
  ]
  return np.array(values), scores.tasks[1].predictions
