"""Continuing prompts in slots, against one prompt of one member at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from evojax_llm.fitness import forms
from evojax_llm.fitness import queues as queues_lib
from evojax_llm.fitness.decoder import Decoder
from evojax_llm.fitness.ledger import Ledger
from evojax_llm.fitness.queues import Prompt
from evojax_llm.fitness.sampling import Sampling
from evojax_llm.gemma import hub
from evojax_llm.gemma import peft
from evojax_llm.gemma.lora import fold
from evojax_llm.gemma.transformer import Gemma
from evojax_llm.population import sharding
from evojax_llm.population import stack
from tests.gemma import forward

MEMBERS = 4
STOP_IDS = (1, 17, 30)


@dataclasses.dataclass(frozen=True)
class Bytes:
  """A tokenizer whose tokens are letters, two of which make a character."""

  stop_ids: tuple[int, ...] = STOP_IDS

  def decode(self, ids):
    return bytes(97 + i % 26 for i in ids).decode()


@pytest.fixture(scope='module', params=['gemma', 'gemma2', 'gemma3_text'])
def model(request, tiny_gemma_folder, tiny_adapter_folders):
  """(config, params, population): windows of a few tokens in two of three."""
  kind = request.param
  config, params = hub.load_checkpoint(tiny_gemma_folder(kind))
  # As it is, the embedding has most tokens repeat themselves.
  params['embedder']['embedding'] *= np.float32(0.1)
  adapters = peft.load_adapters(tiny_adapter_folders(MEMBERS - 1, kind), config)
  without = jax.tree.map(
    np.zeros_like, stack.take(adapters.factors, np.array([0]))
  )
  population = jax.tree.map(
    lambda *leaves: np.concatenate(leaves), without, adapters.factors
  )
  return config, params, population


@pytest.fixture(scope='module')
def prompts():
  """Uneven prompts and limits; six of them begin with the same 17 tokens."""
  rng = np.random.default_rng(0)
  found = [
    Prompt(
      tuple(rng.integers(2, 300, rng.integers(1, 20)).tolist()),
      limit=int(rng.integers(1, 12)),
      item=f'item {i}',
    )
    for i in range(9)
  ]
  start = rng.integers(2, 300, 17).tolist()
  found += [
    Prompt(
      (*start, *rng.integers(2, 300, rng.integers(1, 6)).tolist()),
      limit=int(rng.integers(1, 12)),
      item=f'shot {i}',
      group=1,
    )
    for i in range(6)
  ]
  return found


def run(model, prompts, form='folded', slots=3, refill=2, **options):
  """Tokens of each member and prompt, or None for a member that failed."""
  config, params, population = model
  mesh = sharding.population_mesh(jax.devices()[: options.pop('devices', 1)])
  ids = options.pop('ids', range(stack.size(population)))
  ledger = options.pop('ledger', Ledger())
  whole = sharding.replicated(mesh)
  queues = queues_lib.pack_queues(
    prompts, lambda *_: slots, lambda *_: refill, whole
  )
  decoder = Decoder(
    Gemma(config),
    jax.device_put(params, whole),
    mesh,
    form,
    Bytes(),
    ledger,
    options.pop('sampling', None),
  )
  lora = jax.device_put(
    forms.arrange(form, population),
    sharding.population_sharding(mesh, forms.member_axis(form)),
  )
  active = np.asarray(options.pop('active', [True] * len(ids)))
  assert not options
  results = decoder.start(queues, lora, active, list(ids)).finish()
  texts = []
  for m in range(len(ids)):
    made = [None] * len(prompts)
    for queue, result in zip(queues, results, strict=True):
      for owner, row in zip(queue.owner, result.tokens[m], strict=True):
        made[owner] = tuple(row[row >= 0].tolist())
    finite = all(result.finite[m] for result in results)
    texts.append(made if finite else None)
  return texts


@pytest.fixture(scope='module')
def alone(model, prompts):
  """The same by one prompt of one member at a time, in a row of its own."""
  config, params, population = model
  longest = max(len(prompt.ids) for prompt in prompts)
  texts = []
  for m in range(MEMBERS):
    member = jax.tree.map(lambda leaf: leaf[m], population)  # noqa: B023
    folded = fold(params, member)
    made = []
    for prompt in prompts:
      tokens = np.zeros((1, longest), np.int32)
      tokens[0, : len(prompt.ids)] = prompt.ids
      valid = np.arange(longest)[None] < len(prompt.ids)
      ids = forward.greedy(config, folded, tokens, valid, steps=12)[0].tolist()
      ends = [i for i, token in enumerate(ids) if token in STOP_IDS]
      made.append(tuple(ids[: min([prompt.limit, *ends])]))
    texts.append(made)
  return texts


def test_the_reference_is_worth_comparing_with(alone, prompts):
  assert len({tuple(texts) for texts in alone}) == MEMBERS
  lengths = [len(ids) for texts in alone for ids in texts]
  assert len(set(lengths)) > 5
  limits = [prompt.limit for _ in alone for prompt in prompts]
  assert any(n < limit for n, limit in zip(lengths, limits, strict=True))


@pytest.mark.parametrize('form', forms.FORMS)
@pytest.mark.parametrize(('slots', 'refill'), [(3, 2), (16, 16)])
def test_agrees_with_one_at_a_time(model, prompts, alone, form, slots, refill):
  assert run(model, prompts, form, slots, refill) == alone


@pytest.mark.parametrize('form', forms.FORMS)
def test_neither_order_nor_neighbours_change_a_text(model, prompts, form):
  if model[0].model_type != 'gemma2':
    pytest.skip('one family is enough here')
  config, params, population = model
  sampling = Sampling(temperature=1.0, top_p=0.95, seed=3)
  ids = [7, 3, 11, 2]
  whole = run(model, prompts, form, sampling=sampling, ids=ids)
  order = np.random.default_rng(1).permutation(len(prompts))
  members = [2, 0, 3, 1]
  shuffled = run(
    (config, params, stack.take(population, np.array(members))),
    [prompts[i] for i in order],
    form,
    slots=4,
    refill=1,
    sampling=sampling,
    ids=[ids[m] for m in members],
  )
  for m, texts in zip(members, shuffled, strict=True):
    assert texts == [whole[m][i] for i in order]
  one = (config, params, stack.take(population, np.array([1])))
  (texts,) = run(
    one, [prompts[4]], form, sampling=sampling, ids=[3], slots=1, refill=1
  )
  assert texts == [whole[1][4]]
  other = run(model, prompts, form, sampling=Sampling(1.0, seed=4), ids=ids)
  assert other != whole


@pytest.mark.parametrize('form', forms.FORMS)
def test_devices_share_the_members(model, prompts, alone, form):
  if model[0].model_type != 'gemma3_text':
    pytest.skip('one family is enough here')
  assert run(model, prompts, form, devices=2) == alone
  stops = [dataclasses.replace(p, stops=('qj', 'e')) for p in prompts]
  spread = run(model, stops, form, devices=4)
  assert spread == run(model, stops, form) != alone


@pytest.mark.parametrize('form', forms.FORMS)
def test_stop_strings(model, prompts, alone, form, monkeypatch):
  """Texts end with the token that completes a stop string."""
  if model[0].model_type != 'gemma2':
    pytest.skip('one family is enough here')
  from evojax_llm.fitness import decoder as decoder_lib

  monkeypatch.setattr(decoder_lib, '_FEWEST_STEPS', 1)
  decode = Bytes().decode
  longest = max((ids for texts in alone for ids in texts), key=len)
  stops = (decode(longest)[2:5], 'a')
  marked = [dataclasses.replace(p, stops=stops) for p in prompts]
  found = run(model, marked, form)
  cut = 0
  for texts, whole in zip(found, alone, strict=True):
    for ids, full in zip(texts, whole, strict=True):
      text = decode(full)
      ends = [text.find(s) + len(s) for s in stops if s in text]
      assert ids == full[: min(ends, default=len(full))]
      cut += ids != full
  assert cut > 3


@pytest.mark.parametrize('form', forms.FORMS)
def test_a_broken_member_fails_alone(model, prompts, alone, form):
  if model[0].model_type != 'gemma':
    pytest.skip('one family is enough here')
  config, params, population = model
  broken = jax.tree.map(np.copy, population)
  broken['layers']['mlp']['up_proj']['b'][2] = np.nan
  active = [True, True, True, False]
  found = run((config, params, broken), prompts, form, active=active)
  assert found[:2] == alone[:2] and found[2] is None


def test_slots_are_refilled(model, prompts):
  """Fewer steps than batches that wait for their longest answer."""
  if model[0].model_type != 'gemma':
    pytest.skip('one family is enough here')
  limits = [1, 40] + [1] * 30
  uneven = [Prompt((3 + i, 5), limit) for i, limit in enumerate(limits)]
  ledger = Ledger()
  run(model, uneven, slots=2, refill=1, ledger=ledger)
  assert ledger.new_tokens <= MEMBERS * sum(limits)
  assert ledger.steps <= MEMBERS * 39
  assert ledger.refills == MEMBERS * len(limits)
