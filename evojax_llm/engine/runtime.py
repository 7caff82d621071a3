"""What all programs of an engine share: devices, types, programs, counts."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
import time
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm.engine.ledger import Ledger
from evojax_llm.engine.sampling import Sampling
from evojax_llm.genomes.space import Expressing
from evojax_llm.models import quantize
from evojax_llm.models.errors import ModelError
from evojax_llm.population import sharding


class Runtime:
  """The devices of an engine, and what is compiled and kept for them.

  Args:
    devices: those to spread members over; all by default.
    dtype: type of activations and cache.
    base_dtype: 'int8' for shared kernels of eight bits (see `models.quantize`);
      None to take the parameters as they are.
    sampling: how tokens of generated answers are chosen; greedy by default.
    ledger: counts; a new one by default.

  Attributes:
    mesh: devices that members are spread over.
    sampling: arrays of the sampling on all devices; None for greedy.
    idle_since: when the devices had last done all that they were asked for, in
      seconds of `time.perf_counter`.

  Raises:
    ValueError: base_dtype is unknown, or jax computes in 64 bits.
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
    if jax.config.jax_enable_x64:
      raise ModelError(
        'Got jax_enable_x64 (JAX_ENABLE_X64) for programs of 32 bits; expected '
        'it to be off. Unset it.'
      )
    self.mesh = sharding.population_mesh(devices)
    self.dtype, self._base_dtype = dtype, base_dtype
    self.ledger = Ledger() if ledger is None else ledger
    self.sampling = jax.device_put(
      sampling and sampling.arrays(), sharding.replicated(self.mesh)
    )
    self.idle_since = time.perf_counter()
    self._programs: dict[Hashable, tuple[Callable, Any]] = {}
    # Keyed by identity; what is keyed is kept, so that the identity stays its.
    self._kept: dict[tuple[str, int], tuple[Any, Any]] = {}

  def compiled(
    self,
    name: Hashable,
    function: Callable,
    *arguments: Any,
    in_specs: Any = None,
    out_specs: Any = None,
    donate: tuple[int, ...] = (),
    keep: Any = None,
  ) -> Callable:
    """Returns the program of a function for arguments of these shapes.

    All programs of an engine come from here: each is compiled once, and the
    ledger counts it.

    Args:
      name: of the function and of everything static that it depends on.
      function: of the arguments.
      *arguments: of a call, or of one with the same shapes.
      in_specs: of the arguments, where every device runs the function on its
        own part of them; None to leave it to the compiler.
      out_specs: of the results, likewise.
      donate: indices of arguments whose memory the results take.
      keep: kept with the program, for an object whose `id` is in the name.
    """
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(
      (leaf.shape, leaf.dtype, getattr(leaf, 'sharding', None))
      for leaf in leaves
    )
    key = (name, structure, shapes)
    if key not in self._programs:
      with self.ledger.time('compile'):
        run = function
        if in_specs is not None and self.mesh.size > 1:
          run = jax.shard_map(
            run,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
          )
        # On one device a specification says no more than which one it is.
        where = None
        if out_specs is not None:
          where = jax.tree.map(
            lambda spec: jax.sharding.NamedSharding(self.mesh, spec), out_specs
          )
        jitted = jax.jit(run, donate_argnums=donate, out_shardings=where)
        program = jitted.lower(*arguments).compile()
      self._programs[key] = (program, keep)
      self.ledger.programs += 1
      # A device that waits for the compiler is not idle.
      self.idle_since = time.perf_counter()
    return self._programs[key][0]

  def waited(self, asked: float) -> float:
    """Counts the seconds of a call, asked for at `asked`, that is just done.

    Both are of `time.perf_counter`; returns the seconds that devices worked.
    """
    self.ledger.add('idle', max(0.0, asked - self.idle_since))
    since = max(asked, self.idle_since)
    self.idle_since = time.perf_counter()
    return self.idle_since - since

  def params(self, space: Expressing) -> Any:
    """Returns the parameters that members of a space share, on all devices.

    Every array is placed once, whatever spaces it is part of.
    """
    return self._once('tree', space.model().params, self._place)

  def _place(self, params: Any) -> Any:
    if self._base_dtype == 'int8':
      params = quantize.quantize(
        params, lambda kernel: self._once('int8', kernel, self._rounded)
      )
    whole = sharding.replicated(self.mesh)
    return jax.tree.map(
      lambda leaf: self._once('leaf', leaf, lambda x: jax.device_put(x, whole)),
      params,
    )

  def _rounded(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self.compiled('int8', quantize.round_kernel, kernel)(kernel)

  def _once(self, what: str, key: Any, make: Callable[[Any], Any]) -> Any:
    """Returns make(key), made once for this object."""
    if (what, id(key)) not in self._kept:
      self._kept[what, id(key)] = (key, make(key))
    return self._kept[what, id(key)][1]
