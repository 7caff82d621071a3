"""What all programs of an engine share: devices, types, counts, parameters."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine.ledger import Ledger
from evojax_llm.engine.sampling import Sampling
from evojax_llm.genomes.space import Expressing
from evojax_llm.models import quantize
from evojax_llm.population import sharding


class Runtime:
  """The devices of an engine and what is kept on them.

  Args:
    devices: those to spread members over; all by default.
    dtype: type of activations and cache.
    base_dtype: 'int8' for shared kernels of eight bits (see
      `models.quantize`); None to take the parameters as they are.
    sampling: how tokens of generated answers are chosen; greedy by default.
    ledger: counts; a new one by default.

  Attributes:
    mesh: devices that members are spread over.
  """

  def __init__(
    self,
    *,
    devices: Sequence[jax.Device] | None = None,
    dtype: Any = jnp.float32,
    base_dtype: str | None = None,
    sampling: Sampling | None = None,
    ledger: Ledger | None = None,
  ):
    if base_dtype not in (None, 'int8'):
      raise ValueError(
        f"base_dtype is {base_dtype!r}; expected None or 'int8'."
      )
    self.mesh = sharding.population_mesh(devices)
    self.dtype, self.base_dtype = dtype, base_dtype
    self.ledger = Ledger() if ledger is None else ledger
    self.sampling = sampling
    # Keyed by identity; what is keyed is kept, so that the identity stays its.
    self._kept: dict[tuple[str, int], tuple[Any, Any]] = {}

  def params(self, space: Expressing) -> Any:
    """Returns the parameters that members of a space share, on all devices.

    Every array is placed once, whatever spaces it is part of.
    """
    return self._once('tree', space.model().params, self._place)

  def _place(self, params: Any) -> Any:
    if self.base_dtype == 'int8':
      params = quantize.quantize(
        params, lambda leaf: self._once('int8', leaf, quantize.round_kernel)
      )
    whole = sharding.replicated(self.mesh)
    return jax.tree.map(
      lambda leaf: self._once('leaf', leaf, lambda x: jax.device_put(x, whole)),
      params,
    )

  def _once(self, what: str, key: Any, make: Callable[[Any], Any]) -> Any:
    """Returns make(key), made once for this object."""
    if (what, id(key)) not in self._kept:
      self._kept[what, id(key)] = (key, make(key))
    return self._kept[what, id(key)][1]
