"""Every system in every space of genomes, traced and not compiled."""

import jax
import jax.numpy as jnp
import pytest

from evojax_llm.genomes.space import SPACES
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs import run_state
from evojax_llm.runs import setup as setup_lib
from evojax_llm.runs.run_config import RunConfig
from evojax_llm.strategies import base
from evojax_llm.systems import genome as genome_config
from evojax_llm.systems import low_rank_es as low_rank_config
from evojax_llm.systems import m2n2 as m2n2_config
from evojax_llm.systems import model_swarms as swarms_config
from evojax_llm.systems import pareto as pareto_config
from evojax_llm.systems import pso_merging as pso_config
from tests import tiny
from tests.experiments import runs

CONFIGS = (
  (genome_config, 'genome_plus+merge=ties+chosen_by=pareto+max_population=24'),
  (swarms_config, 'model_swarms_as_published_light'),
  (low_rank_config, 'low_rank_es'),
  (pso_config, 'pso_merging'),
  (m2n2_config, 'm2n2+mutate=True'),
  (pareto_config, 'nsga2'),
)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory, tiny_gemma_folder, tiny_adapter_folders):
  task = tmp_path_factory.mktemp('tasks') / 'a.json'
  return {
    'model': str(tiny_gemma_folder('gemma2')),
    'adapters': ','.join(
      map(str, tiny_adapter_folders(3, modules=tiny.FEW_MODULES))
    ),
    'tasks': str(runs.write_task(task, dev=4, test=2)),
  }


@pytest.mark.parametrize('space', SPACES)
def test_a_round_leaves_a_state_of_the_same_shapes(inputs, space):
  first = genome_config.get_config()
  first.update(inputs, space=space)
  first = RunConfig.from_config(first)
  problem = setup_lib.load(first, inputs_lib.locate(first))
  key, tasks = jax.random.key(0), len(problem.tasks)
  for module, name in CONFIGS:
    config = module.get_config(name)
    config.space = space
    config = RunConfig.from_config(config)
    strategy = setup_lib.make_strategy(config, problem)
    params, size = strategy.default_params, config.strategy.population
    population = jax.tree.map(
      lambda leaf, size=size: jax.ShapeDtypeStruct(
        (size, *leaf.shape[1:]), leaf.dtype
      ),
      jax.eval_shape(problem.space.experts),
    )
    before = run_state.abstract_state(strategy, params, population, tasks)

    def play(state, strategy=strategy, params=params):
      members, asked = strategy.ask(key, state, params)
      slots = strategy.num_proposals
      items = jnp.zeros((slots, 1)) if strategy.sees == 'items' else None
      scores = jnp.zeros((slots,)), jnp.zeros((slots, tasks)), items
      scores = base.Scores(*scores)
      return strategy.tell(key, members, scores, asked, params)

    after = jax.eval_shape(play, before.strategy)
    assert after == before.strategy, name
