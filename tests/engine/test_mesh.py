"""Groups of members over the devices of a mesh (population, model)."""

import dataclasses

import jax
import numpy as np
import pytest

from evojax_llm.engine.collectives import collectives
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.models.transformer import init_params
from tests.fitness import setting


@pytest.fixture(scope='module')
def score():
  """score(devices, **options) -> (evaluator, scores) of four members."""
  config = dataclasses.replace(setting.tiny_config(), num_kv_heads=2)
  params = jax.tree.map(
    lambda leaf: leaf * 20.0, init_params(config, jax.random.key(0))
  )
  space = Expressed(Model(config, params))
  population = setting.population_of(4)
  shape = (4, 2, 2, config.num_kv_heads * config.head_dim)
  for name in ('k_proj', 'v_proj'):
    factors = population.factors['layers']['self_attn'][name]
    factors['b'] = np.resize(factors['b'], shape)
  tasks = [
    dataclasses.replace(task, dev=task.dev[:3]) for task in setting.tiny_tasks()
  ]

  def run(devices, **options):
    made = setting.make(tasks, devices=jax.devices()[:devices], **options)
    return made, made.evaluate(space, population)

  return run


@pytest.fixture(scope='module')
def whole(score):
  return score(1)[1]


def assert_same(found, whole):
  np.testing.assert_array_equal(found.fitness, whole.fitness)
  (values, texts), (expected, said) = setting.raw(found), setting.raw(whole)
  assert texts == said
  np.testing.assert_allclose(values, expected, atol=1e-4)


@pytest.mark.parametrize('form', ['folded', 'batched'])
def test_a_base_that_is_cut_gives_the_same_answers(score, whole, form):
  evaluator, found = score(4, model_devices=2, form=form)
  assert_same(found, whole)
  cut = 0
  for name, program in evaluator.runtime.programs:
    # Rows of the mesh do not wait for each other: members differ in what they
    # have left to do, and a permutation is of all devices.
    assert 'collective-permute' not in collectives(program), name
    cut += 'all-reduce' in collectives(program)
  assert cut
