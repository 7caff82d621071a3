"""Where the genomes of a search live: on the devices, or in host memory.

On several accelerators every one of them has a part of each genome, and the
strategy works on all parts; see `sharding.cut`. In host memory genomes are
arrays of a CPU device, on which the strategy computes too, in place; the engine
copies a group at a time from there to its devices.
"""

from collections.abc import Sequence
from typing import Any

import jax

from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.engine.plan import device_budget
from evojax_llm.population import hosts
from evojax_llm.runs import errors

_MIB = 1 << 20


def engine_devices(choice: str) -> Sequence[jax.Device] | None:
  """Returns the devices that score members; None for all.

  On a CPU of several devices the last one holds the population of the 'host'.
  """
  devices = jax.devices()
  if choice == 'host' and devices[0].platform == 'cpu' and len(devices) > 1:
    return devices[:-1]
  return None


def candidates(choice: str) -> list[jax.Device | None]:
  """Returns where a population may live, in the order of preference.

  None stands for the devices that score members. A CPU has one memory: there is
  no choice, but for what `engine_devices` leaves out.

  Raises:
    UserError: JAX has no CPU device.
  """
  devices = jax.devices()
  if devices[0].platform == 'cpu':
    return [devices[-1] if engine_devices(choice) else None]
  if choice == 'device':
    return [None]
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError as error:
    if choice == 'auto':
      return [None]
    raise errors.UserError(
      'config.execution.population=host needs a CPU device, and JAX has none: '
      'add it to JAX_PLATFORMS, as in JAX_PLATFORMS=cuda,cpu.'
    ) from error
  return [host] if choice == 'host' else [None, host]


def is_cut(choice: str, platform: str, devices: int, space: Any) -> bool:
  """Whether genomes that live on so many devices are cut over all of them.

  Recipes are small, and merged on one device. On several hosts genomes are
  whole on every device.
  """
  whole = devices == 1 or space.held is not None or space.streams
  chosen = choice == 'auto' and platform != 'cpu' and not hosts.several()
  return not whole and (choice == 'cut' or chosen)


def check(population_bytes: int, host: jax.Device) -> None:
  """Refuses a population that is too large for the host.

  It is there twice while the first one is taken over, and while a checkpoint is
  written.

  Raises:
    MemoryPlanError: saying how large it is.
  """
  free = device_budget(host)
  if 2 * population_bytes > free:
    raise MemoryPlanError(
      f'The genomes of the search take {population_bytes / _MIB:,.0f} MiB in '
      'the memory of the host, and as much again while a checkpoint is '
      f'written; {free / _MIB:,.0f} MiB may be used. Use a smaller population.'
    )
