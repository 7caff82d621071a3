"""The base and its adapters as one population, for programs that compare them.

The first member is the base itself, as the adapter that changes nothing; one
member for each adapter folder follows.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.genomes.adapters import scaled
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import load_base
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.config import GemmaConfig
from evojax_llm.models.expression import LowRank
from evojax_llm.models.folders import model_name
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.runs.errors import UserError

BASE = 'base'


@dataclasses.dataclass(frozen=True)
class Members:
  """The base and its adapters.

  Attributes:
    space: of members that are expressed, over the base.
    tokenizer: its tokenizer.
    names: P names: 'base', then what tells the adapter folders apart; without
      adapters the name of the model folder.
    population: low ranks with a leading P, f32.
  """

  space: Expressed
  tokenizer: Tokenizer
  names: tuple[str, ...]
  population: Any


def load(
  model: str, adapters: Sequence[str] = (), dtype: Any = jnp.float32
) -> Members:
  """Loads a model folder and adapter folders; `dtype` is that of the base.

  Raises:
    ModelError: a folder cannot be used.
    UserError: an adapter folder is called 'base'.
  """
  # The small files first: what is wrong with them shows at once.
  tokenizer = Tokenizer.from_folder(model)
  config, _ = hub.load_config(model)
  names, population = (model_name(model),), alone(config)
  if adapters:
    names, population = _with_adapters(config, adapters)
  space = Expressed(load_base(model, dtype))
  return Members(space, tokenizer, names, population)


def alone(config: GemmaConfig) -> LowRank:
  """Returns the base as a population of one, with an adapter of zeros."""
  zero = {
    'a': jnp.zeros((1, config.num_layers, config.embed_dim, 1)),
    'b': jnp.zeros((1, config.num_layers, 1, config.ffn_dim)),
  }
  return LowRank({'layers': {'mlp': {'up_proj': zero}}})


def _with_adapters(
  config: GemmaConfig, adapters: Sequence[str]
) -> tuple[tuple[str, ...], LowRank]:
  loaded = peft.load_adapters(adapters, config)
  if BASE in loaded.names:
    folder = adapters[loaded.names.index(BASE)]
    raise UserError(
      f"The adapter folder {folder} is called '{BASE}', as the model without "
      'an adapter is in the results. Rename it.'
    )

  def with_base(factors: Any) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(factors[:1]), factors])

  population = jax.tree.map(with_base, scaled(loaded.factors, loaded.scale))
  return (BASE, *loaded.names), LowRank(population)
