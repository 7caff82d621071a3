"""Decides, before anything is compiled, how work is cut to fit the memory."""

from collections.abc import Sequence
import dataclasses
import itertools
import math
import os

import jax
import jax.numpy as jnp

from evojax_llm.engine.batches import ATTENTION_DOUBLES_AT
from evojax_llm.engine.batches import BATCHES_PER_CALL
from evojax_llm.models.cache import bytes_per_token
from evojax_llm.models.config import ModelConfig
from evojax_llm.population import hosts
from evojax_llm.population import stack

# Tokens of one program call: enough to keep the matrix units busy, few enough
# for a CPU's caches.
_TOKENS_PER_CALL = {'cpu': 1024}
_TOKENS_PER_CALL_ELSEWHERE = 131_072
# Tokens made in one step: enough that reading the weights is shared by many. On
# an accelerator a step reads the weights once (5 GB of Gemma 2 2B) and of each
# row its keys and values (0.1 MB a token: 17 MB at 160 tokens). At 2048 rows
# the weights are an eighth of that and the products of a row cost what its
# bytes do; more rows gain next to nothing, and leave more of them idle at the
# end. Where memory ends earlier, it decides.
_SLOTS_PER_CALL = {'cpu': 256}
_SLOTS_PER_CALL_ELSEWHERE = 2048
# Of what is free, the part for rows that are read into slots.
_REFILL_SHARE = 4
# On a CPU, folding pays while a copy of the layers is small against the work of
# one member. Between these sizes it is tried.
_FOLD_AT_MOST_BYTES = 1 << 28
_FOLD_NEVER_BYTES = 1 << 32
# An accelerator multiplies as many numbers while it moves a byte of scores; a
# score of a head is written, read by the softmax's passes and by the product.
_PRODUCTS_A_BYTE = 100
_BYTES_A_SCORE = 20
# On a CPU a key costs a product of this number by the width of the heads: what
# makes the 320 columns of `batches` for the model that they were measured with.
_PRODUCTS_A_KEY = 4.2
_SHARE_OF_MEMORY = 0.8
_MIB = 1 << 20


class MemoryPlanError(ValueError):
  """A plan that cannot fit; says the sizes and what to change."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How members and prompts are cut into program calls.

  Attributes:
    form: 'batched' or 'folded' (see `forms`).
    form_is_clear: whether sizes and device tell that it is the faster one.
    reason: for the form.
    members_per_group: members of one program call.
    device: platform that the plan is for.
    budget: bytes that may be used on one device.
    base: bytes of the shared parameters.
    population: bytes of the genomes, as far as known.
    on_host: whether they are in the memory of the host.
    fixed: bytes of everything that does not grow with the prompts.
    row_fixed: bytes that one prompt of one member takes, whatever its length.
    row_token: bytes that one token of it takes while it is read.
    cache_token: of these, bytes in the cache, which a slot keeps.
    row_token_pair: bytes that one (query, key) pair of it takes.
    tokens_per_call: padded tokens that one program call aims at.
    slots_per_call: prompts that one step of decoding aims at.
    prompts_per_batch: given by the user; None to choose by size.
    attention_doubles_at: columns of a row at which attention costs a token as
      much as all else.
    walk: how a step of decoding goes through the layers: 'scan', over stacks,
      or 'unrolled', over separate layers (see `decode_step`).
    attention: of such a step, an implementation of `decode_attention`.
    dtype: of activations and cache.
  """

  form: str
  form_is_clear: bool
  reason: str
  members_per_group: int
  device: str
  budget: int
  base: int
  population: int
  fixed: int
  row_fixed: int
  row_token: int
  cache_token: int
  row_token_pair: int
  tokens_per_call: int
  slots_per_call: int
  prompts_per_batch: int | None = None
  on_host: bool = False
  attention_doubles_at: int = ATTENTION_DOUBLES_AT
  walk: str = 'scan'
  attention: str = 'plain'
  dtype: str = 'float32'

  def row_bytes(self, length: int) -> int:
    """Bytes that one prompt of one member takes while it is read."""
    pairs = self.row_token_pair * length * length
    return self.row_fixed + self.row_token * length + pairs

  def slot_bytes(self, length: int, new_tokens: int) -> int:
    """Bytes that a slot of one member takes, and nothing without new tokens."""
    kept = self.cache_token * (length + new_tokens)
    return (self.row_fixed + kept) * bool(new_tokens)

  @property
  def members_at_once(self) -> int:
    """Members whose activations are alive together in a program call."""
    return self.members_per_group if self.form == 'batched' else 1

  def rows(self, length: int, new_tokens: int = 0) -> int:
    """Most prompts of a batch of rows of this length."""
    members = self.members_at_once
    free = max(0, self.budget - self.fixed)
    row = members * self.row_bytes(length)
    slot = members * self.slot_bytes(length, new_tokens)
    if row + slot > free:
      raise MemoryPlanError(
        f'A prompt of {length} + {new_tokens} tokens for {members} members '
        f'takes {(row + slot) / _MIB:.0f} MiB beside '
        f'{self.fixed / _MIB:.0f} MiB that are fixed; the budget is '
        f'{self.budget / _MIB:.0f} MiB. Use fewer members_per_group, a '
        'shorter context, or a larger memory budget.'
      )
    fit = max(1, free // (_REFILL_SHARE if new_tokens else 1) // row)
    if self.prompts_per_batch:
      return min(fit, self.prompts_per_batch)
    wanted = self.tokens_per_call // (members * length)
    return max(1, min(fit, wanted))

  def slots(self, length: int, new_tokens: int) -> int:
    """Most prompts of a member whose continuations are in work at a time."""
    members, rows = self.members_at_once, self.rows(length, new_tokens)
    free = self.budget - self.fixed - rows * members * self.row_bytes(length)
    fit = max(1, free // (members * self.slot_bytes(length, new_tokens)))
    wanted = max(rows, self.slots_per_call // members)
    return min(fit, self.prompts_per_batch or wanted)

  def describe(self) -> str:
    """The plan in a few lines, for people."""

    def mib(n: int) -> str:
      return f'{n / _MIB:,.0f} MiB'

    how = 'one after another' if self.form == 'folded' else 'in one product'
    return '\n'.join(
      [
        f'plan: groups of {self.members_per_group} members on {self.device}, '
        f'computed {how} ({self.form}: {self.reason})',
        f'  base {mib(self.base)}, population {mib(self.population)}'
        f'{" in the memory of the host" if self.on_host else ""}, '
        f'fixed in all {mib(self.fixed)} of {mib(self.budget)}',
        f'  a 256-token prompt of one member {mib(self.row_bytes(256))}',
      ]
    )


def device_budget(device: jax.Device) -> int:
  """Bytes that may be used on a device: four fifths of what it has.

  A CPU is asked for the memory that is free now; without an answer, 4 GiB. Of
  several hosts the first is asked.
  """
  return hosts.agreed(_budget_here(device if hosts.is_first() else None))


def _budget_here(device: jax.Device | None) -> int:
  if device is None:  # The first host answers.
    return 0
  stats = None
  if device.platform != 'cpu':
    stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return int(_SHARE_OF_MEMORY * stats['bytes_limit'])
  try:
    pages, size = os.sysconf('SC_AVPHYS_PAGES'), os.sysconf('SC_PAGE_SIZE')
    # CPU devices are parts of one machine and share its memory.
    return int(_SHARE_OF_MEMORY * pages * size / jax.local_device_count())
  except (ValueError, OSError):
    return 4 << 30


def check_population(
  members: int,
  genome_bytes: int,
  budget: float | None,
  device: jax.Device,
  devices: int = 1,
) -> None:
  """Refuses a population before it is made.

  Args:
    members: P, or the members of an ask where they are more.
    genome_bytes: bytes of one genome.
    budget: bytes on one device, or None to ask the device.
    device: one of the devices.
    devices: that hold it together.

  Raises:
    MemoryPlanError: it is too large, or the budget is no number of bytes.
  """
  budget = devices * budget_of(budget, device)
  stack.check_size(members, MemoryPlanError)
  if members * genome_bytes > budget:
    raise MemoryPlanError(
      f'A population of {members:,} members of {genome_bytes / _MIB:,.2f} MiB '
      f'takes {members * genome_bytes / _MIB:,.0f} MiB; the budget is '
      f'{budget / _MIB:,.0f} MiB on {device.platform}. Use a smaller '
      'population or a larger memory budget.'
    )


def budget_of(budget, device):
  """The budget in bytes, as given or asked of the device."""
  if budget is None:
    return device_budget(device)
  if not 0 < budget < math.inf:
    raise MemoryPlanError(
      f'Got a memory budget of {budget} bytes; expected a finite number above '
      '0. Leave it out for four fifths of what the device has.'
    )
  return int(budget)


def choose_form(
  config: ModelConfig, platform: str, itemsize: int, generates: bool
) -> tuple[str, bool]:
  """The execution form for a model on a platform, and whether that is clear.

  An accelerator wants one large product of the base for all members. A CPU is
  faster on one member's working set at a time, as long as folding a member
  costs little. A model beyond a CPU's caches is read once a step of decoding:
  better for all members than for the few answers of one.
  """
  layers = config.num_params - config.embedding_params
  if platform != 'cpu' or layers * itemsize > _FOLD_NEVER_BYTES:
    return 'batched', True
  if layers * itemsize <= _FOLD_AT_MOST_BYTES:
    return 'folded', True
  return ('batched', True) if generates else ('folded', False)


def layer_bytes(config: ModelConfig) -> int:
  """Returns bytes of a token that are alive at the worst point of a layer.

  Products accumulate in f32, whatever the type of the activations.
  """
  inputs = 4 * config.num_layers * config.input_dim
  return inputs + max(
    4
    * (
      4 * c.embed_dim
      + 3 * c.ffn_dim
      + 2 * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    )
    for _, _, c in config.parts()
  )


def _attention_doubles_at(config: ModelConfig, platform: str) -> int:
  """Returns the columns at which attention costs as much as the products.

  On an accelerator attention costs the bytes that it moves.
  """
  shapes = config.parts()[0][2].linear_shapes()
  weights = sum(i * o for i, o in shapes.values())
  moved = config.num_heads * _BYTES_A_SCORE * _PRODUCTS_A_BYTE
  if platform == 'cpu':
    moved = _PRODUCTS_A_KEY * config.num_heads * config.head_dim
  return max(ATTENTION_DOUBLES_AT, int(weights / moved))


def make_plan(
  config: ModelConfig,
  *,
  members: int,
  base_bytes: int,
  member_bytes: int,
  population_bytes: int | None = None,
  on_host: bool = False,
  lengths: Sequence[tuple[int, int]],
  dtype=jnp.float32,
  device: jax.Device,
  hops: int | None = None,
  form: str = 'auto',
  members_per_group: int | None = None,
  prompts_per_batch: int | None = None,
  budget: int | None = None,
  walk: str | None = None,
  attention: str | None = None,
) -> Plan:
  """Chooses form, group and batch sizes.

  Args:
    config: the model.
    members: most members that are scored at a time.
    base_bytes: bytes of the shared parameters.
    member_bytes: bytes of one expressed member.
    population_bytes: bytes of all genomes that are kept, memory and velocity
      included; by default those of the members.
    on_host: whether these are in the memory of the host, and none on a device.
    lengths: (prompt tokens, new tokens) of the longest rows of each kind.
    dtype: type of activations and cache.
    device: one of the devices that the members are spread over.
    hops: most hops of members that are paths.
    form: 'auto', 'batched' or 'folded'.
    members_per_group: fixed by the user, or None.
    prompts_per_batch: fixed by the user, or None.
    budget: bytes on one device, or None to ask the device.
    walk: 'scan' or 'unrolled'; None to choose by device.
    attention: see `Plan`; None to choose by device.

  Raises:
    MemoryPlanError: nothing fits.
  """
  itemsize = jnp.dtype(dtype).itemsize
  generates = any(new for _, new in lengths)
  clear, reason = True, 'asked for'
  if form == 'auto':
    form, clear = choose_form(config, device.platform, itemsize, generates)
    reason = f'the rule for models of this size on {device.platform}'
  budget = budget_of(budget, device)
  for name, value in (
    ('members_per_group', members_per_group),
    ('prompts_per_batch', prompts_per_batch),
  ):
    if value is not None and value < 1:
      raise MemoryPlanError(f'Got {name} {value}; expected at least 1.')
  if population_bytes is None:
    population_bytes = members * member_bytes
  layers = base_bytes - config.vocab_size * config.embed_dim * itemsize
  cache_token = bytes_per_token(config, dtype, hops)
  common = dict(
    form=form,
    form_is_clear=clear,
    reason=reason,
    device=device.platform,
    budget=budget,
    base=base_bytes,
    population=population_bytes,
    row_fixed=2 * 4 * config.vocab_size,
    row_token=layer_bytes(config)
    + cache_token
    # Hidden states that are read wait for the end of a call.
    + BATCHES_PER_CALL * config.embed_dim * itemsize,
    cache_token=cache_token,
    row_token_pair=2 * 4 * config.num_heads,
    tokens_per_call=_TOKENS_PER_CALL.get(
      device.platform, _TOKENS_PER_CALL_ELSEWHERE
    ),
    slots_per_call=_SLOTS_PER_CALL.get(
      device.platform, _SLOTS_PER_CALL_ELSEWHERE
    ),
    prompts_per_batch=prompts_per_batch,
    on_host=on_host,
    attention_doubles_at=_attention_doubles_at(config, device.platform),
    attention=attention or ('pallas' if device.platform == 'gpu' else 'plain'),
    dtype=jnp.dtype(dtype).name,
  )
  resident = base_bytes + (0 if on_host else population_bytes)

  def attempt(group: int, walk: str) -> Plan:
    copies = max(0, layers) if form == 'folded' else 0
    if hops:  # A member takes the layer that it is at.
      copies = layers // config.num_layers * (1 if form == 'folded' else group)
    elif walk == 'unrolled' and generates:
      # Layers beside the stacks, with zeros between fused factors.
      copies += max(0, layers) + 2 * group * member_bytes * (form == 'batched')
    fixed = resident + group * member_bytes + copies
    return Plan(members_per_group=group, fixed=fixed, walk=walk, **common)

  # No group has more than all members.
  most = min(members_per_group or members, members)
  groups = [most]
  while groups[-1] > 1 and not members_per_group:
    groups.append(-(-groups[-1] // 2))
  # A walk that takes more memory is given up before the work is.
  by_device = ('unrolled', 'scan')
  if hops or device.platform == 'cpu':
    by_device = ('scan',)
  for how in itertools.product((walk,) if walk else by_device, groups):
    plan = attempt(how[1], how[0])
    try:
      for length, new_tokens in lengths:
        plan.rows(length, new_tokens)
      return plan
    except MemoryPlanError as error:
      last = error
  raise last
