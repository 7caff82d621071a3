"""Adapter folders: what is read, what is refused."""

import math
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from evojax_llm.models import hub
from evojax_llm.models.errors import ModelError
from evojax_llm.models.peft import load_adapters
from tests import tiny
from tests.models import damage

KEY = 'base_model.model.model.layers.1.self_attn.q_proj'


@pytest.fixture(scope='module')
def base(tiny_gemma_folder):
  return tiny_gemma_folder('gemma2')


@pytest.fixture(scope='module')
def config(base):
  return hub.load_config(base)[0]


@pytest.fixture
def folder(base, tmp_path):
  """An adapter of the tiny Gemma 2 that a test may damage."""
  return tiny.write_adapter(tmp_path / 'adapter', base, rank=4, alpha=8)


def _edit_config(folder, **changes):
  damage.edit_json(folder / 'adapter_config.json', **changes)


def _edit_tensors(folder, edit):
  damage.edit_tensors(folder / 'adapter_model.safetensors', edit)


def _refused(folder, config, *parts):
  damage.refused(lambda: load_adapters([folder], config), *parts)


def _deltas(adapters, n):
  """scale * A B of one expert, by module: (L, in, out)."""
  out = {}
  for block, modules in adapters.factors['layers'].items():
    for name, pair in modules.items():
      scale = adapters.scale['layers'][block][name][:, None, None]
      out[name] = pair['a'][n] @ (scale * pair['b'][n])
  return out


def test_factors_are_transposed_and_stacked(folder, config):
  adapters = load_adapters([folder], config)
  assert adapters.names == ('adapter',) and adapters.rank == 4
  stored = load_file(folder / 'adapter_model.safetensors')
  pair = adapters.factors['layers']['self_attn']['q_proj']
  assert pair['a'].shape == (1, 2, 32, 4) and pair['b'].shape == (1, 2, 4, 64)
  assert pair['a'].dtype == pair['b'].dtype == np.float32
  np.testing.assert_array_equal(
    pair['a'][0, 1], stored[f'{KEY}.lora_A.weight'].T
  )
  np.testing.assert_array_equal(
    pair['b'][0, 1], stored[f'{KEY}.lora_B.weight'].T
  )
  scale = adapters.scale['layers']['self_attn']['q_proj']
  assert scale.dtype == np.float32
  np.testing.assert_array_equal(scale, [2.0, 2.0])


def test_experts_of_other_rank_scale_and_modules(base, config, tmp_path):
  first = tiny.write_adapter(
    tmp_path / 'x' / 'final', base, rank=2, alpha=6, modules=('q_proj',)
  )
  second = tiny.write_adapter(
    tmp_path / 'y' / 'final', base, rank=5, alpha=4, seed=1,
    modules=('q_proj', 'up_proj'), layers_to_transform=[1],
  )  # fmt: skip
  _edit_tensors(
    second,
    lambda s: [s.pop(n) for n in list(s) if 'layers.0' in n],
  )
  both = load_adapters([first, second], config)
  assert both.names == ('x/final', 'y/final') and both.rank == 5
  assert _deltas(both, 0).keys() == {'q_proj', 'up_proj'}
  np.testing.assert_array_equal(
    both.scale['layers']['self_attn']['q_proj'], [3.0, 3.0]
  )
  np.testing.assert_array_equal(
    both.scale['layers']['mlp']['up_proj'], np.float32([0.8, 0.8])
  )
  for n, folder in enumerate((first, second)):
    alone = load_adapters([folder], config)
    together = _deltas(both, n)
    for name, delta in _deltas(alone, 0).items():
      np.testing.assert_allclose(
        together.pop(name), delta, rtol=1e-6, atol=1e-7
      )
    assert not any(np.any(delta) for delta in together.values())
  q_proj = both.factors['layers']['self_attn']['q_proj']
  # Padding is exactly nothing, and the first expert keeps its bits.
  assert not q_proj['a'][0, :, :, 2:].any() and not q_proj['b'][0, :, 2:].any()
  assert not q_proj['a'][1, 0].any() and not q_proj['b'][1, 0].any()
  stored = load_file(first / 'adapter_model.safetensors')
  np.testing.assert_array_equal(
    q_proj['b'][0, 1, :2], stored[f'{KEY}.lora_B.weight'].T
  )


def test_equal_scales_keep_every_bit(base, config, tmp_path):
  """3 / 5 has no exact binary form: multiplying and dividing would show."""
  folders = [
    tiny.write_adapter(tmp_path / str(i), base, rank=5, alpha=3, seed=i)
    for i in range(2)
  ]
  both = load_adapters(folders, config)
  for n, folder in enumerate(folders):
    alone = load_adapters([folder], config)
    jax.tree.map(
      lambda x, y, n=n: np.testing.assert_array_equal(x[n], y[0]),
      both.factors,
      alone.factors,
    )


def test_a_silent_expert_gives_no_scale(base, config, tmp_path):
  folders = [
    tiny.write_adapter(tmp_path / str(i), base, rank=2, alpha=alpha, seed=i)
    for i, alpha in enumerate([0, 6])
  ]
  adapters = load_adapters(folders, config)
  np.testing.assert_array_equal(
    adapters.scale['layers']['mlp']['up_proj'], [3.0, 3.0]
  )
  assert not _deltas(adapters, 0)['up_proj'].any()
  assert _deltas(adapters, 1)['up_proj'].any()


def test_scales_too_far_apart(base, config, tmp_path):
  folders = [
    tiny.write_adapter(tmp_path / str(i), base, alpha=alpha)
    for i, alpha in enumerate([1e-39, 4])
  ]
  damage.refused(lambda: load_adapters(folders, config), folders[1], 'apart')


@pytest.mark.parametrize(
  'options, expected',
  [
    (dict(), 2.0),
    (dict(use_rslora=True), 4.0),
    (dict(alpha_pattern={'q_proj': 2}), 0.5),
    (dict(alpha_pattern={'layers.0.self_attn.q_proj': 2}), [0.5, 2.0]),
    (dict(alpha_pattern={'model.layers.1..*': 12, 'q_proj': 2}), [0.5, 3.0]),
    (dict(alpha_pattern={'proj': 2, 'self_attn': 2}), 2.0),
    (dict(lora_alpha=3), 0.75),
    (dict(lora_alpha=math.pi), math.pi / 4),
  ],
  ids=str,
)
def test_scales(options, expected, base, config, tmp_path):
  folder = tiny.write_adapter(tmp_path / 'a', base, **{'alpha': 8} | options)
  scale = load_adapters([folder], config).scale
  np.testing.assert_array_equal(
    scale['layers']['self_attn']['q_proj'],
    np.broadcast_to(np.float32(expected), 2),
  )


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_read_exactly(dtype, base, config, tmp_path):
  folder = tiny.write_adapter(tmp_path / 'a', base, dtype=dtype)
  pair = load_adapters([folder], config).factors['layers']['self_attn'][
    'q_proj'
  ]
  stored = load_file(folder / 'adapter_model.safetensors')
  expected = stored[f'{KEY}.lora_A.weight'].astype(np.float32).T
  np.testing.assert_array_equal(pair['a'][0, 1], expected)


def test_adapters_of_the_vision_side_are_ignored(folder, config):
  expected = load_adapters([folder], config)

  def edit(stored):
    for name in list(stored):
      to = name.replace('model.layers', 'model.language_model.layers')
      stored[to] = stored.pop(name)
    stored['base_model.model.model.vision_tower.x.lora_A.weight'] = np.ones(2)

  _edit_tensors(folder, edit)
  got = load_adapters([folder], config)
  jax.tree.map(np.testing.assert_array_equal, got.factors, expected.factors)


def test_the_same_folder_twice(folder, config):
  assert load_adapters([folder] * 2, config).names == ('adapter', 'adapter#1')


def test_the_same_adapter_twice_is_told(folder, base, config, tmp_path, caplog):
  copy = shutil.copytree(folder, tmp_path / 'copy')
  other = tiny.write_adapter(tmp_path / 'other', base, seed=1)
  load_adapters([folder, other], config)
  assert not caplog.text
  load_adapters([folder, other, copy], config)
  assert 'copy is the same adapter as adapter' in caplog.text


def _rename(change):
  """An edit of the tensors that renames all of them."""

  def edit(stored):
    for name in list(stored):
      stored[change(name)] = stored.pop(name)

  return edit


@pytest.mark.parametrize(
  'config_edit, tensors_edit',
  [
    (dict(bias='lora_only'), None),
    (dict(bias='all'), None),
    (dict(future=None, other=False, more={}, last=[]), None),
    (dict(layers_to_transform=[0, 1], layers_pattern='layers'), None),
    (dict(exclude_modules=r'.*vision(_tower)*.*', revision='x'), None),
    (dict(target_modules=r'.*?(?:model|text).*?(?:attn|mlp).*?proj.*?'), None),
    ({}, _rename(lambda name: name.replace('.weight', '.code.weight'))),
    ({}, lambda s: s.update({n: t.astype(np.float64) for n, t in s.items()})),
  ],
)  # fmt: skip
def test_what_changes_nothing_is_taken(
  config_edit, tensors_edit, folder, config
):
  expected = load_adapters([folder], config)
  _edit_config(folder, **config_edit)
  if tensors_edit:
    _edit_tensors(folder, tensors_edit)
  got = load_adapters([folder], config)
  jax.tree.map(np.testing.assert_array_equal, got.factors, expected.factors)


# Refusals.


def test_no_folder(config, tmp_path):
  _refused(tmp_path / 'absent', config, 'does not exist', 'PEFT adapter folder')
  with pytest.raises(ModelError, match='expected a list'):
    load_adapters(str(tmp_path), config)
  with pytest.raises(ModelError, match='No adapter'):
    load_adapters([], config)


def test_no_config(folder, config):
  outer = folder.parent / 'outer'
  shutil.copytree(folder, outer / 'default')
  _refused(outer, config, 'no such file', f'Did you mean {outer / "default"}')
  with pytest.raises(ModelError, match='is an adapter folder; expected'):
    hub.load_config(folder)
  (folder / 'adapter_config.json').write_text('{')
  _refused(folder, config, folder / 'adapter_config.json', 'not valid JSON')


@pytest.mark.parametrize('name', ['adapter_model.bin', 'pytorch_model.bin'])
def test_pickle_is_never_opened(name, folder, config):
  (folder / 'adapter_model.safetensors').rename(folder / name)
  _refused(folder, config, folder / name, 'pickle', 'adapter_model.safetensors')


def test_no_tensors(folder, config):
  (folder / 'adapter_model.safetensors').unlink()
  _refused(folder, config, 'adapter_model.safetensors', 'no such file')


def test_truncated(folder, config):
  path = folder / 'adapter_model.safetensors'
  path.write_bytes(path.read_bytes()[:-7])
  _refused(folder, config, path, 'truncated or damaged')


def test_rank_of_file_and_configuration(folder, config):
  _edit_config(folder, r=3)
  _refused(
    folder, config, 'down_proj.lora_A.weight', '(4, 48)', '(3, 48)', 'rank 3'
  )
  _edit_config(folder, r=4, rank_pattern={'up_proj': 8})
  _refused(folder, config, 'up_proj.lora_A.weight', '(8, 32)', 'rank 8')


def test_adapter_of_a_wider_base(folder, tiny_gemma_folder):
  other = hub.load_config(tiny_gemma_folder('gemma2', hidden_size=40))[0]
  _refused(
    folder, other, 'down_proj.lora_B', '(32, 4)', '(40, 4)', 'another base'
  )


def test_adapter_of_other_heads(folder, tiny_gemma_folder):
  other = hub.load_config(tiny_gemma_folder('gemma2', head_dim=8))[0]
  _refused(folder, other, 'k_proj.lora_B', '(32, 4)', '(16, 4)', 'another base')


def test_adapter_of_a_deeper_base(folder, tiny_gemma_folder):
  other = hub.load_config(tiny_gemma_folder('gemma2', num_hidden_layers=1))[0]
  _refused(folder, other, 'layer 1', '1 layers', 'another base')


def test_adapter_of_a_shallower_base(folder, tiny_gemma_folder):
  other = hub.load_config(tiny_gemma_folder('gemma2', num_hidden_layers=4))[0]
  _refused(folder, other, 'model.layers.2', '14 of 28', 'another base')


def test_missing_factors(folder, config):
  _edit_tensors(folder, lambda s: s.pop(f'{KEY}.lora_B.weight'))
  _refused(folder, config, 'model.layers.1.self_attn.q_proj', 'expected both')
  _edit_tensors(folder, lambda s: s.pop(f'{KEY}.lora_A.weight'))
  _refused(folder, config, 'model.layers.1.self_attn.q_proj', '1 of 14')


def test_factors_that_the_configuration_does_not_name(folder, config):
  _edit_config(folder, target_modules=['q_proj'])
  _refused(folder, config, 'k_proj', '(12 in all)', 'does not name')


@pytest.mark.parametrize(
  'name, part',
  [
    ('base_model.model.lm_head.lora_A.weight', 'lm_head'),
    ('base_model.model.model.embed_tokens.lora_embedding_A', 'embed_tokens'),
    ('base_model.model.model.embed_tokens.weight', 'has 4 rows, the base 363'),
    ('base_model.model.lm_head.weight', 'save_embedding_layers'),
    (f'{KEY}.bias', 'biases'),
    (f'{KEY}.lora_magnitude_vector', 'DoRA'),
    (f'{KEY}.lora_B.bias', 'lora_B.bias'),
    ('base_model.model.model.layers.0.mlp.router.lora_A.weight', 'router'),
  ],
)
def test_other_tensors(name, part, folder, config):
  def edit(stored):
    stored[name] = np.zeros((4, 32), np.float32)
    if name.endswith('lora_A.weight'):
      stored[name.replace('_A', '_B')] = np.zeros((32, 4), np.float32)

  _edit_tensors(folder, edit)
  _refused(folder, config, 'adapter_model.safetensors', part)


def test_no_factors(folder, config):
  save_file({}, folder / 'adapter_model.safetensors')
  _refused(folder, config, 'has no lora_A')


def test_factors_of_two_adapters(folder, config):
  def edit(stored):
    name = f'{KEY}.lora_A.weight'
    stored[name.replace('.weight', '.code.weight')] = stored.pop(name)

  _edit_tensors(folder, edit)
  _refused(folder, config, 'several adapters', 'None, code')


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e39])
def test_factors_that_are_not_finite(value, folder, config):
  name = f'{KEY}.lora_B.weight'

  def edit(stored):
    stored[name] = np.full((64, 4), value)

  _edit_tensors(folder, edit)
  _refused(folder, config, folder / 'adapter_model.safetensors', name, 'finite')


def test_integer_factors(folder, config):
  _edit_tensors(
    folder,
    lambda s: s.update({f'{KEY}.lora_A.weight': np.ones((4, 32), np.int8)}),
  )
  _refused(folder, config, f'{KEY}.lora_A.weight', 'I8')
