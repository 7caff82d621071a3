"""What all programs of an engine share: devices, types, programs, counts."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from concurrent import futures
import contextlib
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

# That compile: most of a program's time is XLA's, which works beside others.
_MOST_THREADS = 4


class Runtime:
  """The devices of an engine, and what is compiled and kept for them.

  Args:
    devices: those to spread members over; all by default.
    model_devices: over so many of them the shared parameters are cut.
    dtype: type of activations and cache.
    base_dtype: 'int8' for shared kernels of eight bits (see `models.quantize`);
      None to take the parameters as they are.
    sampling: how tokens of generated answers are chosen; greedy by default.
    ledger: counts; a new one by default.

  Attributes:
    mesh: devices; see `sharding.population_mesh`.
    sampling: arrays of the sampling on all devices; None for greedy.
    idle_since: when the devices had last done all that they were asked for, in
      seconds of `time.perf_counter`.

  Raises:
    ValueError: base_dtype is unknown, jax computes in 64 bits, or the devices
      are no multiple of model_devices.
  """

  def __init__(
    self,
    *,
    devices: Sequence[jax.Device] | None = None,
    model_devices: int = 1,
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
    self.mesh = sharding.population_mesh(devices, model_devices)
    self.dtype, self._base_dtype = dtype, base_dtype
    self.ledger = Ledger() if ledger is None else ledger
    self.sampling = sharding.place(
      sampling and sampling.arrays(), sharding.replicated(self.mesh)
    )
    self.idle_since = time.perf_counter()
    # Of what is compiled ahead, what will be the program.
    self._programs: dict[Hashable, tuple[Any, Any]] = {}
    # Threads begin when they are given work.
    self._threads = futures.ThreadPoolExecutor(_MOST_THREADS)
    # Keyed by identity; what is keyed is kept, so that the identity stays its.
    self._kept: dict[tuple[str, int], tuple[Any, Any]] = {}

  @property
  def shards(self) -> int:
    """Parts that the members of a group are spread in."""
    return self.mesh.shape[sharding.POPULATION]

  @property
  def model_devices(self) -> int:
    """Devices that the shared parameters are cut over."""
    return self.mesh.shape[sharding.MODEL]

  @property
  def platform(self) -> str:
    """Of the devices, such as 'cpu' or 'gpu'."""
    return self.mesh.devices.flat[0].platform

  def compiled(
    self,
    name: Hashable,
    function: Callable,
    *arguments: Any,
    in_specs: Any = None,
    out_specs: Any = None,
    donate: tuple[int, ...] = (),
    cut: bool = False,
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
      cut: whether results may be cut over 'model', as the compiler likes.
      keep: kept with the program, for an object whose `id` is in the name.
    """
    key = _key(name, arguments)
    found = self._programs.get(key)
    if found is None or isinstance(found[0], futures.Future):
      work = function, arguments, in_specs, out_specs, donate, cut
      # One that fails beside others is tried again alone.
      self._programs.pop(key, None)
      program = None
      with self.ledger.time('compile'):
        if found is not None:
          with contextlib.suppress(Exception):
            program = found[0].result()
        if program is None:
          program = self._compile(*work)
      self._programs[key] = (program, keep)
      self.ledger.programs += 1
      # A device that waits for the compiler is not idle.
      self.idle_since = time.perf_counter()
    return self._programs[key][0]

  @property
  def programs(self) -> list[tuple[str, Any]]:
    """What each program does, in a word, and the program, of all compiled."""
    return [
      (word_of(key[0]), program) for key, (program, _) in self._programs.items()
    ]

  def ahead(
    self,
    name: Hashable,
    function: Callable,
    *arguments: Any,
    in_specs: Any = None,
    out_specs: Any = None,
    donate: tuple[int, ...] = (),
    cut: bool = False,
  ) -> None:
    """Begins to compile what `compiled` will be asked for, in another thread.

    Takes what it takes, or shapes, types and shardings in place of arrays.
    """
    key = _key(name, arguments)
    if key not in self._programs:
      work = function, arguments, in_specs, out_specs, donate, cut
      self._programs[key] = (self._threads.submit(self._compile, *work), None)

  def _compile(self, function, arguments, in_specs, out_specs, donate, cut):
    """Returns the program of a function."""
    run = function
    if in_specs is not None and self.shards > 1:
      # Inside a row of the mesh the compiler cuts the work as its parameters
      # are cut.
      axes = {sharding.POPULATION} if self.model_devices > 1 else set()
      run = jax.shard_map(
        run,
        mesh=self.mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=axes,
        check_vma=False,
      )
    # On one device a specification says no more than which one it is.
    where = None
    if out_specs is not None and not (cut and self.model_devices > 1):
      where = jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(self.mesh, spec), out_specs
      )
    jitted = jax.jit(run, donate_argnums=donate, out_shardings=where)
    return jitted.lower(*arguments).compile()

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
    shared = space.model()
    return self._once(
      'tree',
      shared.params,
      lambda params: self._place(params, shared.config.key_heads),
    )

  def _place(self, params: Any, key_heads: int) -> Any:
    if self._base_dtype == 'int8':
      params = quantize.quantize(
        params, lambda kernel: self._once('int8', kernel, self._rounded)
      )
    return jax.tree.map(
      lambda leaf, where: self._once(
        'leaf', leaf, lambda x: sharding.place(x, where)
      ),
      params,
      sharding.model_shardings(self.mesh, params, key_heads),
    )

  def _rounded(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    return self.compiled('int8', quantize.round_kernel, kernel)(kernel)

  def _once(self, what: str, key: Any, make: Callable[[Any], Any]) -> Any:
    """Returns make(key), made once for this object."""
    if (what, id(key)) not in self._kept:
      self._kept[what, id(key)] = (key, make(key))
    return self._kept[what, id(key)][1]


def word_of(name: Hashable) -> str:
  """Returns the first word of what a program is named by."""
  while isinstance(name, tuple):
    name = name[0]
  return str(name)


def _key(name: Hashable, arguments: tuple) -> tuple:
  """What tells a program from others: name, shapes, types and shardings."""
  leaves, structure = jax.tree.flatten(arguments)
  shapes = tuple(
    (leaf.shape, leaf.dtype, getattr(leaf, 'sharding', None)) for leaf in leaves
  )
  return (name, structure, shapes)
