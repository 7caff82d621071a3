"""Decoding in an accelerator's way: the same texts as in a CPU's."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.engine import continuous_batching
from evojax_llm.engine import decode_step
from evojax_llm.engine import groups
from evojax_llm.engine import plan as planning
from evojax_llm.engine.queues import Prompt
from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.sampling import Sampling
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.cache import init_ring
from evojax_llm.models.linear import Linear
from evojax_llm.models.quantize import round_kernel
from evojax_llm.population import stack
from tests.engine.continuing import Bytes
from tests.engine.continuing import run

MEMBERS = 3
PLAIN = {'walk': 'unrolled'}
KERNEL = {'walk': 'unrolled', 'attention': 'interpreted'}


@pytest.fixture(scope='module')
def models(tiny_gemma_folder, tiny_adapter_folders):
  """`models(kind) -> (config, params, population)` of MEMBERS members."""

  @functools.cache
  def load(kind):
    config, params = hub.load_checkpoint(tiny_gemma_folder(kind))
    # As it is, the embedding has most tokens repeat themselves.
    params['embedder']['embedding'] *= np.float32(0.1)
    folders = tiny_adapter_folders(MEMBERS, kind)
    return config, params, peft.load_adapters(folders, config).factors

  return load


@pytest.fixture(scope='module')
def prompts():
  """Uneven prompts and limits; all begin with the same 17 tokens."""
  rng = np.random.default_rng(0)
  start = rng.integers(2, 300, 17).tolist()
  return [
    Prompt(
      (*start, *rng.integers(2, 300, 1 + i % 5).tolist()),
      limit=int(rng.integers(3, 12)),
      item=f'item {i}',
    )
    for i in range(8)
  ]


@pytest.fixture(scope='module')
def runtimes():
  """Runtimes of one device, by how tokens are chosen."""
  devices = jax.devices()[:1]
  sampling = Sampling(temperature=1.0, top_p=0.95, seed=3)
  return {
    'greedy': Runtime(devices=devices),
    'sampled': Runtime(devices=devices, sampling=sampling),
  }


def program(runtime, unrolled):
  """The optimised text of the program that continues prompts."""
  (found,) = (
    value[0]
    for key, value in runtime._programs.items()
    if key[0][0][0] == 'advance' and key[0][3:] == (unrolled, 'plain')
  )
  return found.as_text()


@pytest.mark.parametrize('stops', [False, True])
@pytest.mark.parametrize('walk', [PLAIN, KERNEL])
def test_greedy(models, prompts, runtimes, walk, stops):
  """Soft caps, a window of 8, a common beginning, refills, stop strings."""
  if stops:
    strings = tuple('abcd')
    prompts = [dataclasses.replace(p, stops=strings) for p in prompts]
  given = models('gemma2'), prompts, 'batched'
  expected = run(*given, runtime=runtimes['greedy'])
  assert run(*given, runtime=runtimes['greedy'], walk=walk) == expected
  cut = [set(Bytes().decode(i)) & set('abcd') for t in expected for i in t]
  assert any(cut)


def test_sampled_alone_in_any_order(models, prompts, runtimes):
  """Norms of queries and keys, two rotary embeddings, one member at a time."""
  model = config, params, population = models('gemma3_text')
  sampled = functools.partial(run, form='folded', runtime=runtimes['sampled'])
  ids = [7, 3, 11]
  expected = sampled(model, prompts, ids=ids)
  assert sampled(model, prompts, ids=ids, walk=PLAIN) == expected
  turned = [2, 0, 1]
  found = sampled(
    (config, params, stack.take(population, np.array(turned))),
    prompts[::-1],
    ids=[ids[m] for m in turned],
    walk=PLAIN,
  )
  for m, texts in zip(turned, found, strict=True):
    assert texts[::-1] == expected[m]


@pytest.mark.parametrize('name', ['v_proj', 'q_proj'])
def test_what_fails_spoils_nothing(models, prompts, runtimes, name):
  """Neither its neighbours, nor those that have its slots afterwards."""
  model = config, params, population = models('gemma2')
  broken = jax.tree.map(np.array, population)
  broken['layers']['self_attn'][name]['b'][1] = np.nan
  how = {'runtime': runtimes['greedy'], 'walk': PLAIN}
  whole = run(model, prompts, 'batched', runtime=runtimes['greedy'])
  found = run((config, params, broken), prompts, 'batched', **how)
  assert found == [whole[0], None, whole[2]]
  after = run(model, prompts, 'batched', before=broken, **how)
  assert after == whole


@pytest.mark.parametrize('walk', ['scan', 'unrolled'])
def test_no_step_copies_weights_or_cache(models, prompts, runtimes, walk):
  """Of steps over separate layers; over stacks they do, and the search sees it.

  What is as large as a kernel is neither copied nor sliced nor turned round.
  """
  model, runtime = models('gemma2'), runtimes['greedy']
  run(model, prompts, 'batched', runtime=runtime, walk={'walk': walk})
  text = program(runtime, walk == 'unrolled')
  computations, name = {}, None
  for line in text.splitlines():
    begun = re.match(r'(?:ENTRY )?%?([\w.-]+) \(.*\{$', line)
    name = begun.group(1) if begun else name
    computations.setdefault(name, []).append(line)

  def reached(name):
    lines = '\n'.join(computations[name])
    called = re.findall(r'(?:calls|to_apply|body)=%?([\w.-]+)', lines)
    return {name}.union(*map(reached, called))

  bodies = [
    name
    for name in re.findall(r'body=%?([\w.-]+)', text)
    if any('/make_tokens/' in line for line in computations[name])
  ]
  # Not of loops around them, which read prompts too.
  bodies = [b for b in bodies if not reached(b) & (set(bodies) - {b})]
  lines = {
    line
    for name in set().union(*map(reached, bodies))
    for line in computations[name]
  }
  moved = [
    found
    for line in lines
    for found in re.findall(
      r'= (\w+\[[\d,]+\])\S* (copy|transpose|dynamic-slice)\(', line
    )
    if np.prod([int(n) for n in re.findall(r'\d+', found[0])[1:]]) >= 1536
  ]
  assert lines and (walk == 'scan') == bool(moved), moved


def test_refills_write_only_their_columns():
  config = types.SimpleNamespace(
    num_kv_heads=2, head_dim=4, absent=(), stacks=()
  )
  config.parts = lambda: (((), (0,), config),)
  ring = jax.tree.map(
    lambda leaf: jnp.ones((1, *leaf.shape), leaf.dtype), init_ring(config, 3, 6)
  ).replace(index=jnp.int32(1))
  rows = ring.replace(
    k=jnp.full((1, 1, 2, 3, 2, 4), 5.0),
    v=jnp.full((1, 1, 2, 3, 2, 4), 6.0),
    positions=jnp.arange(6, dtype=jnp.int32).reshape(1, 2, 3),
  )
  slots, new = jnp.array([[2, 0]]), jnp.array([[True, False]])
  found = continuous_batching.write_columns(ring, rows, slots, new)
  # Three tokens that end before column 1 of six: 4, 5 and 0, of slot 2 alone.
  assert found.positions.tolist()[0] == [
    [1] * 6,
    [1] * 6,
    [2, -1, -1, -1, 0, 1],
  ]
  written = np.asarray(found.k[0])[0, :, 0, :, 0]
  assert written.tolist() == [[1] * 6, [1] * 6, [5, 1, 1, 1, 5, 5]]


@pytest.mark.parametrize('adapted', [(), ('q_proj',), ('q_proj', 'v_proj')])
@pytest.mark.parametrize('kind', ['lora', 'gates'])
@pytest.mark.parametrize('base', ['float', 'int8', 'bias'])
def test_fused_projections(adapted, kind, base):
  """One product of q, k and v is the three, whatever stands beside them."""
  keys = iter(jax.random.split(jax.random.key(0), 40))
  names, widths = ('q_proj', 'k_proj', 'v_proj'), (4, 2, 2)
  nodes, own = {}, {}
  for name, width in zip(names, widths, strict=True):
    nodes[name] = {'kernel': jax.random.normal(next(keys), (6, width))}
    if base == 'int8':
      kernel, step = round_kernel(nodes[name]['kernel'])
      nodes[name] = {'kernel': kernel, 'step': step}
    if base == 'bias' and name != 'k_proj':
      nodes[name]['bias'] = jax.random.normal(next(keys), (width,))
    pair = {
      'a': jax.random.normal(next(keys), (6, 3)),
      'b': jax.random.normal(next(keys), (3, width)),
    }
    if kind == 'gates':
      nodes[name] |= pair  # of all; a member need not weigh each.
      pair = {'gate': jax.random.normal(next(keys), (3,))}
    if name in adapted:
      own[name] = pair
  x = jax.random.normal(next(keys), (5, 6))
  apart = [
    Linear(width, 'bias' in nodes[name]).apply(
      {'params': nodes[name], kind: own.get(name, {})}, x
    )
    for name, width in zip(names, widths, strict=True)
  ]
  shared = [nodes[name].get('a') for name in names]
  both = [
    decode_step._beside([tree.get(n, {}) for n in names], widths, shared)
    for tree in (nodes, own)
  ]
  found = Linear(8, base == 'bias').apply({'params': both[0], kind: both[1]}, x)
  np.testing.assert_allclose(found, jnp.concatenate(apart, -1), atol=1e-5)


@pytest.mark.parametrize('devices', [1, 4])
def test_a_group_is_made_for_about_as_many_as_it_has(devices):
  most = 32
  sizes = [groups.size_for(n, most, devices) for n in range(1, most + 1)]
  assert all(n <= size for n, size in enumerate(sizes, 1))
  assert all(size % devices == 0 for size in sizes) and sizes[-1] == most
  assert len(set(sizes)) == {1: 10, 4: 6}[devices]
  if devices == 1:
    assert sizes[:12] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12]
  assert groups.size_for(12, 20, 1) == 12 and groups.size_for(17, 20, 1) == 20


def test_the_plan_chooses_by_device(models):
  config = models('gemma2')[0]

  def plan(platform, **options):
    return planning.make_plan(
      config, form='batched', members=10,
      base_bytes=1 << 24, member_bytes=1 << 16,
      device=types.SimpleNamespace(platform=platform),
      **{'lengths': [(64, 200)], 'budget': 1 << 32, **options},
    )  # fmt: skip

  cpu, gpu, tpu = plan('cpu'), plan('gpu'), plan('tpu')
  assert (cpu.walk, cpu.attention) == ('scan', 'plain')
  assert (gpu.walk, gpu.attention) == ('unrolled', 'pallas')
  assert (tpu.walk, tpu.attention) == ('unrolled', 'plain')
  assert plan('gpu', hops=3).walk == 'scan'
  # 2048 rows of a step where memory holds them; what it holds where not.
  assert gpu.slots(64, 200) == 204 and cpu.slots(64, 200) == 25
  tight = plan('gpu', budget=1 << 28)
  taken = 10 * tight.slots(64, 200) * tight.slot_bytes(64, 200)
  assert 0.5 < taken / (tight.budget - tight.fixed) < 1
  # Layers beside the stacks are counted, and left out where they do not fit.
  assert gpu.fixed > cpu.fixed
  small = plan('gpu', budget=cpu.fixed + (1 << 21))
  assert small.walk == 'scan' and small.members_per_group < 10
