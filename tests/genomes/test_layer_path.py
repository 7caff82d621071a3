"""Paths of layers: what a genome stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.genomes import layer_path
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.models.config import load_config
from evojax_llm.models.hub import Model
from evojax_llm.models.peft import load_adapters
from evojax_llm.population import stack

L = 3


@pytest.fixture(scope='module')
def make(tiny_gemma_folder, tiny_adapter_folders):
  """make(**options) -> the space of a base and an expert of three layers."""
  folder = tiny_gemma_folder('gemma3_text')
  config, _ = load_config(folder)
  adapters = load_adapters(tiny_adapter_folders(3, 'gemma3_text'), config)
  module = {'kernel': np.zeros((L, 2, 2), np.float32)}
  params = {'embedder': {}, 'layers': {'mlp': module}}
  plain = AdapterSpace(adapters, Model(config, params, folder))

  class Plain:
    """The experts, without their factors."""

    names = plain.names
    model = plain.model
    experts = plain.experts

    def express(self, genome):
      return layer_path.expression.LowRank({})

  return lambda **given: layer_path.LayerPathSpace(Plain(), **given)


def hops(space, *on, of=None):
  genome = space.base() if of is None else of
  indicator = np.full(space.slots, -1.0, np.float32)
  indicator[list(on)] = 1.0
  genome = {**genome, 'indicator': jnp.asarray(indicator)}
  path = space.express(genome)
  found = path.hops[path.hops >= 0].tolist()
  # Nothing stands between the hops, and what is behind them is 1.
  assert path.hops[: len(found)].tolist() == found
  assert (path.scales[len(found) :] == 1).all()
  return found


@pytest.mark.parametrize(
  ('given', 'on', 'expected'),
  [
    # Of A 0, 1, 2 and of B 3, 4, 5; the ends are A's.
    ({}, (), [0, 2]),
    ({}, (0, 1, 2), [0, 1, 2]),
    ({}, (4, 6, 7, 8, 9), [0, 4, 1, 3, 2]),
    ({'reuse': True}, (0, 1, 2), [0, 1, 2]),
    ({'reuse': True}, (2, 4, 6, 9), [0, 2, 4, 0, 3, 2]),
    ({'reuse': True}, (6, 7, 8), [0, 1, 2]),
    ({'pinned': False}, (), []),
    ({'pinned': False, 'repeats': 1}, range(6), [0, 1, 2, 3, 4, 5]),
    ({'cap': 4}, (1, 3, 4, 5, 7), [0, 1, 3, 2]),
    ({'cap': 4, 'pinned': False}, (1, 3, 4, 5, 7), [1, 3, 4, 5]),
    ({'sources': 'expert1,base'}, (4, 1), [0, 1, 4, 2]),
  ],
)
def test_an_indicator_says_which_slots_are_gone_through(
  make, given, on, expected
):
  assert hops(make(**given), *on) == expected


@pytest.mark.parametrize('scales', ['matrix', 'hop', 'network', 'none'])
def test_scales_begin_at_one_and_multiply_what_enters_a_hop(make, scales):
  space = make(scales=scales)
  on = (1, 4)
  assert (space.express(space.base()).scales == 1).all()
  genome = space.sample(jax.random.key(0))
  genome['indicator'] = genome['indicator'].at[:].set(-1.0)
  genome['indicator'] = genome['indicator'].at[jnp.array(on)].set(1.0)
  path = space.express(genome)
  assert path.hops[:4].tolist() == [0, 1, 4, 2]
  own = genome.get('scales')
  expected = [1.0] * 3
  if scales == 'matrix':
    expected = own[jnp.array([0, 1, 4]), jnp.array([1, 4, 2])]
  elif scales == 'hop':
    expected = own[:3]
  elif scales == 'network':
    rows = np.array([[0, 1, 1], [1, 4, 2], [4, 2, 3]], np.float32)
    rows = 2 * rows / np.array([5, 5, space.cap], np.float32) - 1
    rows = np.concatenate([rows, np.ones((3, 1))], axis=1)
    inner = np.tanh(rows @ own['inner'])
    expected = 1 + inner @ own['outer'][:-1] + own['outer'][-1]
    assert len(np.unique(expected)) == 3
  np.testing.assert_allclose(path.scales[:4], [1.0, *expected], rtol=1e-5)


def test_the_first_mean_is_a_and_its_draws_are_near(make):
  space = make()
  made = space.initial(('centre',), 4, jax.random.key(0)).population
  assert np.unique(made['indicator']).tolist() == pytest.approx([-0.2, 0.2])
  paper = make(off=0.0)
  np.testing.assert_allclose(
    paper.base()['indicator'], [0.2] * 3 + [0.0] * 15, rtol=1e-6
  )
  assert hops(paper, 0, 1, 2) == hops(space, 0, 1, 2)
  keys = jax.random.split(jax.random.key(1), 50)
  drawn = jax.vmap(space.sample)(keys)['indicator'] > 0
  assert 0.9 < float(drawn[:, :3].mean()) and float(drawn[:, 3:].mean()) < 0.1
  assert space.binary() == {'indicator': True, 'scales': False}


def test_long_paths_cost_what_the_option_says(make):
  assert make().penalties(stack.stack([make().base()])) is None
  space = make(penalty=0.25, pinned=False)
  genomes = [space.base(), space.base()]
  genomes[1]['indicator'] = jnp.ones(space.slots)
  found = space.penalties(stack.stack(genomes))
  assert found.tolist() == [0.0, 0.25 * (space.cap - L)]


def test_what_cannot_be_a_space_is_refused(make):
  for given, message in (
    ({'sources': 'base'}, 'expected at least two different ones'),
    ({'sources': 'base,base'}, 'expected at least two different ones'),
    ({'sources': 'base,expret1'}, "with 'expret1'.*Did you mean 'expert1'"),
    ({'scales': 'matrx'}, "Got scales 'matrx'.*Did you mean 'matrix'"),
    ({'cap': 1}, 'Got cap 1'),
    ({'cap': 2}, 'Got cap 2 for paths that begin with the 3 layers'),
  ):
    with pytest.raises(ValueError, match=message):
      make(**given)
