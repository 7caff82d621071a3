"""Trains an adapter by the engine's gradient steps; goes on where it stopped.

What is trained, the optimiser's state and the losses are saved in between; the
rows of a step and its learning rate follow from its number, so that a training
that was stopped ends with the same bits.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import gradient_rows
from evojax_llm.engine.gradient_member import HYPER
from evojax_llm.engine.gradient_member import Learner
from evojax_llm.engine.gradient_member import Settings
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes import adapters
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.models.expression import LowRank
from evojax_llm.population.leaves import is_factors
from evojax_llm.tasks.training_data import EncodedRow

_SAY_SECONDS = 10.0
_WARMUP = 0.1


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How experts learn.

  Attributes:
    rank, lr: of the adapters; alpha is twice the rank.
    step_tokens: positions of a step, padding included.
    tokens: positions of all steps of an expert at most.
    epochs: times that an expert reads its rows at most.
    max_length: longest row in tokens.
    lengths: to which rows are padded, the last of them `max_length`.
    reads: tokens to learn to which texts are padded; the length of a row where
      a text has more. A program is compiled for each pair of both.
    seed: of the first factors, which are those of all experts, and of orders.
  """

  rank: int
  lr: float
  step_tokens: int
  tokens: int
  epochs: int
  max_length: int
  lengths: tuple[int, ...]
  reads: tuple[int, ...]
  seed: int

  def learner(self, model: Model, reads: int, dtype: Any) -> Learner:
    """Returns what learns texts of which `reads` tokens are learnt at most."""
    settings = Settings(
      train='adapter', lr=self.lr, rank=self.rank, alpha=2 * self.rank, clip=1.0
    )
    return Learner(Expressed(model), settings, reads, dtype)


@dataclasses.dataclass(frozen=True)
class Lesson:
  """Rows of an expert.

  Attributes:
    rows: (N, 1, T), packed.
    steps, batch: rows of a step, and steps that are planned.
    reads: tokens of a text that are learnt at most, rounded up.
    left_out: rows that are longer than most.
  """

  rows: gradient_rows.Rows
  steps: int
  batch: int
  reads: int
  left_out: int


def lesson(
  rows: Sequence[EncodedRow], recipe: Recipe, pad_id: int
) -> Lesson | None:
  """Packs the rows of an expert; None where none is short enough.

  The length is the least of the recipe's that holds 95 of 100 rows.
  """
  sizes = np.array([len(r.prompt) + len(r.completions[0]) for r in rows])
  if not (sizes <= recipe.max_length).any():
    return None
  fitting = sizes[sizes <= recipe.max_length]
  wanted = np.quantile(fitting, 0.95)
  length = next(n for n in recipe.lengths if n >= wanted)
  kept = [row for row, size in zip(rows, sizes, strict=True) if size <= length]
  packed = gradient_rows.pack(kept, pad_id)
  tokens = np.full((len(kept), 1, length), pad_id, np.int32)
  tokens[..., : packed.tokens.shape[-1]] = packed.tokens[..., :length]
  batch = max(1, min(len(kept), recipe.step_tokens // length))
  steps = min(
    -(-recipe.epochs * len(kept) // batch), recipe.tokens // (batch * length)
  )
  reads = next((n for n in recipe.reads if n >= packed.reads), length)
  return Lesson(
    packed.replace(tokens=tokens),
    max(1, steps),
    batch,
    reads,
    len(rows) - len(kept),
  )


class Trainer:
  """Trains adapters of one model, one after another."""

  def __init__(self, model: Model, recipe: Recipe, dtype: Any):
    self._model, self._recipe = model, recipe
    # Of one device: an adapter is one member.
    self._runtime = Runtime(devices=jax.devices()[:1], dtype=dtype)
    self._params = self._runtime.params(Expressed(model))

  def train(
    self,
    name: str,
    number: int,
    lesson: Lesson,
    state: pathlib.Path,
    *,
    seconds: float,
    save_seconds: float,
    say: Callable[[str], None],
  ) -> tuple[Any, dict[str, Any]]:
    """Trains an expert.

    Args:
      name: of the expert, for progress.
      number: of the expert, which its order of rows depends on.
      lesson: its rows.
      state: file in which a training is kept that is not at its end.
      seconds: that it may take; the rate falls with the steps, or with the
        time where that ends sooner.
      save_seconds: from one writing of `state` to the next.
      say: takes lines of progress.

    Returns:
      Factors (L, in, R) and (L, R, out), b not scaled, and what there is to be
      said of the training.
    """
    learner = self._recipe.learner(
      self._model, lesson.reads, self._runtime.dtype
    )
    order = _order((self._recipe.seed, number), lesson)
    hyper = _hyper(learner.settings)
    trained, optimizer = self._begin(learner, hyper)
    losses: list[float] = []
    spent = 0.0
    if state.is_file():
      (trained, optimizer), losses, spent = _restore(
        state, (trained, optimizer)
      )
      say(f'{name}: goes on at step {len(losses)} of {lesson.steps}')
    program = self._runtime.compiled(
      ('expert', learner.name),
      learner_step(learner),
      self._params,
      trained,
      optimizer,
      hyper,
      _batch(lesson, order, 0),
      donate=(1, 2),
    )
    last_said = last_saved = start = time.monotonic()
    first = len(losses)
    while len(losses) < lesson.steps and spent < seconds:
      step = len(losses)
      share = max(step / lesson.steps, spent / seconds)
      rise = min(1.0, (step + 1) / max(1.0, _WARMUP * lesson.steps))
      hyper['lr'] = np.float32(self._recipe.lr * rise * (1 - share))
      trained, optimizer, loss = program(
        self._params, trained, optimizer, hyper, _batch(lesson, order, step)
      )
      losses.append(float(loss[0]))
      now = time.monotonic()
      spent += now - start
      start = now
      ended = len(losses) == lesson.steps
      if now - last_saved >= save_seconds and not ended:
        _save(state, (trained, optimizer), losses, spent)
        last_saved = now
      if now - last_said >= _SAY_SECONDS or ended or len(losses) == first + 1:
        say(_progress(name, lesson, losses, spent))
        last_said = now
    tokens = int(lesson.rows.end[order[: len(losses)]].sum())
    said = {
      'rows': len(lesson.rows.end),
      'longer rows left out': lesson.left_out,
      'length': lesson.rows.tokens.shape[-1],
      'batch': lesson.batch,
      'steps': len(losses),
      'steps planned': lesson.steps,
      'tokens': tokens,
      'seconds': round(spent, 2),
      'first loss': _mean(losses[: max(1, len(losses) // 10)]),
      'last loss': _mean(losses[-max(1, len(losses) // 10) :]),
      'losses': [round(loss, 4) for loss in losses],
    }
    return jax.device_get(trained), said

  def save(self, folder: pathlib.Path, factors: Any) -> None:
    """Writes factors as a PEFT adapter."""
    scale = jax.tree.map(
      lambda pair: np.full(len(pair['a']), 2.0, np.float32),
      factors,
      is_leaf=is_factors,
    )
    adapters.save(folder, factors, scale, self._model)

  def _begin(self, learner: Learner, hyper: Any) -> tuple[Any, Any]:
    def begin(hyper):
      key = jax.random.key(self._recipe.seed)
      trained = learner.begin(LowRank({}), key, hyper)
      return trained, learner.start_state(trained, hyper)

    program = self._runtime.compiled('expert begins', begin, hyper)
    return program(hyper)


def learner_step(learner: Learner) -> Callable[..., Any]:
  """Returns a step of an adapter beside a base that is given."""

  def step(params, trained, state, hyper, batch):
    base = LowRank({})
    return learner.learn(params, base, trained, state, hyper, batch)

  return step


def _hyper(settings: Settings) -> dict[str, np.ndarray]:
  return {name: np.float32(getattr(settings, name)) for name in HYPER}


def _order(seed: tuple[int, ...], lesson: Lesson) -> np.ndarray:
  """Rows (steps, batch) of all steps: one epoch after another."""
  count = len(lesson.rows.end)
  needed = lesson.steps * lesson.batch
  epochs = [
    np.random.default_rng((*seed, epoch)).permutation(count)
    for epoch in range(-(-needed // count))
  ]
  return np.concatenate(epochs)[:needed].reshape(lesson.steps, lesson.batch)


def _batch(lesson: Lesson, order: np.ndarray, step: int) -> gradient_rows.Rows:
  rows = lesson.rows.take(order[step])
  return jax.tree.map(lambda leaf: leaf[None], rows)


def _progress(
  name: str, lesson: Lesson, losses: Sequence[float], spent: float
) -> str:
  done = len(losses)
  rate = done * lesson.batch * lesson.rows.tokens.shape[-1] / max(spent, 1e-9)
  left = spent / done * (lesson.steps - done)
  return (
    f'{name}: step {done} of {lesson.steps}, loss {_mean(losses[-5:]):.3f}, '
    f'{rate:,.0f} tokens/s, {left:.0f} s left'
  )


def _mean(losses: Sequence[float]) -> float:
  return round(float(np.mean(losses)), 4) if losses else float('nan')


def _save(
  path: pathlib.Path, tree: Any, losses: Sequence[float], spent: float
) -> None:
  """Writes a training that is there whole or not at all."""
  arrays = {
    f'leaf_{i}': leaf
    for i, leaf in enumerate(jax.tree.leaves(jax.device_get(tree)))
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}')
  with open(partial, 'wb') as file:
    np.savez(file, losses=np.asarray(losses), spent=spent, **arrays)
  partial.replace(path)


def _restore(path: pathlib.Path, like: Any) -> tuple[Any, list[float], float]:
  """Reads what `_save` wrote."""
  with np.load(path, allow_pickle=False) as saved:
    number = range(len(jax.tree.leaves(like)))
    tree = jax.tree.unflatten(
      jax.tree.structure(like),
      [jnp.asarray(saved[f'leaf_{i}']) for i in number],
    )
    return tree, saved['losses'].tolist(), float(saved['spent'])
