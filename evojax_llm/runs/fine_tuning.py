"""The baseline that learns: a LoRA adapter trained on the items of the search.

It begins as an adapter of the base that changes nothing, and is trained on the
gold answers of four fifths of the dev items. The others, a seeded fifth of each
task, say when to stop and which of its states is kept. It costs tokens and no
evaluations: three times what its steps read, as they go forward and back.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
import shutil
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.engine import gradient_plan
from evojax_llm.engine import gradient_rows
from evojax_llm.engine import groups
from evojax_llm.engine import plan as planning
from evojax_llm.engine.gradient_member import HYPER
from evojax_llm.engine.gradient_member import Learner
from evojax_llm.engine.gradient_rows import Rows
from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Space
from evojax_llm.models import peft
from evojax_llm.models import soft_tokens
from evojax_llm.models.expression import LowRank
from evojax_llm.population import leaves
from evojax_llm.population import sharding
from evojax_llm.runs import record
from evojax_llm.runs import report
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.preparation import Prepared
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.tasks import training_data
from evojax_llm.tasks.task import ranked
from evojax_llm.tasks.training_data import EncodedRow

FOLDER = 'fine_tuned'
# Of the items of a task, so many are for every one that is held.
_HELD = 5
# At most, as they are read again and again.
_MOST_HELD = 200
# Times that what is held is read, unless epochs are shorter.
_LOOKS = 10
_WHOLE = jax.sharding.PartitionSpec()


class Tuned(NamedTuple):
  """What has learnt."""

  adapter: LowRank  # b scaled
  detail: str  # for the table
  tokens: int


def wanted(config: RunConfig) -> bool:
  """Returns whether a configuration wants the baseline."""
  return bool(config.fine_tuning.steps)


def tune(run: record.RunFolder, prepared: Prepared) -> Tuned | str:
  """Trains the adapter and writes it to fine_tuned/, or says why there is none.

  Raises:
    UserError: the configuration cannot be.
  """
  evaluator, space = prepared.evaluator, prepared.setup.experts
  rows, held, without = _rows(prepared)
  if not rows or not held:
    return (
      f'left out: {", ".join(without) or "the tasks"} give too few texts to '
      'learn from'
    )
  settings = setup_lib.fine_tuning(
    prepared.config, getattr(space, 'rank', None)
  )
  learner = Learner(
    Expressed(space.model()),
    settings,
    gradient_rows.pack([*rows, *held]).reads,
    evaluator.runtime.dtype,
    _modules(space),
  )
  if not _is_member(space, learner):
    return f'left out: no member of {prepared.config.space} is an adapter'
  try:
    training = _Training(prepared, learner, rows, held)
  except planning.MemoryPlanError as error:
    return f'left out: {error}'
  adapter, steps, tokens = training.run(prepared.config.fine_tuning.patience)
  detail = f'rank {settings.rank}, {steps} steps, {tokens:,} tokens'
  detail += f', without {", ".join(without)}' if without else ''
  folder = run.path / FOLDER
  shutil.rmtree(folder, ignore_errors=True)
  scale = jax.tree.map(
    lambda pair: np.ones(len(pair['a']), np.float32),
    adapter.factors,
    is_leaf=leaves.is_factors,
  )
  adapter_genomes.save(folder, adapter.factors, scale, space.model())
  return Tuned(adapter, detail, tokens)


def read_row(
  path: pathlib.Path, rows: Sequence[Mapping[str, Any]], space: Space
) -> Any:
  """Returns what `read` does where a run has this row, else None."""
  there = any(row['name'] == report.FINE_TUNED for row in rows)
  return read(path, space) if there else None


def read(path: pathlib.Path, space: Space) -> Any:
  """Returns the adapter of a run as a genome (1, ...) of its experts' space.

  Raises:
    ModelError: the folder is damaged or not there.
  """
  found = peft.load_adapters([path / FOLDER], space.model().config)
  factors = adapter_genomes.scaled(found.factors, found.scale)
  one = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), factors)
  genome = space.adapted(LowRank(one))
  return jax.tree.map(lambda leaf: np.asarray(leaf)[None], genome)


def _rows(
  prepared: Prepared,
) -> tuple[list[EncodedRow], list[EncodedRow], list[str]]:
  """Rows to learn from, those that are held, and tasks without any."""
  evaluator, space = prepared.evaluator, prepared.setup.experts
  seed = prepared.config.fine_tuning.seed
  rows, held, without = [], [], []
  for task, items in zip(evaluator.tasks, evaluator.items('dev'), strict=True):
    order = ranked(items, f'{seed}\0{task.name}\0held')
    apart = set(order[: min(_MOST_HELD, round(len(items) / _HELD))])
    how = evaluator.tokenizer, evaluator.chat, evaluator.max_length(space)
    parts = [
      training_data.encode_task(
        task,
        [items[i] for i in range(len(items)) if (i in apart) == is_held],
        *how,
      )
      for is_held in (False, True)
    ]
    if not parts[0]:
      without.append(task.name)
    rows += parts[0]
    held += parts[1]
  return rows, held, without


def _modules(space: Space) -> dict[tuple[str, ...], tuple[int, int]] | None:
  """The linear maps that the experts are adapters of; None for all."""
  found = jax.tree.leaves_with_path(
    jax.eval_shape(space.base).get('layers', {}), is_leaf=leaves.is_factors
  )
  return {
    tuple(key.key for key in path): (node['a'].shape[-2], node['b'].shape[-1])
    for path, node in found
    if leaves.is_factors(node)
  } or None


def _is_member(space: Space, learner: Learner) -> bool:
  """Whether a space has a genome for the adapter."""
  hyper = {name: jnp.float32(1) for name in HYPER}

  def make():
    begun = learner.begin(LowRank({}), jax.random.key(0), hyper)
    return space.adapted(LowRank(begun))

  return jax.eval_shape(make) is not None


class _Training:
  """One adapter that learns until the held rows say that it is enough.

  Raises:
    MemoryPlanError: not even one row fits.
  """

  def __init__(
    self,
    prepared: Prepared,
    learner: Learner,
    rows: Sequence[EncodedRow],
    held: Sequence[EncodedRow],
  ):
    self._runtime = runtime = prepared.evaluator.runtime
    self._learner = learner
    pad_id = prepared.evaluator.tokenizer.pad_id
    found = prepared.evaluator.image_tables.take([rows, held])
    (rows, held), soft = found
    both = gradient_rows.pack([*rows, *held], pad_id)
    space = prepared.setup.experts
    self._params = soft_tokens.beside(runtime.params(space), soft)
    plan = gradient_plan.make_plan(
      learner,
      runtime,
      LowRank({}),
      both,
      fixed=groups.num_bytes((space.model().params, soft)),
      members=1,
      budget=setup_lib.memory_budget(prepared.config),
    )
    logging.info('%s: %s', report.FINE_TUNED, plan.describe())
    batch, self._count = learner.settings.batch, len(rows)
    self._rows = both.take(np.arange(len(rows)))
    # Batches of what is held; rows that fill them up have nothing to be read.
    index = np.arange(-(-len(held) // batch) * batch)
    own = both.take(len(rows) + np.minimum(index, len(held) - 1))
    end = np.where(index[:, None] < len(held), own.end, own.start)
    self._held = self._placed(_in_batches(own.replace(end=end), batch))
    self._held_tokens = int(own.end[: len(held)].sum())
    settings = learner.settings
    self._hyper = self._placed(
      {name: np.float32(getattr(settings, name)) for name in HYPER}
    )
    # Steps between two looks at what is held: an epoch, or a tenth of all.
    looks = -(-settings.steps // _LOOKS)
    self._every = min(settings.steps, looks, -(-len(rows) // batch))
    self._seed = prepared.config.fine_tuning.seed

  def run(self, patience: int) -> tuple[LowRank, int, int]:
    """Returns the best adapter, its steps, and the tokens of all of them."""
    ledger, every = self._runtime.ledger, self._every
    trained, state = self._begin()
    best, least, best_steps, waited, tokens = trained, np.inf, 0, 0, 0
    rounds = -(-self._learner.settings.steps // every)
    for number in range(rounds + 1):
      batches, read = self._batches(number)
      arguments = self._params, trained, state, self._hyper, batches
      program = self._runtime.compiled(
        ('fine-tuning', self._learner.name),
        self._round,
        *arguments,
        self._held,
        out_specs=_WHOLE,
      )
      with ledger.time('gradient'):
        after, state, loss = program(*arguments, self._held)
        loss = float(loss)
      ledger.prompt_tokens += self._held_tokens
      tokens += self._held_tokens
      waited += 1
      if loss < least:
        best, least, best_steps, waited = trained, loss, number * every, 0
      if number == rounds or waited >= patience:
        break
      ledger.gradient_tokens += 3 * read
      tokens += 3 * read
      trained = after
    adapter = self._learner.adapter(sharding.to_host(best), self._hyper)
    # The last round may go on behind the last step, with a rate of 0.
    best_steps = min(best_steps, self._learner.settings.steps)
    return sharding.to_host(adapter), best_steps, tokens

  def _begin(self):
    def begin(hyper):
      key = jax.random.key(self._seed)
      trained = self._learner.begin(LowRank({}), key, hyper)
      return trained, self._learner.start_state(trained, hyper)

    name = 'fine-tuning begins', self._seed, self._learner.name
    program = self._runtime.compiled(name, begin, self._hyper, out_specs=_WHOLE)
    return program(self._hyper)

  def _round(self, params, trained, state, hyper, batches, held):
    """The steps of a round, and the loss () of what is held before them."""
    learner, base = self._learner, LowRank({})

    def one(batch):
      found, counts = learner.logprobs(params, base, trained, hyper, batch)
      return jnp.sum(jnp.where(counts, found, 0.0)), jnp.sum(counts)

    total, count = jax.lax.map(one, held)
    loss = -jnp.sum(total) / jnp.sum(count).astype(jnp.float32)
    trained, state, _ = learner.learn(
      params, base, trained, state, hyper, batches
    )
    return trained, state, loss

  def _batches(self, number: int) -> tuple[Rows, int]:
    """The batches of a round, and the tokens in them."""
    batch = self._learner.settings.batch
    order = np.random.default_rng((self._seed, number)).permutation(self._count)
    rows = self._rows.take(np.resize(order, self._every * batch))
    return self._placed(_in_batches(rows, batch)), int(rows.end.sum())

  def _placed(self, tree: Any) -> Any:
    return sharding.place(tree, sharding.replicated(self._runtime.mesh))


def _in_batches(rows: Rows, batch: int) -> Rows:
  """Splits N rows into leaves (C, batch, ...)."""
  return jax.tree.map(
    lambda leaf: leaf.reshape(-1, batch, *leaf.shape[1:]), rows
  )
