import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import adapters as adapter_genomes
from evojax_llm.models import config as gemma_config
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.population import stack
from tests.genomes import experts


def test_expressing_applies_the_scale_to_b_alone():
  adapters = experts.adapter_set(3)
  space = adapter_genomes.AdapterSpace(adapters)
  population = space.experts()
  lora = jax.jit(jax.vmap(space.express))(population)
  for n in range(3):
    np.testing.assert_allclose(
      experts.delta(stack.take(lora, n)),
      experts.expert_delta(adapters, n),
      rtol=1e-5,
    )
  module = population['layers']['self_attn']['q_proj']
  expressed = lora['layers']['self_attn']['q_proj']
  np.testing.assert_array_equal(expressed['a'], module['a'])
  np.testing.assert_array_equal(expressed['b'][:, 0], 2 * module['b'][:, 0])


def test_genomes_and_what_they_express_have_the_type_asked_for():
  space = adapter_genomes.AdapterSpace(experts.adapter_set(2), jnp.bfloat16)
  population = space.experts()
  lora = jax.vmap(space.express)(population)
  for leaf in jax.tree.leaves([population, lora]):
    assert leaf.dtype == jnp.bfloat16


def test_an_exported_expert_comes_back(
  tmp_path, tiny_gemma_folder, tiny_adapter_folders
):
  base, folders = tiny_gemma_folder(), tiny_adapter_folders(2)
  config, _ = hub.load_config(base)
  assert isinstance(config, gemma_config.GemmaConfig)
  space = adapter_genomes.AdapterSpace(peft.load_adapters(folders, config))
  genome = stack.take(space.experts(), 1)
  out = space.export(genome, tmp_path / 'member', config, 'base')
  back = adapter_genomes.AdapterSpace(peft.load_adapters([out], config))
  lora, again = (
    s.express(g)
    for s, g in ((space, genome), (back, stack.take(back.experts(), 0)))
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), lora, again
  )
