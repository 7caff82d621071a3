"""Members that are paths, through all programs of the engine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.engine import forms
from evojax_llm.engine import plan as planning
from evojax_llm.engine.generation import generate_texts
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.layer_path import LayerPathSpace
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.genomes.space import load_base
from evojax_llm.models import expression
from evojax_llm.models import path_files
from evojax_llm.models import peft
from evojax_llm.models.cache import bytes_per_token
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.population import stack
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from tests.fitness.setting import make


def values_of(scores, member=0):
  rows = scores.tasks[0].loglikelihoods[member]
  return np.array([list(v.values()) for v in rows])


@pytest.fixture(scope='module')
def experts(tiny_gemma_folder, tiny_adapter_folders):
  """(base, its tokenizer, tasks, adapters)."""
  folder = tiny_gemma_folder()
  base = load_base(folder)
  choices = (('A', 'yes'), ('B', 'no'), ('C', 'no way'))
  items = [Item(str(i), f'is it {i}?', 'A', choices) for i in range(5)]
  tasks = [Task('choice', 'multiple_choice', tuple(items))]
  adapters = peft.load_adapters(tiny_adapter_folders(3), base.config)
  return base, Tokenizer.from_folder(folder), tasks, adapters


def test_paths_are_scored_together_as_their_models_are_alone(experts):
  base, tokenizer, tasks, adapters = experts
  space = LayerPathSpace(AdapterSpace(adapters, base), scales='hop', cap=6)
  population = stack.stack([space.base()] * 3)
  # Layers 0 and 1 of A, 2 and 3 of B, three times; the longest one first.
  on = ([2, 3, 6], [], [3])
  for m, slots in enumerate(on):
    indicator = population['indicator'].at[m, jnp.array(slots, int)].set(1.0)
    population['indicator'] = indicator
  population['scales'] = population['scales'].at[0].multiply(0.7)
  prompts = [f'is it the one that we {x}' for x in ('like', 'saw', 'have had')]
  found, texts = {}, {}
  for form in forms.FORMS:
    engine = make(tasks, tokenizer, form=form, members_per_group=2)
    scores = engine.evaluate(space, population)
    found[form] = [values_of(scores, m) for m in range(3)]
    runtime = Runtime(devices=jax.devices()[:1])
    texts[form] = generate_texts(
      space, population, tokenizer, prompts, 5, form=form, runtime=runtime
    )
  np.testing.assert_allclose(found['batched'], found['folded'], atol=2e-4)
  assert texts['batched'] == texts['folded']
  assert np.abs(found['folded'][0] - found['folded'][2]).max() > 1e-2
  path = space.express(stack.take(population, 0))
  assert path.hops.tolist() == [0, 2, 3, 2, 1, -1]
  shared = space.model()
  params, config = path_files.unroll(
    shared.params, shared.config, path.hops[:5], path.scales[:5]
  )
  alone = Expressed(Model(config, params))
  plain = expression.Weights(jax.tree.map(lambda leaf: leaf[None], params))
  scores = make(tasks, tokenizer).evaluate(alone, plain)
  np.testing.assert_allclose(found['folded'][0], values_of(scores), atol=2e-3)
  again = generate_texts(alone, plain, tokenizer, prompts, 5, runtime=runtime)
  assert texts['folded'][0] == again[0]


def test_a_plan_counts_the_cache_of_each_hop(experts):
  config = experts[0].config
  row, hops = (
    planning.make_plan(
      config, members=4, base_bytes=1 << 20, member_bytes=64, hops=hops,
      lengths=[(8, 8)], device=jax.devices()[0], budget=1 << 30,
    ).row_token
    for hops in (None, 5 * config.num_layers)
  )  # fmt: skip
  assert hops - row == 4 * bytes_per_token(config)


def test_paths_go_one_by_one_unless_they_are_to_go_together(
  experts, monkeypatch
):
  base, tokenizer, tasks, adapters = experts
  space = LayerPathSpace(AdapterSpace(adapters, base))
  population = stack.stack([space.base()] * 3)
  monkeypatch.setattr(planning, 'choose_form', lambda *_: ('batched', True))
  for form, expected in (('auto', 'folded'), ('batched', 'batched')):
    engine = make(tasks, tokenizer, form=form)
    assert engine.prepare(space, population).form == expected
  engine = make(tasks, tokenizer)
  assert engine.prepare(space.plain, space.plain.experts()).form == 'batched'
