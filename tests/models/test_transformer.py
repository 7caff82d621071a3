"""What must hold of the forward pass whatever the weights are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.models import hub
from evojax_llm.models.cache import bytes_per_token
from evojax_llm.models.cache import init_cache
from evojax_llm.models.expression import LowRank
from evojax_llm.models.expression import fold
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.transformer import Transformer
from evojax_llm.models.transformer import init_params
from tests.models import cases
from tests.models import forward

# Sliding and full layers in no order, soft caps; and norms on queries and keys.
MODELS = (cases.CASES[3], cases.CASES[5])


@pytest.fixture(scope='module', params=MODELS, ids=str)
def model(request, tmp_path_factory):
  folder = cases.write_model(tmp_path_factory.mktemp('m') / 'm', request.param)
  return request.param, *hub.load_checkpoint(folder)


@pytest.fixture(scope='module')
def population(model, tmp_path_factory):
  """The adapters of three members, with P behind L as the layers' scan asks."""
  case, config, _ = model
  root = tmp_path_factory.mktemp('adapters')
  adapters = load_adapters(
    [cases.write_adapter(root / str(i), case, seed=i) for i in range(3)], config
  )
  members = [forward.member(adapters, n) for n in range(3)]
  return members, jax.tree.map(lambda *x: np.stack(x, 1), *members)


@functools.partial(jax.jit, static_argnames='config')
def _apply(config, params, tokens, positions, cache=None, lora=None):
  """Logits and the cache, of one call."""
  variables = {'params': params}
  if lora is not None:
    variables['lora'] = lora
  hidden, cache = Transformer(config).apply(variables, tokens, positions, cache)
  logits = Transformer(config).apply(
    {'params': params}, hidden, method='unembed'
  )
  return logits, cache


def test_chunks_through_the_cache_are_one_pass(model):
  case, config, params = model
  tokens = cases.tokens(case)
  positions = forward.positions(np.ones_like(tokens))
  whole = forward.logits(config, params, tokens)
  # More slots than tokens: empty ones must stay unseen.
  cache = init_cache(config, 2, 20)
  parts = []
  for chunk in np.split(np.arange(tokens.shape[1]), [5, 9]):
    out, cache = _apply(
      config, params, tokens[:, chunk], positions[:, chunk], cache
    )
    parts.append(out)
  np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-5)
  assert int(cache.index) == tokens.shape[1]
  np.testing.assert_array_equal(cache.positions[:, :13], positions)
  assert (np.asarray(cache.positions)[:, 13:] == -1).all()


def test_no_token_sees_a_later_one(model):
  case, config, params = model
  tokens = cases.tokens(case)
  other = tokens.copy()
  other[:, 7:] = (other[:, 7:] + 5) % 50 + 3
  a, b = (forward.logits(config, params, t) for t in (tokens, other))
  np.testing.assert_array_equal(a[:, :7], b[:, :7])
  assert np.abs(a[:, 7:] - b[:, 7:]).max(-1).min() > 1e-3


def test_rows_do_not_mix(model):
  case, config, params = model
  tokens = cases.tokens(case)
  both = forward.logits(config, params, tokens)
  turned = forward.logits(config, params, tokens[::-1])
  np.testing.assert_allclose(both, turned[::-1], rtol=0, atol=1e-5)


def test_what_padding_holds_does_not_matter(model):
  case, config, params = model
  tokens = cases.tokens(case)
  valid = np.ones_like(tokens)
  valid[0, :4] = valid[1, -3:] = 0
  a, b = (
    forward.logits(config, params, np.where(valid, tokens, fill), valid)
    for fill in (0, 40)
  )
  real = valid.astype(bool)
  np.testing.assert_array_equal(a[real], b[real])
  assert np.isfinite(a).all()


def test_population_is_a_loop_over_members(model, population):
  case, config, params = model
  members, stacked = population
  tokens = cases.tokens(case)
  positions = forward.positions(np.ones_like(tokens))
  together = jax.jit(
    jax.vmap(
      lambda lora: _apply(config, params, tokens, positions, lora=lora)[0],
      in_axes=(jax.tree.map(lambda _: 1, stacked),),
    )
  )(stacked)
  for n, lora in enumerate(members):
    alone = forward.logits(config, params, tokens, lora=lora)
    np.testing.assert_allclose(together[n], alone, rtol=0, atol=1e-4)
    folded = forward.logits(config, fold(params, LowRank(lora)), tokens)
    np.testing.assert_allclose(together[n], folded, rtol=0, atol=1e-4)


def test_bf16_activations_have_a_bf16_cache(model):
  case, config, params = model
  tokens = cases.tokens(case)
  cache = init_cache(config, 2, 16, jnp.bfloat16)
  hidden, cache = jax.eval_shape(
    Transformer(config, jnp.bfloat16).apply,
    {'params': params},
    tokens,
    forward.positions(np.ones_like(tokens)),
    cache,
  )
  assert hidden.dtype == cache.k.dtype == cache.v.dtype == jnp.bfloat16
  size = bytes_per_token(config, jnp.bfloat16) * 2 * 16
  assert size == 2 * (cache.k.size + cache.v.size)


def test_fold_keeps_types_and_other_leaves(model, population):
  _, _, params = model
  lora = population[0][0]
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  folded = fold(params, LowRank(lora))
  attention = folded['layers']['self_attn']
  assert attention['q_proj']['kernel'].dtype == jnp.bfloat16
  assert (
    attention['k_proj']['kernel']
    is (params['layers']['self_attn']['k_proj']['kernel'])
  )
  pair = lora['layers']['self_attn']['q_proj']
  kernel = params['layers']['self_attn']['q_proj']['kernel']
  expected = kernel.astype(jnp.float32) + pair['a'] @ pair['b']
  np.testing.assert_allclose(
    attention['q_proj']['kernel'].astype(jnp.float32), expected, rtol=2**-7,
    atol=1e-6,
  )  # fmt: skip


def test_random_parameters(model):
  _, config, params = model
  drawn = init_params(config, jax.random.key(3))
  assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
  sizes = [x.size for x in jax.tree.leaves(drawn)]
  assert sum(sizes) == config.num_params
  kernel = np.asarray(drawn['layers']['mlp']['up_proj']['kernel'])
  assert 0.018 < kernel.std() < 0.022
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01  # Layers differ.
  assert not np.any(drawn['final_norm']['scale'])
