"""How one member learns: its trained arrays, its loss, and what is made of it.

Either the numbers of the genome itself are trained, in f32, or a fresh adapter
beside a whole model, which is folded into it at the end. Everything else is
frozen: no gradient is taken with respect to it.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from evojax_llm.engine import gradient_losses as losses
from evojax_llm.engine import gradient_optimizer
from evojax_llm.engine import gradient_rows
from evojax_llm.engine.gradient_rows import Rows
from evojax_llm.genomes.space import Expressing
from evojax_llm.models import expression
from evojax_llm.models.model_files import put
from evojax_llm.models.transformer import Transformer
from evojax_llm.options import declared
from evojax_llm.options import option

# What may differ from member to member.
HYPER = ('lr', 'beta', 'rank', 'alpha')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How members learn.

  Those of HYPER are defaults; a member may have its own.
  """

  loss: str = option('sft', 'what is minimised', choices=losses.LOSSES)
  steps: int = option(10, 'steps of a member', low=1)
  batch: int = option(8, 'rows of a step', low=1)
  rows: int | None = option(
    None, 'rows that a member draws, and then repeats', low=1, kind=int
  )
  optimizer: str = option('adamw', 'of optax')
  optimizer_options: dict[str, Any] = option({}, 'its arguments by name')
  schedule: str = option(
    'constant',
    'of the learning rate',
    choices=gradient_optimizer.SCHEDULES,
  )
  warmup: float = option(
    0.0, 'share of the steps in which the rate rises', low=0, high=1
  )
  clip: float | None = option(None, 'largest norm of a gradient', low=0)
  train: str = option(
    'member',
    "the member's own numbers, or an adapter that is folded into its weights",
    choices=('member', 'adapter'),
  )
  lr: float = option(1e-4, 'learning rate', low=0)
  beta: float = option(0.1, 'of dpo and kto_pair', low=0)
  rank: int = option(8, 'of an adapter, the largest of all members', low=1)
  alpha: float = option(16.0, 'of an adapter, scaled by alpha / rank', low=0)

  def __post_init__(self):
    for name, known in declared(type(self)).items():
      known.check(getattr(self, name))
    # Refuses what cannot be made.
    self.optimizer_for(1.0)

  def optimizer_for(self, lr: Any) -> optax.GradientTransformation:
    """Returns the optimiser of a member whose rate is () f32."""
    shape = gradient_optimizer.schedule(self.schedule, self.steps, self.warmup)
    return gradient_optimizer.make_optimizer(
      self.optimizer,
      self.optimizer_options,
      lambda step: lr * shape(step),
      self.clip,
    )


class Learner:
  """The pure functions of one member; all may be mapped over members.

  `trained` is what `begin` returns. Trees of hyperparameters have () f32 leaves
  by the names of HYPER.

  Raises:
    ValueError: members of this space cannot learn in this way.
  """

  def __init__(
    self,
    space: Expressing,
    settings: Settings,
    reads: int,
    dtype: Any,
    modules: Mapping[tuple[str, str], tuple[int, int]] | None = None,
  ):
    """Makes the functions.

    Args:
      space: of the members.
      settings: how they learn.
      reads: most tokens of a text that are learnt.
      dtype: of activations.
      modules: (in, out) of the linear maps that an adapter adds to, by block
        and name; all by default.
    """
    if not space.learns:
      raise ValueError(
        'Got gradient steps for members that are recipes or paths; expected '
        'adapters, gates or weights, whose numbers a gradient can move.'
      )
    self.config = space.model().config
    self.settings, self.reads, self._space = settings, reads, space
    self._modules = modules or self.config.linear_shapes()
    self._model = Transformer(self.config, dtype, remat=True)
    # Of programs that differ in nothing else.
    self.name = (self._model, repr(settings), reads, tuple(self._modules))

  def begin(self, genome: Any, key: jax.Array, hyper: Any) -> Any:
    """Returns what is trained of a member, f32.

    An adapter begins as PEFT's: U(-1, 1) / sqrt(inputs) and zeros; it has the
    largest rank of all, of which the first `rank` columns can move.
    """
    if self.settings.train == 'member':
      return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), genome)
    widest = self.settings.rank
    column = jnp.arange(widest).astype(jnp.float32)
    used = (column < hyper['rank']).astype(jnp.float32)
    factors: dict[str, Any] = {}
    for number, (module, shape) in enumerate(self._modules.items()):
      layers = len(self.config.module_layers(module))
      first = jax.random.uniform(
        jax.random.fold_in(key, number),
        (layers, shape[0], widest),
        jnp.float32,
        -1.0,
        1.0,
      )
      factors_of = {
        'a': first * used / jnp.sqrt(jnp.float32(shape[0])),
        'b': jnp.zeros((layers, widest, shape[1]), jnp.float32),
      }
      put(factors, module, factors_of)
    return {'layers': factors}

  def finish(self, genome: Any, trained: Any, hyper: Any) -> Any:
    """Returns the genome of a member that has learnt, in the types of it."""
    if self.settings.train == 'adapter':
      whole = self._space.express(genome).params
      trained = expression.fold(whole, self.adapter(trained, hyper))
      trained = jax.tree.unflatten(
        jax.tree.structure(genome), jax.tree.leaves(trained)
      )
    return jax.tree.map(lambda new, old: new.astype(old.dtype), trained, genome)

  def adapter(self, trained: Any, hyper: Any) -> expression.LowRank:
    """Returns the adapter that is trained, b scaled by alpha / rank."""
    scale = hyper['alpha'] / hyper['rank']

    def scaled(path, leaf):
      return leaf * scale if path[-1].key == 'b' else leaf

    return expression.LowRank(jax.tree.map_with_path(scaled, trained))

  def _variables(self, params, genome, trained, hyper):
    if self.settings.train == 'member':
      return expression.variables(params, self._space.express(trained))
    frozen = expression.variables(params, self._space.express(genome))
    return {**frozen, 'lora': self.adapter(trained, hyper).factors}

  def logprobs(
    self, params: Any, genome: Any, trained: Any, hyper: Any, rows: Rows
  ) -> tuple[jax.Array, jax.Array]:
    """Returns log-probabilities of the tokens that are learnt.

    Args:
      params: that members share.
      genome, trained, hyper: of the member.
      rows: B rows of S texts.

    Returns:
      (B S, Q) f32, and bool of them which count.
    """
    variables = self._variables(params, genome, trained, hyper)
    tokens, positions = gradient_rows.model_inputs(rows)
    hidden, _ = self._model.apply(variables, tokens, positions)
    column, target, counts = gradient_rows.targets(rows, self.reads)
    read = jnp.take_along_axis(hidden, column[..., None], axis=1)
    own = {'params': variables['params']}
    logprobs = losses.token_logprobs(
      lambda hidden: self._model.apply(own, hidden, method='unembed'),
      read.reshape(-1, read.shape[-1]),
      target.reshape(-1),
      counts.reshape(-1),
    )
    return logprobs.reshape(target.shape), counts

  def text_logprobs(self, *arguments: Any) -> jax.Array:
    """Returns sums (B, S) f32 over completions, of what `logprobs` takes."""
    logprobs, counts = self.logprobs(*arguments)
    summed = jnp.sum(jnp.where(counts, logprobs, 0.0), axis=-1)
    return summed.reshape(arguments[-1].end.shape)

  def loss(
    self,
    trained: Any,
    params: Any,
    genome: Any,
    hyper: Any,
    rows: Rows,
    reference: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the loss () of a batch; `reference` (B, 2) is that of pairs."""
    arguments = params, genome, trained, hyper, rows
    if reference is None:
      return losses.sft(*self.logprobs(*arguments))
    own = self.text_logprobs(*arguments)
    return losses.of_pairs(self.settings.loss, own, reference, hyper['beta'])

  def learn(
    self,
    params: Any,
    genome: Any,
    trained: Any,
    state: Any,
    hyper: Any,
    batches: Rows,
    reference: jax.Array | None = None,
  ) -> tuple[Any, Any, jax.Array]:
    """Takes a step for each of C batches.

    Args:
      params, genome, trained, hyper: see `logprobs`.
      state: of the optimiser.
      batches: leaves (C, B, ...).
      reference: (C, B, 2), of pairs.

    Returns:
      What is trained, the state, and the losses (C,) before each step.
    """
    optimizer = self.settings.optimizer_for(hyper['lr'])

    def step(carry, batch):
      trained, state = carry
      loss, gradient = jax.value_and_grad(self.loss)(
        trained, params, genome, hyper, *batch
      )
      with jax.numpy_dtype_promotion('standard'):
        updates, state = optimizer.update(gradient, state, trained)
        trained = optax.apply_updates(trained, updates)
      return (trained, state), loss

    read = (batches,) if reference is None else (batches, reference)
    (trained, state), found = jax.lax.scan(step, (trained, state), read)
    return trained, state, found

  def start_state(self, trained: Any, hyper: Any) -> Any:
    """Returns the optimiser's state before the first step."""
    with jax.numpy_dtype_promotion('standard'):
      return self.settings.optimizer_for(hyper['lr']).init(trained)
