"""Recipes for whole weights: what they merge, held or streamed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import merged_weights
from evojax_llm.genomes import space as space_lib
from evojax_llm.genomes import weights
from evojax_llm.operators.merges import lift
from evojax_llm.population import leaves
from evojax_llm.population import stack
from tests.genomes import experts

KEY = jax.random.key(3)


def check_equal(found, expected, **options):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, **options), found, expected
  )


@pytest.mark.parametrize('method', ['ties', 'slerp'])
def test_models_are_merged_as_tensors(method):
  base, models = experts.dense(0), [experts.dense(n) for n in (1, 2)]
  space = experts.dense_space(
    method=method,
    evolve='density' if method == 'ties' else 't',
    groups='layers:2',
    on='weights',
  )
  genome = space.sample(KEY)
  (first, last) = space.recipe(genome)['groups']
  name = 'density' if method == 'ties' else 't'
  values = {
    'final_norm/scale': last[name],
    'layers/self_attn/q_proj/kernel': [first[name]] * 2 + [last[name]] * 2,
  }
  values = {
    leaf: np.asarray(list(v.values()) if isinstance(v, dict) else v)
    for leaf, v in values.items()
  }
  if method == 'ties':
    values['layers/self_attn/q_proj/kernel'] = np.asarray(
      [list(v.values()) for v in values['layers/self_attn/q_proj/kernel']]
    )
  expected = lift.genome(
    method,
    models,
    base if method == 'ties' else None,
    parameters={name: values},
    layers=leaves.LAYERS,
  )
  check_equal(space.express(genome).params, expected, rtol=1e-5, atol=1e-6)
  check_equal(space.express(space.base()).params, base)


@pytest.mark.parametrize('method', ['dare_ties', 'slerp'])
def test_streamed_experts_give_the_same_bits(method, monkeypatch):
  monkeypatch.setattr(merged_weights, 'PART_BYTES', 1)
  given = {'on': 'weights', 'method': method, 'groups': 'layers:2'}
  given['evolve'] = 'weights'
  held, streamed = (
    experts.dense_space(**given),
    experts.dense_space(**given, stream='yes'),
  )
  assert streamed.held is None
  genomes = [held.sample(jax.random.key(n)) for n in (1, 2)]
  ran = []

  def call(run, *arguments):
    ran.append(arguments[1])
    return jax.jit(run)(*arguments)

  both = streamed.stream(genomes, call).params
  # Of the kernel a layer at a time, each for both members.
  assert [jax.tree.leaves(tree)[0].shape for tree in ran] == [(2, 3)] * 2 + [
    (2, 1, 3, 2)
  ] * 8
  for n, genome in enumerate(genomes):
    expected = jax.jit(held.express)(genome).params
    for found in (stack.take(both, n), streamed.express(genome).params):
      jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(('limit', 'expected'), [(90, True), (110, False)])
def test_experts_are_streamed_where_a_device_has_no_room(
  limit, expected, monkeypatch
):
  device = types.SimpleNamespace(
    platform='gpu', memory_stats=lambda: {'bytes_limit': limit}
  )
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  held = {'x': np.zeros(10, np.float32)}
  assert merged_weights._streams('auto', held) == expected
  assert merged_weights._streams('yes', held)


def test_a_cpu_merges_the_arrays_that_were_read(tiny_gemma_folder):
  folder = tiny_gemma_folder()
  space = merged_weights.MergedWeightSpace.from_files(
    folder, models=[folder, folder], method='ties', on='weights'
  )
  for held, own in zip(
    jax.tree.leaves(space.held[0]),
    jax.tree.leaves(space.plain.experts()),
    strict=True,
  ):
    (shard,) = held.addressable_shards
    assert shard.data.unsafe_buffer_pointer() == own.ctypes.data
  check_equal(stack.take(space.held[0], 1), space.plain.base())


def test_changes_of_adapters_are_merged_before_they_are_added():
  # So small that sums with the base, in its type, would lose them.
  base = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), experts.dense(0))
  factors = {
    'a': np.full((2, 4, 3, 1), 2.0**-12, np.float32),
    'b': np.stack([np.full((4, 1, 2), n, np.float32) for n in (1, 2)]),
  }
  plain = weights.WeightSpace(
    ('x', 'y'),
    [base, base],
    space_lib.Model(None, base),
    {'layers': {'self_attn': {'q_proj': factors}}},
  )
  space = merged_weights.MergedWeightSpace(
    plain,
    method='task_arithmetic',
    evolve='weights',
    bounds='weights=0:1000',
    on='weights',
  )
  genome = stack.take(space.mix(np.asarray([[200.0, 100.0]]), np.ones(1)), 0)
  found = space.express(genome).params
  kernel = base['layers']['self_attn']['q_proj']['kernel']
  expected = (kernel.astype(jnp.float32) + 400 * 2.0**-12).astype(jnp.bfloat16)
  np.testing.assert_array_equal(
    found['layers']['self_attn']['q_proj']['kernel'], expected
  )
  np.testing.assert_array_equal(
    found['final_norm']['scale'], base['final_norm']['scale']
  )
