"""How the generators of EvoGM learn to make winners of losers.

With winners w and losers l of an epoch, m rows each, and w' the mean of these
winners, the loss is

  cycle_scale (|R(F(l)) - l|^2 + |F(R(w)) - w|^2) + opt_scale |F(l) - w'|^2

where F is the forward and R the reverse generator and |.|^2 the mean over rows
and coordinates. A single generator has (1 + opt_scale) |F(l) - w'|^2 alone, as
in the released code.
"""

from typing import Any
from typing import NamedTuple

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

# Of Adam.
_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class Generator(nn.Module):
  """A perceptron of five hidden layers, with ReLU between and tanh at the end.

  Attributes:
    width: W; the hidden layers have W, 2 W, 2 W, 2 W, W neurons.
  """

  width: int

  @nn.compact
  def __call__(self, rows: jax.Array) -> jax.Array:
    """Maps rows (M, D) f32 to rows in [-1, 1]."""
    hidden = rows
    for factor in (1, 2, 2, 2, 1):
      hidden = nn.relu(nn.Dense(factor * self.width)(hidden))
    return jnp.tanh(nn.Dense(rows.shape[-1])(hidden))


@flax.struct.dataclass
class Learner:
  """Parameters of the generators and Adam's state over all of them.

  Leaves of `networks` are (2, ...) f32, the forward and the reverse one, or
  (1, ...) without the latter.
  """

  networks: Any
  adam: optax.OptState


class Pools(NamedTuple):
  """What the epochs of one training draw from.

  Attributes:
    rows: (C, D) f32.
    winners, losers: (C,) bool.
    count: () i32 m, rows that an epoch takes of each.
  """

  rows: jax.Array
  winners: jax.Array
  losers: jax.Array
  count: jax.Array


def start(
  key: jax.Array, generator: Generator, active: jax.Array, dual: bool
) -> Learner:
  """Returns new generators."""
  drawn = _networks(key, generator, active, 2 if dual else 1)
  return Learner(drawn, optax.scale_by_adam().init(drawn))


def propose(
  learner: Learner, generator: Generator, rows: jax.Array, active: jax.Array
) -> jax.Array:
  """Returns what the forward generator makes of rows (M, D)."""
  forward = jax.tree.map(lambda leaf: leaf[0], learner.networks)
  return generator.apply(forward, rows) * active


def train(
  key: jax.Array,
  learner: Learner,
  generator: Generator,
  pools: Pools,
  active: jax.Array,
  params: Any,
  *,
  batch: int,
  epochs: int,
) -> tuple[Learner, jax.Array]:
  """Takes one step of Adam in each epoch, on rows drawn without replacement.

  Args:
    key: of the draws.
    learner, generator: see `start`.
    pools: winners and losers; what is more than `count` of them is left out by
      chance, anew in every epoch.
    active: (D,) f32, 1 for coordinates in use, else 0.
    params: has learning_rate, cycle_scale and opt_scale, () f32.
    batch: at least `count`; rows beyond it have no weight.
    epochs: steps.

  Returns:
    The learner, and the cycle error () f32 of the last epoch; NaN without a
    reverse generator.
  """
  dual = jax.tree.leaves(learner.networks)[0].shape[0] == 2
  used = (jnp.arange(batch) < pools.count).astype(jnp.float32)[:, None]
  rows_used = pools.count.astype(jnp.float32)
  weight = used * active / (rows_used * jnp.sum(active))

  def apply(pair, rows):
    return jax.vmap(generator.apply)(pair, rows) * active

  def error(one, two):
    return jnp.sum(weight * jnp.square(one - two))

  def loss(pair, losers, winners):
    centre = jnp.sum(used * winners, axis=0) / rows_used
    if not dual:
      pull = error(apply(pair, losers[None])[0], centre)
      return (1.0 + params.opt_scale) * pull, jnp.float32(jnp.nan)
    rows = jnp.stack([losers, winners])
    made = apply(pair, rows)
    # Each of the two maps what the other has made.
    cycle = error(apply(pair, made[::-1]), rows[::-1])
    pull = error(made[0], centre)
    return params.cycle_scale * cycle + params.opt_scale * pull, cycle

  def draw(key):
    one, two = jax.random.split(key)
    return _draw(one, pools.losers, batch), _draw(two, pools.winners, batch)

  def epoch(learner, drawn):
    losers, winners = (pools.rows[indices] for indices in drawn)
    gradient, cycle = jax.grad(loss, has_aux=True)(
      learner.networks, losers, winners
    )
    return _step(learner, gradient, params.learning_rate), cycle

  drawn = jax.vmap(draw)(jax.random.split(key, epochs))
  learner, cycles = jax.lax.scan(epoch, learner, drawn)
  return learner, cycles[-1]


def _step(learner: Learner, gradient: Any, rate: jax.Array) -> Learner:
  """Takes a step of Adam, as optax does but for its order of products.

  Both corrections of bias are applied to numbers of the step, so that each
  parameter costs one root and one quotient and not one and three.
  """
  old = learner.adam
  count = optax.safe_increment(old.count)
  mu = jax.tree.map(lambda g, m: (1 - _B1) * g + _B1 * m, gradient, old.mu)
  nu = jax.tree.map(lambda g, v: (1 - _B2) * g * g + _B2 * v, gradient, old.nu)
  steps = count.astype(jnp.float32)
  rate = rate / (1.0 - _B1**steps)
  root = jax.lax.rsqrt(1.0 - _B2**steps)
  networks = jax.tree.map(
    lambda leaf, m, v: leaf - rate * m / (jnp.sqrt(v) * root + _EPS),
    learner.networks,
    mu,
    nu,
  )
  return Learner(networks, old._replace(count=count, mu=mu, nu=nu))


def _draw(key, pool, batch):
  """Indices (batch,) of a random order of the pool, then of others."""
  chance = jax.random.uniform(key, pool.shape)
  return jnp.argsort(jnp.where(pool, chance, 2.0))[:batch]


def _networks(
  key: jax.Array, generator: Generator, active: jax.Array, count: int
) -> Any:
  """Draws the parameters of some generators, leaves (count, ...) f32.

  All layers begin as PyTorch's do, U(-1, 1) / sqrt(inputs). Of the D inputs of
  the first one only those count that are 1 in `active` (D,) f32; the others,
  0, are always zero.
  """
  shapes = jax.eval_shape(generator.init, key, active[None])
  leaves, structure = jax.tree.flatten(shapes)
  # One draw for all layers compiles in a fraction of the time of many.
  numbers = sum(leaf.size for leaf in leaves)
  chances = jax.random.uniform(key, (count, numbers), jnp.float32, -1.0, 1.0)
  drawn, offset = [], 0
  for leaf in leaves:
    part = chances[:, offset : offset + leaf.size]
    drawn.append(part.reshape(count, *leaf.shape))
    offset += leaf.size

  def scale(path, leaf):
    layer = shapes['params'][path[1].key]
    inputs = jnp.float32(layer['kernel'].shape[0])
    if path[1].key == 'Dense_0':
      inputs = jnp.sum(active)
    return leaf * jax.lax.rsqrt(inputs)

  drawn = jax.tree.unflatten(structure, drawn)
  return jax.tree.map_with_path(scale, drawn)
