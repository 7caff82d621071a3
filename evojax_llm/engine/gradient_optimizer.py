"""Any optimiser of optax by its name, with a rate for each member."""

from collections.abc import Mapping
import difflib
import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ('constant', 'linear', 'cosine')


def make_optimizer(
  name: str,
  options: Mapping[str, Any],
  rate: Any,
  clip: float | None = None,
) -> optax.GradientTransformation:
  """Makes an optimiser.

  Args:
    name: of a function of optax that takes a learning rate, such as adamw.
    options: its other arguments.
    rate: learning rate: a number, () f32, or a function of the step.
    clip: largest norm of a gradient; None for any.

  Raises:
    ValueError: there is no such optimiser, or it cannot be made of these.
  """
  make = getattr(optax, name, None)
  if name not in _known():
    near = difflib.get_close_matches(name, _known(), n=1)
    meant = f' Did you mean {near[0]}?' if near else ''
    raise ValueError(
      f'Got optimizer {name!r}; expected one of optax that takes a learning '
      f'rate, such as adamw, adam, sgd, lion or adafactor.{meant}'
    )
  allowed = set(inspect.signature(make).parameters) - {'learning_rate'}
  if unknown := sorted(options.keys() - allowed):
    raise ValueError(
      f'Got option {unknown[0]!r} for optimizer {name}; expected some of '
      f'{", ".join(sorted(allowed))}.'
    )
  try:
    made = make(learning_rate=rate, **options)
    made = optax.chain(optax.clip_by_global_norm(clip), made) if clip else made
    # Some need the loss as well, or a second gradient.
    leaf = {'a': jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    with jax.numpy_dtype_promotion('standard'):
      state = jax.eval_shape(made.init, leaf)
      jax.eval_shape(made.update, leaf, state, leaf)
  except (TypeError, ValueError, AttributeError) as error:
    given = f' with {dict(options)}' if options else ''
    raise ValueError(
      f'Got optimizer {name}{given}, which optax does not make or cannot move '
      f'by a gradient alone: {error}'
    ) from error
  return made


@functools.cache
def _known() -> tuple[str, ...]:
  names = []
  for name in dir(optax):
    function = getattr(optax, name)
    if inspect.isfunction(function) and not name.startswith('_'):
      if 'learning_rate' in inspect.signature(function).parameters:
        names.append(name)
  return tuple(names)


def schedule(name: str, steps: int, warmup: float) -> Any:
  """Returns what the rate is multiplied by at a step, as transformers have it.

  It rises from 0 over the first `warmup` share of the steps, then stays, or
  falls to 0 along a line or half a cosine.
  """
  rising = math.ceil(warmup * steps)
  falling = max(1, steps - rising)

  def factor(step: jax.Array) -> jax.Array:
    step = jnp.asarray(step).astype(jnp.float32)
    done = jnp.clip((step - rising) / falling, 0.0, 1.0)
    after = {
      'constant': jnp.float32(1.0),
      'linear': 1.0 - done,
      'cosine': 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
    }[name]
    return jnp.where(step < rising, step / max(1, rising), after)

  return factor
