"""Models whose layers differ in shape: folders, adapters, programs, refusals.

Logits and texts are compared in test_golden.py and test_parity.py.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.layer_path import LayerPathSpace
from evojax_llm.genomes.space import make_space
from evojax_llm.models import hub
from evojax_llm.models import stacked_layers
from evojax_llm.models.config_json import load_config
from evojax_llm.models.errors import ModelError
from evojax_llm.models.families import config_from_hf
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.peft import save_adapter
from evojax_llm.models.transformer import Transformer
from evojax_llm.models.transformer import init_params
from tests.models import cases

E2B, K_IS_V = (
  next(c for c in cases.CASES if c.name == name)
  for name in ('gemma4_e2b', 'gemma4_31b')
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return cases.write_model(tmp_path_factory.mktemp('e2b') / 'm', E2B)


def _config(case, **changes):
  options = case.options | changes
  return config_from_hf(
    cases.hf_config(dataclasses.replace(case, options=options))
  )


def test_layers_and_what_they_have():
  config = _config(E2B)
  stacks = {stack.name: stack for stack in config.stacks}
  assert stacks['sliding'].layers == (0, 1) and stacks['full'].layers == (2,)
  assert stacks['full_shared'].layers == (4, 6)
  assert config.key_layers() == (0, 1, 2, 1, 2, 1, 2)
  shapes = config.linear_shapes()
  assert shapes['full', 'self_attn', 'k_proj'] == (24, 12)
  assert shapes['full_shared', 'mlp', 'up_proj'] == (24, 80)
  assert ('full_shared', 'self_attn', 'k_proj') not in shapes
  k_is_v = _config(K_IS_V)
  assert k_is_v.linear_shapes()['full', 'self_attn', 'k_proj'] == (24, 16)
  assert ('full', 'self_attn', 'v_proj') not in k_is_v.linear_shapes()
  for one in (config, k_is_v):
    params = jax.eval_shape(lambda one=one: init_params(one, jax.random.key(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sum(sizes) == one.num_params


def test_folders_with_keys_that_no_layer_reads(folder, tmp_path):
  """Some store k and v of layers that see those of others, some do not."""
  tensors = load_file(folder / 'model.safetensors')
  for layer in (3, 4, 5, 6):
    for name in ('k_proj', 'v_proj', 'k_norm'):
      odd = f'model.layers.{layer}.self_attn.{name}.weight'
      assert odd not in tensors
      tensors[odd] = np.ones(3, np.float32)
  (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  save_file(tensors, tmp_path / 'model.safetensors')
  found, expected = (hub.load_checkpoint(f)[1] for f in (tmp_path, folder))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  tensors['model.layers.0.self_attn.k_proj.bias'] = np.ones(3, np.float32)
  save_file(tensors, tmp_path / 'model.safetensors')
  with pytest.raises(ModelError, match='extra tensors: .*k_proj.bias'):
    hub.load_checkpoint(tmp_path)


@pytest.mark.parametrize('tower', [True, False])
def test_multimodal_folders(tower, folder, tmp_path):
  """The text part is read; it is written with the towers that are there."""
  text = json.loads((folder / 'config.json').read_text())
  tensors = {
    name.replace('model.', 'model.language_model.'): tensor
    for name, tensor in load_file(folder / 'model.safetensors').items()
  }
  towers = ['model.vision_tower.x.weight', 'model.embed_audio.x.weight']
  tensors |= dict.fromkeys(towers * tower, np.ones(3, np.float32))
  save_file(tensors, tmp_path / 'model.safetensors')
  raw = {'model_type': 'gemma4', 'text_config': text}
  (tmp_path / 'config.json').write_text(json.dumps(raw))
  config, params = hub.load_checkpoint(tmp_path)
  hub.save_checkpoint(tmp_path / 'out', params, config, tmp_path)
  written, again = hub.load_checkpoint(tmp_path / 'out')
  assert written == config == load_config(folder)[0]
  jax.tree.map(np.testing.assert_array_equal, again, params)
  raw = json.loads((tmp_path / 'out' / 'config.json').read_text())
  stored = load_file(tmp_path / 'out' / 'model.safetensors')
  if tower:
    assert raw['model_type'] == 'gemma4' and set(stored) == set(tensors)
  else:
    assert raw['model_type'] == 'gemma4_text'
    assert raw['architectures'] == ['Gemma4ForCausalLM']
    assert 'model.layers.0.layer_scalar' in stored


def test_adapters(folder, tmp_path):
  """Layers without k and v have no factors of them."""
  config, _ = load_config(folder)
  given = cases.write_adapter(tmp_path / 'a', E2B)
  adapters = load_adapters([given], config)
  assert 'v_proj' in adapters.factors['layers']['full']['self_attn']
  assert 'v_proj' not in adapters.factors['layers']['full_shared']['self_attn']
  factors = jax.tree.map(lambda leaf: leaf[0], adapters.factors)
  # One stack alone: PEFT expects the others, as zeros.
  del factors['layers']['sliding_shared']
  out = save_adapter(
    tmp_path / 'out', factors, adapters.scale, config, 'b', folder
  )
  again = load_adapters([out], config)
  product = [
    pair['a'][0] @ pair['b'][0]
    for pair in (
      again.factors['layers'][name]['mlp']['down_proj']
      for name in ('full_shared', 'sliding_shared')
    )
  ]
  assert product[0].any() and not product[1].any()
  tensors = load_file(given / 'adapter_model.safetensors')
  name = 'base_model.model.model.layers.{}.self_attn.v_proj.lora_{}.weight'
  for factor in 'AB':
    tensors[name.format(3, factor)] = tensors[name.format(1, factor)]
  save_file(tensors, given / 'adapter_model.safetensors')
  with pytest.raises(ModelError, match='layer 3 has only q_proj, o_proj'):
    load_adapters([given], config)


@pytest.mark.parametrize(
  'stacks, found',
  [
    ('ssssfssssf', [([('s', 4), ('f', 1)], 2)]),
    ('sssf', [([('s', 3)], 1), ([('f', 1)], 1)]),
    ('sfsfsstt', [([('s', 1), ('f', 1)], 2), ([('s', 2)], 1), ([('t', 2)], 1)]),
    ('ssfssfttgttgttg', [([('s', 2), ('f', 1)], 2), ([('t', 2), ('g', 1)], 3)]),
  ],
)
def test_pattern(stacks, found):
  assert stacked_layers.pattern(stacks) == found


def test_programs_do_not_grow_with_depth():
  """One body for each run of layers in the pattern, however often it comes."""
  kinds = [cases.SLIDING, cases.SLIDING, cases.FULL]

  def text(times):
    config = _config(
      K_IS_V, num_hidden_layers=3 * times, layer_types=kinds * times
    )
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    made = jax.make_jaxpr(
      lambda params, tokens: Transformer(config).apply(
        {'params': params}, tokens, tokens
      )
    )(params, tokens)
    return str(made).count('dot_general')

  # Six maps (or seven) and two products of attention of two kinds of layers.
  assert text(2) == text(4) == 6 + 7 + 4


@pytest.mark.parametrize(
  'case, change, part',
  [
    (
      K_IS_V,
      dict(enable_moe_block=True, num_experts=4, top_k_experts=2),
      'enable_moe_block is true.*26B-A4B.*E2B',
    ),
    (E2B, dict(num_kv_shared_layers=6), 'num_kv_shared_layers is 6 of 7'),
    (E2B, dict(use_bidirectional_attention='all'), "is 'all'; only causal"),
    (E2B, dict(vocab_size_per_layer_input=60), 'vocab_size_per_layer_input'),
  ],
  ids=str,
)
def test_what_is_refused(case, change, part):
  with pytest.raises(ModelError, match=part):
    _config(case, **change)


def test_what_needs_layers_that_are_alike(folder):
  class Plain:
    names = ('a',)

    def model(self):
      return hub.Model(load_config(folder)[0], {})

  with pytest.raises(ValueError, match='gemma4_text model, whose'):
    LayerPathSpace(Plain())


def test_groups_of_layers_in_stacks(folder, tmp_path):
  """A gene of a layer is that of its place in the model."""
  config, _ = load_config(folder)
  adapter = cases.write_adapter(tmp_path / 'a', E2B)
  how = dict(groups='layer', method='task_arithmetic', evolve='weights')
  space = make_space('merged', folder, [adapter], **how)
  weights = jnp.linspace(0.2, 0.8, config.num_layers)
  genome = space.genes.genome({'weights': weights[:, None]})
  found = space.express(genome).factors['layers']
  one = AdapterSpace(load_adapters([adapter], config), space.model())
  given = jax.tree.map(lambda leaf: leaf[0], one.experts())
  given = one.express(given).factors['layers']
  for stack in config.stacks:
    mixed, own = (
      tree[stack.name]['mlp']['down_proj'] for tree in (found, given)
    )
    each = weights[np.array(stack.layers)][:, None, None]
    np.testing.assert_allclose(mixed['a'], own['a'] * each, rtol=1e-5)
