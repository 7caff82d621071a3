"""Fast scores of members on pocket tasks, by teacher forcing.

The engine of evojax_llm.fitness decodes; for one gold string that ends with the
stop token the outcome is the same as teacher forcing tells, at a fraction of
the time. The tests hold the two against each other.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.models.config import ModelConfig
from evojax_llm.models.expression import LowRank
from evojax_llm.models.expression import fold
from evojax_llm.models.transformer import Transformer
from experiments.pocket import data
from experiments.pocket.families import Example


@functools.partial(jax.jit, static_argnames='config')
def _rows(config: ModelConfig, params, population, batch):
  """(P, B) bool whether all answer tokens are arg max; (P, B) f32 loglik."""
  model = Transformer(config)
  tokens, answer = batch['tokens'], batch['answer']

  def one(lora):
    member = {'params': fold(params, LowRank(lora))}
    hidden, _ = model.apply(member, tokens, batch['positions'])
    logits = model.apply(member, hidden[:, :-1], method='unembed')
    gold = tokens[:, 1:]
    right = jnp.argmax(logits, axis=-1) == gold
    picked = jnp.take_along_axis(logits, gold[..., None], axis=-1)[..., 0]
    loglik = picked - jax.nn.logsumexp(logits, axis=-1)
    return (
      jnp.all(right | (answer == 0.0), axis=-1),
      jnp.sum(loglik * answer, axis=-1),
    )

  # One member at a time: faster than vmap for a model of this size.
  return jax.lax.map(one, population)


@dataclasses.dataclass(frozen=True)
class Rows:
  """Token rows of one split of a task.

  Attributes:
    batch: see `data.rows`; for multiple choice one row per option, item by
      item, its mask without the stop token.
    gold: (items,) i64 index of the right option; None for exact match.
  """

  batch: Mapping[str, np.ndarray]
  gold: np.ndarray | None


def split_rows(task: Mapping[str, Any], split: str, limit=None) -> Rows:
  """The rows of the first `limit` items of a split."""
  examples = data.examples_of(task, split)[:limit]
  if not examples[0].choices:
    return Rows(data.rows(examples, data.SCORED_LENGTH), None)
  options = [
    Example(e.question, option, e.choices)
    for e in examples
    for option in e.choices
  ]
  batch = data.rows(options, data.SCORED_LENGTH)
  last = batch['answer'].shape[1] - 1 - batch['answer'][:, ::-1].argmax(axis=1)
  batch['answer'][np.arange(len(last)), last] = 0.0
  return Rows(batch, np.array([e.choices.index(e.answer) for e in examples]))


def correct(config: ModelConfig, params, population, rows: Rows) -> np.ndarray:
  """Whether each member is right on each item, (P, items) bool.

  Args:
    config: of the base.
    params: of the base.
    population: adapter trees with a leading P axis, B scaled.
    rows: of one task and split.
  """
  exact, loglik = _rows(config, params, population, dict(rows.batch))
  if rows.gold is None:
    return np.asarray(exact)
  members = loglik.shape[0]
  by_option = np.asarray(loglik).reshape(members, len(rows.gold), -1)
  return by_option.argmax(axis=-1) == rows.gold
