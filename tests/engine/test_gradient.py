"""Gradient steps against a plain loop of optax, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evojax_llm.engine import gradient
from evojax_llm.engine import gradient_losses
from evojax_llm.engine import gradient_rows
from evojax_llm.engine import unembedding
from evojax_llm.engine.gradient_member import Settings
from evojax_llm.engine.plan import MemoryPlanError
from evojax_llm.engine.runtime import Runtime
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import make_space
from evojax_llm.models.expression import Weights
from evojax_llm.models.expression import variables
from evojax_llm.models.peft import load_adapters
from evojax_llm.models.transformer import Transformer
from evojax_llm.population import stack
from evojax_llm.tasks.training_data import EncodedRow
from tests import tiny
from tests.fitness.setting import population_of
from tests.fitness.setting import tiny_config
from tests.fitness.setting import tiny_params
from tests.fitness.setting import tiny_space

TEXTS = [
  EncodedRow((1, 20, 21), ((30, 31, 2),)),
  EncodedRow((1, 40, 41, 42, 43), ((50, 2),)),
  EncodedRow((1, 60), ((70, 71, 72, 73, 2),)),
]
PAIRS = [
  EncodedRow((1, 20, 21), ((30, 31, 2), (33, 2))),
  EncodedRow((1, 40, 41, 42), ((50, 2), (51, 52, 53, 2))),
]
HOW = dict(steps=3, batch=3, schedule='cosine', warmup=0.4, clip=1.0)


@pytest.fixture(scope='module')
def population():
  return jax.tree.map(jnp.asarray, population_of(5))


def plain_logprobs(params, expressed, rows):
  """Sums (rows, texts) over completions, and how many tokens they have."""
  texts = [[*r.prompt, *c] for r in rows for c in r.completions]
  starts = [len(r.prompt) for r in rows for _ in r.completions]
  width = max(map(len, texts))
  tokens = np.array([t + [0] * (width - len(t)) for t in texts], np.int32)
  ends = np.array([[len(t)] for t in texts])
  column = np.arange(width)
  positions = np.where(column < ends, column, -1).astype(np.int32)
  learnt = (column >= np.array(starts)[:, None]) & (column < ends)
  model, own = Transformer(tiny_config()), variables(params, expressed)
  hidden, _ = model.apply(own, jnp.asarray(tokens), jnp.asarray(positions))
  logits = model.apply({'params': own['params']}, hidden, method='unembed')
  found = jax.nn.log_softmax(logits[:, :-1])
  found = jnp.take_along_axis(found, tokens[:, 1:, None], axis=-1)[..., 0]
  summed = jnp.where(learnt[:, 1:], found, 0.0).sum(axis=1)
  return summed.reshape(len(rows), -1), np.float32(learnt.sum())


def plain_sft(params, expressed, _):
  summed, count = plain_logprobs(params, expressed, TEXTS)
  return -summed.sum() / count


def plain_dpo(params, expressed, first):
  """Of pairs, with beta 0.3, from the member before its first step."""
  own = plain_logprobs(params, expressed, PAIRS)[0]
  reference = plain_logprobs(params, first, PAIRS)[0]
  apart = (own - reference)[:, 0] - (own - reference)[:, 1]
  return -jnp.log(jax.nn.sigmoid(0.3 * apart)).mean()


def plain_loop(loss, first, make_optimizer, rates, steps=3):
  """What optax makes of members of some rates, written out."""

  @jax.jit
  def step(member, state, first, rate):
    found, gradient_ = jax.value_and_grad(loss, argnums=1)(
      tiny_params(), member, first
    )
    with jax.numpy_dtype_promotion('standard'):
      updates, state = make_optimizer(rate).update(gradient_, state, member)
      return optax.apply_updates(member, updates), state, found

  results = []
  for start, rate in zip(first, rates, strict=True):
    member, losses = start, []
    state = jax.jit(make_optimizer(rate).init)(member)
    for _ in range(steps):
      member, state, found = step(member, state, start, rate)
      losses.append(found)
    results.append((member, np.array(losses)))
  return results


def assert_close(one, two, rtol=2e-4, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    one,
    two,
  )


def rate(lr):
  """Half a cosine of three steps, after two in which the rate rises."""
  factors = jnp.asarray([0.0, 0.5, 1.0], jnp.float32)
  return lambda step: lr * factors[step]


def test_members_learn_as_in_a_plain_loop_of_optax(population):
  runtime = Runtime()
  steps = gradient.GradientSteps(runtime, tiny_space(), TEXTS, Settings(**HOW))
  which, lr = np.array([1, 3, 4]), np.array([3e-3, 1e-2, 1e-3], np.float32)
  learnt = steps.steps(population, which, jax.random.key(1), {'lr': lr})
  for member in (0, 2):
    jax.tree.map(
      np.testing.assert_array_equal,
      stack.take(learnt, member),
      stack.take(population, member),
    )
  read = sum(len(r.prompt) + len(r.completions[0]) for r in TEXTS)
  assert runtime.ledger.gradient_tokens == 3 * 3 * 3 * read
  assert runtime.ledger.tokens == runtime.ledger.gradient_tokens
  plain = plain_loop(
    plain_sft,
    [stack.take(population, int(member)) for member in which],
    lambda lr: optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(rate(lr))
    ),
    lr,
  )
  for slot, (wanted, losses) in enumerate(plain):
    assert losses[2] != losses[0]
    np.testing.assert_allclose(steps.losses[slot], losses, rtol=1e-5)
    assert_close(stack.take(learnt, int(which[slot])), wanted)

  # Alone, and on the host, a member learns the same.
  host = jax.device_get(population)
  kept = jax.tree.map(np.copy, host)
  alone = steps.steps(host, [3], jax.random.key(1), {'lr': lr[1:2]})
  assert isinstance(jax.tree.leaves(alone)[0], np.ndarray)
  jax.tree.map(np.testing.assert_array_equal, host, kept)
  both = jax.tree.map(
    lambda new, old: np.concatenate([old[:3], new[3:4], old[4:]]), learnt, host
  )
  assert_close(alone, both)


def test_pairs_are_compared_with_the_member_before_its_first_step(population):
  settings = Settings(loss='dpo', steps=3, batch=2, optimizer='sgd')
  runtime = Runtime()
  steps = gradient.GradientSteps(runtime, tiny_space(), PAIRS, settings)
  hyper = {'lr': np.full(1, 0.01), 'beta': np.full(1, 0.3)}
  learnt = steps.steps(population, [2], jax.random.key(0), hyper)
  start = stack.take(population, 2)
  ((wanted, losses),) = plain_loop(plain_dpo, [start], optax.sgd, [0.01])
  np.testing.assert_allclose(losses[0], np.log(2), rtol=1e-6)
  np.testing.assert_allclose(steps.losses[0], losses, rtol=1e-4)
  assert losses[2] < losses[0]
  assert_close(stack.take(learnt, 2), wanted)
  read = sum(len(r.prompt) + len(c) for r in PAIRS for c in r.completions)
  assert runtime.ledger.gradient_tokens == (3 * 3 + 1) * read


def test_an_adapter_moves_nothing_but_the_kernels():
  weights = jax.tree.map(lambda leaf: leaf[None], tiny_params())
  population = Weights(
    jax.tree.map(lambda *x: jnp.concatenate(x), *[weights] * 2)
  )
  settings = Settings(
    steps=2, batch=3, train='adapter', rank=2, alpha=4.0, lr=0.01
  )
  steps = gradient.GradientSteps(
    Runtime(devices=jax.devices()[:1]),
    Expressed(tiny_space().model()),
    TEXTS,
    settings,
  )
  hyper = {'rank': np.array([1.0, 2.0])}
  learnt = steps.steps(population, [0, 1], jax.random.key(0), hyper)
  np.testing.assert_allclose(steps.losses[0, 0], steps.losses[1, 0], rtol=1e-6)
  assert (steps.losses[:, 1] < steps.losses[:, 0]).all()

  def check(path, new, old):
    if path[-1].key != 'kernel':
      np.testing.assert_array_equal(new, old)
      return
    change = np.asarray(new - old, np.float64)
    ranks = np.linalg.matrix_rank(change, tol=1e-4)
    assert (ranks[0] == 1).all() and (ranks[1] == 2).all(), (path, ranks)

  jax.tree.map_with_path(check, learnt, population)


@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`:FutureWarning')
def test_an_adapter_learns_as_with_transformers_and_peft(tmp_path):
  torch = pytest.importorskip('torch', reason='the oracle is torch')
  peft = pytest.importorskip('peft', reason='the oracle is PEFT')
  oracle = pytest.importorskip('tests.models.oracle')
  folder = tiny.write_gemma(tmp_path / 'base')
  expert = tiny.write_adapter(tmp_path / 'expert', folder, rank=2, alpha=6)
  model = peft.PeftModel.from_pretrained(
    oracle.load(folder), expert, is_trainable=True
  )
  texts = [[*row.prompt, *row.completions[0]] for row in TEXTS]
  width = max(map(len, texts))
  tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
  labels = tokens.clone()
  for line, row, text in zip(labels, TEXTS, texts, strict=True):
    line[: len(row.prompt)] = line[len(text) :] = -100
  mask = torch.tensor(
    [[1] * len(text) + [0] * (width - len(text)) for text in texts]
  )
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
  losses = []
  for _ in range(3):
    loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(float(loss.detach()))

  space = make_space('adapters', folder, [expert])
  steps = gradient.GradientSteps(
    Runtime(devices=jax.devices()[:1]),
    space,
    TEXTS,
    Settings(
      steps=3, batch=3, lr=1e-2, optimizer_options={'weight_decay': 0.01}
    ),
  )
  learnt = steps.steps(space.experts(), [0], jax.random.key(0))
  np.testing.assert_allclose(steps.losses[0], losses, rtol=1e-4)
  assert losses[2] < losses[0]
  model.save_pretrained(tmp_path / 'learnt')
  theirs = load_adapters([tmp_path / 'learnt'], space.model()).factors
  assert_close(learnt, theirs, rtol=1e-2, atol=1e-4)


def test_a_long_vocabulary_is_unembedded_a_few_reads_at_a_time(monkeypatch):
  keys = jax.random.split(jax.random.key(0), 2)
  matrix = jax.random.normal(keys[0], (30, 8))
  read = jax.random.normal(keys[1], (7, 8))
  target = jnp.arange(7, dtype=jnp.int32)
  counts = jnp.asarray([True, False, True, True, False, False, True])

  def total(read, matrix, counts=counts):
    found = gradient_losses.token_logprobs(
      lambda x: x @ matrix.T, read, target, counts
    )
    return jnp.sum(jnp.where(counts, jnp.sin(found), 0.0))

  gradient = jax.value_and_grad(total, (0, 1))
  whole = jax.tree.leaves(gradient(read, matrix))
  monkeypatch.setattr(unembedding, 'LOGITS_AT_ONCE', 100)
  assert 'scan' in str(jax.make_jaxpr(total)(read, matrix))
  found = jax.tree.leaves(gradient(read, matrix))
  for got, expected in zip(found, whole, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  # Blocks in which nothing counts are not computed, so they may be NaN.
  few = jnp.arange(7) < 3
  spoilt = jnp.where(few[:, None], read, jnp.nan)
  for got in jax.tree.leaves(jax.jit(gradient)(spoilt, matrix, few)):
    assert np.isfinite(got).all()


def test_losses_of_pairs_are_those_of_trl():
  logprobs = jnp.asarray([[-10.0, -12.0], [-8.0, -7.5]], jnp.float32)
  reference = jnp.asarray([[-11.0, -11.5], [-8.5, -8.0]], jnp.float32)
  beta = jnp.float32(0.5)

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  # c = (1, 0.5), r = (-0.5, 0.5): KL_c = 0.75, KL_r = 0.
  dpo = -(np.log(sigmoid(0.5 * 1.5)) + np.log(sigmoid(0.0))) / 2
  kto = [1.0, 0.5, 0.75 + 0.5, 0.75 - 0.5]
  kto = np.mean([1 - sigmoid(0.5 * x) for x in kto])
  for name, wanted in (('dpo', dpo), ('kto_pair', kto)):
    found = gradient_losses.of_pairs(name, logprobs, reference, beta)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(optimizer='adamv'), "Got optimizer 'adamv'.*Did you mean adam"),
    (dict(optimizer='adam', optimizer_options={'b3': 1}), "option 'b3'"),
    (dict(optimizer='lbfgs'), 'cannot move by a gradient alone'),
    (dict(loss='ppo'), "Got loss 'ppo'; expected one of 'sft', 'dpo'"),
    (dict(batch=0), 'Got batch 0; expected 1 or more'),
  ],
)
def test_refuses_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    Settings(**settings)


def test_refuses_what_cannot_learn(population):
  runtime, space = Runtime(devices=jax.devices()[:1]), tiny_space()

  def steps(rows=TEXTS, settings=None, **options):
    how = settings or Settings()
    return gradient.GradientSteps(runtime, space, rows, how, **options)

  with pytest.raises(ValueError, match='rows of 1 texts for the loss dpo'):
    steps(settings=Settings(loss='dpo'))
  with pytest.raises(ValueError, match='a text of 201 tokens'):
    steps([EncodedRow((1,) * 200, ((2,),))])
  with pytest.raises(ValueError, match='no rows to learn from'):
    steps([])
  with pytest.raises(ValueError, match='Row 1 has 2 texts'):
    gradient_rows.pack([TEXTS[0], PAIRS[0]])
  with pytest.raises(MemoryPlanError, match='Use a smaller batch'):
    steps(budget=1 << 18).prepare(population)
  plan = steps(members_per_group=2).prepare(population)
  assert plan.members_per_group == 2
  assert 'groups of 2 members on cpu' in plan.describe()
  for hyper, message in (
    ({'rate': 1}, "hyperparameter 'rate'"),
    ({'lr': [1.0]}, 'for 2 members'),
    ({'rank': [1, 9]}, 'expected 1 to 8'),
  ):
    with pytest.raises(ValueError, match=message):
      steps().steps(population, [0, 1], jax.random.key(0), hyper)
