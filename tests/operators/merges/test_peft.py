"""PEFT's own merges of factors, where they mean the same as ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.operators.merges import draws
from evojax_llm.population import stack
from tests.operators import layered
from tests.operators.merges import test_edges

merge_utils = pytest.importorskip(
  'peft.utils.merge_utils', reason='peft is not installed'
)
torch = pytest.importorskip('torch', reason='torch is not installed')

RNG = np.random.default_rng(5)
TENSORS = [RNG.normal(size=(6, 8)).astype(np.float32) for _ in range(3)]
WEIGHTS = np.asarray([0.5, 0.3, 0.9], np.float32)
DENSITY = 0.4


def ours(name, **given):
  parents = [jnp.asarray(x) for x in TENSORS]
  return test_edges.run(
    name,
    parents,
    jnp.zeros((6, 8), jnp.float32),
    weights=jnp.asarray(WEIGHTS),
    **given,
  )


def theirs(name, *more):
  function = getattr(merge_utils, name)
  tensors = [torch.from_numpy(x) for x in TENSORS]
  return function(tensors, torch.from_numpy(WEIGHTS), *more).numpy()


def density():
  return jnp.float32(DENSITY)


def test_linear():
  np.testing.assert_allclose(
    ours('task_arithmetic'), theirs('task_arithmetic'), rtol=1e-5, atol=1e-6
  )


def test_magnitude_prune():
  np.testing.assert_allclose(
    ours('magnitude_linear', density=density()),
    theirs('magnitude_prune', DENSITY),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  'election, method', [('unweighted', 'total'), ('frequency', 'frequency')]
)
def test_ties(election, method):
  made = ours('ties', density=density(), normalize='count', election=election)
  np.testing.assert_allclose(
    made, theirs('ties', DENSITY, method), rtol=1e-5, atol=1e-6
  )


@pytest.fixture
def our_masks(monkeypatch):
  """PEFT draws what we draw."""
  numbers = draws.decisions(test_edges.KEY, (6, 8), 3)
  masks = [np.asarray(x < draws.steps(density())) for x in numbers]

  def hand_out(chances):
    return torch.from_numpy(masks.pop(0).astype(np.float32))

  monkeypatch.setattr(torch, 'bernoulli', hand_out)


def test_dare_linear(our_masks):
  made = ours('dare_linear', density=density(), rescale='density')
  np.testing.assert_allclose(
    made, theirs('dare_linear', DENSITY), rtol=1e-4, atol=1e-6
  )


def test_dare_ties(our_masks):
  made = ours(
    'dare_ties',
    density=density(),
    rescale='density',
    normalize='count',
    election='unweighted',
  )
  np.testing.assert_allclose(
    made, theirs('dare_ties', DENSITY, 'total'), rtol=1e-4, atol=1e-6
  )


@pytest.mark.filterwarnings('ignore')  # what torch and PEFT warn of.
@pytest.mark.parametrize(
  'combination, method, options',
  [
    ('linear', 'task_arithmetic', {}),
    ('magnitude_prune', 'magnitude_linear', {}),
    ('ties', 'ties', {'normalize': 'count', 'election': 'unweighted'}),
  ],
)
def test_add_weighted_adapter(combination, method, options):
  """Factor by factor, with the roots of weight and scale (PEFT's own)."""
  import peft

  torch.manual_seed(0)
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=['0'], init_lora_weights=False
  )
  base = torch.nn.Sequential(torch.nn.Linear(20, 12, bias=False))
  model = peft.get_peft_model(base, config, adapter_name='one')
  model.add_adapter('two', config)
  weights = [0.7, 0.4]
  model.add_weighted_adapter(
    ['one', 'two'], weights, 'sum', combination, density=DENSITY
  )
  layer = model.base_model.model[0]

  def factors(name):
    one, two = (
      getattr(layer, f'lora_{x}')[name].weight.detach().numpy().T for x in 'AB'
    )
    return {'a': jnp.asarray(one), 'b': jnp.asarray(two)}

  parents = stack.stack([factors('one'), factors('two')])
  values = {'weights': jnp.sqrt(jnp.asarray(weights) * layer.scaling['one'])}
  if combination != 'linear':
    values['density'] = density()
  ours = layered.genome(
    method,
    parents,
    jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), parents),
    parameters=values,
    **options,
  )
  theirs = factors('sum')
  for name in ('a', 'b'):
    np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
