import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.population import keys

SEED = jax.random.key(3)


def data(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_every_part_of_the_address_matters():
  addresses = [
    (SEED, 0, 0, 'mutation'),
    (SEED, 1, 0, 'mutation'),
    (SEED, 0, 1, 'mutation'),
    (SEED, 0, -1, 'mutation'),
    (SEED, 0, 0, 'crossover'),
    (jax.random.key(4), 0, 0, 'mutation'),
  ]
  assert len({data(keys.key_for(*a)) for a in addresses}) == len(addresses)


def test_the_address_alone_decides():
  ids = jnp.asarray([7, 2, 30], jnp.int32)
  several = jax.jit(keys.keys_for, static_argnums=3)(SEED, 5, ids, 'x')
  for place, member in enumerate([7, 2, 30]):
    assert data(several[place]) == data(keys.key_for(SEED, 5, member, 'x'))


def test_purposes_keep_their_numbers():
  # A change would silently give every seed another run.
  assert keys.purpose_code('mutation') == 1330215158
