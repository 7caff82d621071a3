"""Training of the pocket base and of its experts by gradient descent.

This is the only place of the repository where gradients are taken: it makes
the starting material; evolution never does.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import math
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax

from evojax_llm.models.config import ModelConfig
from evojax_llm.models.transformer import Transformer
from evojax_llm.models.transformer import init_params
from experiments.pocket import data


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Sizes and rates of one training run.

  Attributes:
    steps: optimiser steps.
    batch: examples a step (and expert).
    learning_rate: peak of the cosine schedule.
    warmup: linear warm-up steps.
    seed: of initialisation and data.
  """

  steps: int
  batch: int
  learning_rate: float
  warmup: int
  seed: int

  def optimiser(self, weight_decay: float) -> optax.GradientTransformation:
    """AdamW under a warm-up and cosine schedule, gradients clipped to 1."""
    schedule = optax.warmup_cosine_decay_schedule(
      0.0,
      self.learning_rate,
      min(self.warmup, self.steps - 1),
      self.steps,
      0.02 * self.learning_rate,
    )
    return optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(schedule, b2=0.98, weight_decay=weight_decay),
    )


def answer_loss(
  model: Transformer, variables: dict[str, Any], batch
) -> jax.Array:
  """Mean negative log-likelihood of the answer tokens of rows (B, T)."""
  tokens = batch['tokens']
  hidden, _ = model.apply(variables, tokens, batch['positions'])
  logits = model.apply(
    {'params': variables['params']}, hidden[:, :-1], method='unembed'
  )
  # Soft tokens of images are beyond the vocabulary, and would give NaN.
  labels = jnp.where(batch['answer'] > 0, tokens[:, 1:], 0)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(loss * batch['answer']) / jnp.sum(batch['answer'])


@functools.partial(jax.jit, static_argnames='config')
def exact_match(config: ModelConfig, params, batch) -> jax.Array:
  """Whether greedy decoding writes the whole answer, (B,) bool.

  Teacher forcing decides it: greedy decoding equals the gold text exactly
  when each gold token is the arg max after the gold tokens before it.
  """
  model = Transformer(config)
  hidden, _ = model.apply(
    {'params': params}, batch['tokens'], batch['positions']
  )
  logits = model.apply({'params': params}, hidden[:, :-1], method='unembed')
  right = jnp.argmax(logits, axis=-1) == batch['tokens'][:, 1:]
  return jnp.all(right | (batch['answer'] == 0.0), axis=-1)


def initial_params(config: ModelConfig, seed: int) -> dict[str, Any]:
  """Random parameters with the variance of each map's input kept."""
  params = init_params(config, jax.random.key(seed))

  def rescale(path, leaf):
    if path[-1].key != 'kernel':
      return leaf
    return leaf * (leaf.shape[-2] ** -0.5 / 0.02)

  return jax.tree_util.tree_map_with_path(rescale, params)


def _shared_out(size: int) -> NamedSharding:
  """A leading axis shared out among as many devices as divide it.

  Two virtual devices keep two cores busy where one leaves them waiting.
  """
  count = math.gcd(size, jax.device_count())
  devices = np.array(jax.devices()[:count])
  return NamedSharding(jax.sharding.Mesh(devices, ('i',)), PartitionSpec('i'))


def train_base(
  config: ModelConfig, mixture: data.Mixture, recipe: Recipe
) -> dict[str, Any]:
  """Trains all parameters on a mixture; returns the parameter tree."""
  start = initial_params(config, recipe.seed)
  (params,) = train_models(config, start, {'base': mixture}, recipe)
  return params


def train_models(
  config: ModelConfig,
  start: dict[str, Any],
  mixtures: Mapping[str, data.Mixture],
  recipe: Recipe,
) -> Iterator[dict[str, Any]]:
  """Trains all parameters from one start, on one mixture after another."""
  # Unrolled layers halve the time of gradients on a CPU.
  model = Transformer(config, unroll=config.num_layers)
  tx = recipe.optimiser(0.01)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, batch):
    loss, grads = jax.value_and_grad(
      lambda p: answer_loss(model, {'params': p}, batch)
    )(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  rows = _shared_out(recipe.batch)
  everywhere = NamedSharding(rows.mesh, PartitionSpec())
  start = jax.device_get(start)
  for name, mixture in mixtures.items():
    params = jax.device_put(start, everywhere)
    state = jax.jit(tx.init)(params)
    progress = Progress(name, recipe.steps)
    for i in range(recipe.steps):
      batch = data.rows(mixture.examples(recipe.batch))
      batch = jax.device_put(batch, rows)
      with jax.numpy_dtype_promotion('standard'):  # optax needs it.
        params, state, loss = step(params, state, batch)
      progress(i, loss)
    yield jax.device_get(params)


def initial_adapter(config: ModelConfig, rank: int, seed: int):
  """PEFT's initial factors: A Kaiming-uniform, B zero; (L, in, R), (L, R, out).

  All experts start from these same factors, as fine-tuning runs with one seed
  do; factors that start apart cannot be averaged.
  """
  key = jax.random.key(seed)
  tree: dict[str, Any] = {}
  shapes = config.linear_shapes()
  for i, ((block, name), (fan_in, fan_out)) in enumerate(shapes.items()):
    a = jax.random.uniform(
      jax.random.fold_in(key, i),
      (config.num_layers, fan_in, rank),
      jnp.float32,
      -(fan_in**-0.5),
      fan_in**-0.5,
    )
    b = jnp.zeros((config.num_layers, rank, fan_out), jnp.float32)
    tree.setdefault(block, {})[name] = {'a': a, 'b': b}
  return {'layers': tree}


def train_experts(
  config: ModelConfig,
  params,
  mixtures: list[data.Mixture],
  recipe: Recipe,
  rank: int,
  scale: float,
):
  """Trains one adapter per mixture, all at once.

  Args:
    config: of the base.
    params: of the base, not trained.
    mixtures: P of them.
    recipe: the same for all experts.
    rank: R.
    scale: alpha / R, multiplies B.

  Returns:
    Factors with a leading P axis, B unscaled.
  """
  # Unrolled layers halve the time of gradients on a CPU.
  model = Transformer(config, unroll=config.num_layers)
  tx = recipe.optimiser(0.0)

  def loss_of(factors, batch):
    lora = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf * scale if path[-1].key == 'b' else leaf, factors
    )
    return answer_loss(model, {'params': params, 'lora': lora}, batch)

  def one(factors, state, batch):
    loss, grads = jax.value_and_grad(loss_of)(factors, batch)
    updates, state = tx.update(grads, state, factors)
    return optax.apply_updates(factors, updates), state, loss

  step = jax.jit(jax.vmap(one), donate_argnums=(0, 1))
  first = initial_adapter(config, rank, recipe.seed)
  members = _shared_out(len(mixtures))
  factors = jax.device_put(
    jax.tree.map(lambda x: jnp.stack([x] * len(mixtures)), first), members
  )
  state = jax.device_put(jax.vmap(tx.init)(factors), members)
  progress = Progress('experts', recipe.steps)
  for i in range(recipe.steps):
    batches = [data.rows(m.examples(recipe.batch)) for m in mixtures]
    batch = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    batch = jax.device_put(batch, members)
    with jax.numpy_dtype_promotion('standard'):  # optax needs it.
      factors, state, loss = step(factors, state, batch)
    progress(i, loss)
  return jax.device_get(factors)


class Progress:
  """Logs a line about every ten seconds."""

  def __init__(self, what: str, steps: int, every: float = 10.0):
    self._what, self._steps, self._every = what, steps, every
    self._start = self._last = time.monotonic()

  def __call__(self, i: int, loss: jax.Array) -> None:
    """Tells that step `i` is done."""
    now = time.monotonic()
    if i + 1 < self._steps and now - self._last < self._every:
      return
    self._last = now
    left = (now - self._start) / (i + 1) * (self._steps - i - 1)
    logging.info(
      '%s: step %d of %d, loss %.3f, %.0f s left',
      self._what,
      i + 1,
      self._steps,
      float(np.mean(loss)),
      left,
    )
