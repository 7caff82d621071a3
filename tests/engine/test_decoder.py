"""Continuing prompts in slots, against one prompt of one member at a time."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from evojax_llm.engine import forms
from evojax_llm.engine.ledger import Ledger
from evojax_llm.engine.queues import Prompt
from evojax_llm.engine.sampling import Sampling
from evojax_llm.models import hub
from evojax_llm.models import peft
from evojax_llm.models.expression import LowRank
from evojax_llm.models.expression import fold
from evojax_llm.population import stack
from tests.engine.continuing import STOP_IDS
from tests.engine.continuing import Bytes
from tests.engine.continuing import run
from tests.models import forward

MEMBERS = 4


@pytest.fixture(scope='module')
def models(tiny_gemma_folder, tiny_adapter_folders):
  """`models(kind) -> (config, params, population)`; member 0 has no adapter.

  Two of the three kinds have sliding windows of a few tokens.
  """

  @functools.cache
  def load(kind):
    config, params = hub.load_checkpoint(tiny_gemma_folder(kind))
    # As it is, the embedding has most tokens repeat themselves.
    params['embedder']['embedding'] *= np.float32(0.1)
    folders = tiny_adapter_folders(MEMBERS - 1, kind)
    adapters = peft.load_adapters(folders, config)
    population = jax.tree.map(
      lambda leaf: np.concatenate([np.zeros_like(leaf[:1]), leaf]),
      adapters.factors,
    )
    return config, params, population

  return load


@pytest.fixture(scope='module')
def prompts():
  """Uneven prompts and limits; six of them begin with the same 17 tokens."""
  rng = np.random.default_rng(0)
  found = [
    Prompt(
      tuple(rng.integers(2, 300, rng.integers(1, 9)).tolist()),
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


@pytest.fixture(scope='module')
def alone(models, prompts):
  """`alone(kind)`: the same, a prompt of a member at a time in its own row."""

  @functools.cache
  def read(kind):
    config, params, population = models(kind)
    longest = max(len(prompt.ids) for prompt in prompts)
    texts = []
    for m in range(MEMBERS):
      member = jax.tree.map(lambda leaf: leaf[m], population)  # noqa: B023
      folded = fold(params, LowRank(member))
      made = []
      for prompt in prompts:
        tokens = np.zeros((1, longest), np.int32)
        tokens[0, : len(prompt.ids)] = prompt.ids
        valid = np.arange(longest)[None] < len(prompt.ids)
        ids = forward.greedy(config, folded, tokens, valid, steps=12)
        ids = ids[0].tolist()
        ends = [i for i, token in enumerate(ids) if token in STOP_IDS]
        made.append(tuple(ids[: min([prompt.limit, *ends])]))
      texts.append(made)
    return texts

  return read


# The other forms of these kinds are those of broken members and more devices.
@pytest.mark.parametrize(
  ('kind', 'form'),
  [
    ('gemma', 'batched'),
    *(('gemma2', form) for form in forms.FORMS),
    ('gemma3_text', 'folded'),
  ],
)
def test_agrees_with_one_at_a_time(models, prompts, alone, kind, form):
  expected = alone(kind)
  assert len({tuple(texts) for texts in expected}) == MEMBERS
  lengths = [len(ids) for texts in expected for ids in texts]
  limits = [prompt.limit for _ in expected for prompt in prompts]
  assert len(set(lengths)) > 5 and lengths != limits
  assert run(models(kind), prompts, form) == expected


def test_more_slots_than_prompts(models, prompts, alone):
  found = run(models('gemma2'), prompts, slots=16, refill=16)
  assert found == alone('gemma2')


@pytest.mark.parametrize('form', forms.FORMS)
def test_neither_order_nor_neighbours_change_a_text(models, prompts, form):
  model = config, params, population = models('gemma2')
  prompts = prompts[:9]
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


@pytest.mark.parametrize(('form', 'devices'), [('batched', 2), ('folded', 4)])
def test_devices_share_the_members(models, prompts, alone, form, devices):
  found = run(models('gemma3_text'), prompts, form, devices=devices)
  assert found == alone('gemma3_text')


@pytest.mark.parametrize('form', forms.FORMS)
def test_stop_strings(models, prompts, alone, form, monkeypatch):
  """Texts end with the token that completes a stop string."""
  from evojax_llm.engine import decoder as decoder_lib

  monkeypatch.setattr(decoder_lib, '_FEWEST_STEPS', 1)
  decode = Bytes().decode
  longest = max((ids for texts in alone('gemma2') for ids in texts), key=len)
  stops = (decode(longest)[2:5], 'a')
  marked = [dataclasses.replace(p, stops=stops) for p in prompts]
  found = run(models('gemma2'), marked, form)
  cut = 0
  for texts, whole in zip(found, alone('gemma2'), strict=True):
    for ids, full in zip(texts, whole, strict=True):
      text = decode(full)
      ends = [text.find(s) + len(s) for s in stops if s in text]
      assert ids == full[: min(ends, default=len(full))]
      cut += ids != full
  assert cut


@pytest.mark.parametrize('form', forms.FORMS)
def test_a_broken_member_fails_alone(models, prompts, alone, form):
  config, params, population = models('gemma')
  broken = jax.tree.map(np.copy, population)
  broken['layers']['mlp']['up_proj']['b'][2] = np.nan
  active = [True, True, True, False]
  found = run((config, params, broken), prompts, form, active=active)
  assert found[:2] == alone('gemma')[:2] and found[2] is None


def test_slots_are_refilled(models):
  """Fewer steps than batches that wait for their longest answer."""
  limits = [1, 40] + [1] * 30
  uneven = [Prompt((3 + i, 5), limit) for i, limit in enumerate(limits)]
  ledger = Ledger()
  run(models('gemma'), uneven, slots=2, refill=1, ledger=ledger)
  assert ledger.new_tokens <= MEMBERS * sum(limits)
  assert ledger.steps <= MEMBERS * 39
  assert ledger.refills == MEMBERS * len(limits)


def test_a_stop_string_frees_its_slot(models, monkeypatch):
  from evojax_llm.engine import decoder as decoder_lib

  monkeypatch.setattr(decoder_lib, '_FEWEST_STEPS', 2)
  monkeypatch.setattr(decoder_lib, '_MOST_STEPS', {True: 2})
  letters = tuple('abcdefghijklmnopqrstuvwxyz')
  prompts = [Prompt((3 + i, 5), 100, letters) for i in range(6)]
  ledger = Ledger()
  found = run(models('gemma'), prompts, slots=2, refill=2, ledger=ledger)
  assert all(len(ids) <= 1 for texts in found for ids in texts)
  assert ledger.steps <= MEMBERS * 3 * 6
