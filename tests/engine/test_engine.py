"""What kinds of members the engine takes, and what it does at the edges."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evojax_llm.engine import forms
from evojax_llm.engine import plan as planning
from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.sampling import Sampling
from evojax_llm.fitness.racing import Racing
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.gates import GateSpace
from evojax_llm.genomes.space import Expressed
from evojax_llm.genomes.space import Model
from evojax_llm.genomes.space import load_base
from evojax_llm.genomes.weights import WeightSpace
from evojax_llm.models import expression
from evojax_llm.models import peft
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.population import stack
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from tests.fitness import setting
from tests.fitness.setting import make


@pytest.fixture(scope='module')
def model():
  return (
    setting.tiny_space(),
    setting.population_of(setting.MEMBERS),
    setting.tiny_tasks(),
  )


def values_of(scores, member=None):
  rows = scores.tasks[0].loglikelihoods
  rows = rows if member is None else [rows[member]]
  return np.array([list(v.values()) for row in rows for v in row])


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


@pytest.mark.parametrize('form', ['batched', 'folded'])
def test_gates_are_the_adapters_they_stand_for(experts, form):
  base, tokenizer, tasks, adapters = experts
  space = GateSpace(adapters, base)
  rows = np.array([[1, 0, 0], [0.5, -1, 2], [0, 0, 0], [0.3] * 3], np.float32)
  population = {'gates': jnp.asarray(rows)}
  engine = make(tasks, tokenizer, form=form)
  gated = engine.evaluate(space, population)
  low_rank = jax.vmap(
    lambda genome: expression.as_low_rank(
      space.express(genome), space.model().params
    )
  )(population)
  plain = engine.evaluate(Expressed(base), low_rank)
  np.testing.assert_allclose(values_of(gated), values_of(plain), atol=2e-4)
  expert = engine.evaluate(space.plain, adapters.factors, [0])
  np.testing.assert_allclose(values_of(gated, 0), values_of(expert), atol=2e-4)
  assert np.ptp(values_of(gated, 1) - values_of(gated, 2)) > 1e-2


def test_two_spaces_over_one_base_hold_it_once(experts):
  base, _, _, adapters = experts
  runtime = Runtime(devices=jax.devices()[:1], base_dtype='int8')
  gates = GateSpace(adapters, base)
  one, two = map(runtime.params, (gates, gates.plain))
  kernels = 0
  for path, leaf in jax.tree.leaves_with_path(two):
    other = one
    for key in path:
      other = other[key.key]
    assert other is leaf
    kernels += path[-1].key == 'kernel'
    assert (leaf.dtype == jnp.int8) == (path[-1].key == 'kernel')
  assert kernels and 'a' in one['layers']['mlp']['up_proj']


@pytest.mark.parametrize('where', ['host', 'device'])
def test_whole_models_are_scored_as_when_they_are_loaded(experts, where):
  base, tokenizer, tasks, _ = experts
  models = [
    jax.tree.map(lambda leaf, f=f: np.asarray(leaf) * f, base.params)
    for f in (1.0, 0.9, 1.2)
  ]
  # The base is that of none of them.
  zero = jax.tree.map(jnp.zeros_like, base.params)
  space = WeightSpace(['a', 'b', 'c'], models, Model(base.config, zero))
  population = space.experts()
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(population))
  if where == 'device':
    population = jax.device_put(population)
  engine = make(tasks, tokenizer, members_per_group=2)
  scores = engine.evaluate(space, population)
  assert engine.plan.form == 'folded'
  for m, loaded in enumerate(models):
    one = AdapterSpace(experts[-1], Model(base.config, loaded))
    population = stack.stack([one.base()])
    expected = make(tasks, tokenizer).evaluate(one, population)
    np.testing.assert_allclose(
      values_of(scores, m), values_of(expected), atol=1e-5
    )


@pytest.mark.parametrize('form', ['batched', 'folded'])
def test_an_int8_base_is_nearly_the_base(experts, form):
  base, tokenizer, tasks, adapters = experts
  space = AdapterSpace(adapters, base)
  whole = make(tasks, tokenizer, form=form)
  eight = make(tasks, tokenizer, form=form, base_dtype='int8')
  expected = values_of(whole.evaluate(space, adapters.factors))
  found = values_of(eight.evaluate(space, adapters.factors))
  assert 1e-5 < np.abs(found - expected).max() < 0.5
  assert np.abs(found - expected).mean() < 0.1
  with pytest.raises(ValueError, match='base_dtype'):
    make(tasks, tokenizer, base_dtype='int3')


@pytest.fixture
def compilations():
  """A list that grows with every program that the backend compiles."""
  compiled = []

  def listen(event, *_, **__):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(threading.current_thread().name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield compiled
  jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_compiles_after_the_first_generation(model, compilations):
  space, population, tasks = model
  engine = make(tasks)
  engine.evaluate(space, population, [0, 1, 2, 3, 4])
  programs, first = engine.ledger.programs, len(compilations)
  assert programs and first
  for members in ([4], [3, 1], range(5)):
    changed = jax.tree.map(lambda leaf: leaf * 1.5, population)
    engine.evaluate(space, changed, list(members))
  assert (engine.ledger.programs, len(compilations)) == (programs, first)


@pytest.mark.parametrize('form', forms.FORMS)
def test_queues_of_two_shapes_compile_each_program_once(
  model, compilations, form
):
  space, population, tasks = model
  # They begin differently, so that no common beginning is read apart.
  items = tuple(Item(str(i), f'{i}' * 60, 'a') for i in range(9))
  long = dataclasses.replace(tasks[1], name='long', dev=items)
  engine = make([tasks[1], long], form=form, prompts_per_batch=2)
  first = engine.evaluate(space, population)
  shapes = {queue.shape for queue in engine._split('dev', 128).queues}
  assert len(shapes) > 1
  # Expressing, folding, and of each shape the slots and the work on them.
  expected = 1 + (form == 'folded') + 2 * len(shapes)
  assert engine.ledger.programs == len(compilations) == expected
  # The work of all queues is compiled at once.
  apart = [name for name in compilations if name != 'MainThread']
  assert len(apart) == len(shapes)
  second = engine.evaluate(space, population)
  assert engine.ledger.programs == len(compilations) == expected
  assert [t.predictions for t in first.tasks] == [
    t.predictions for t in second.tasks
  ]


def test_a_group_that_does_not_fit_is_halved(model, caplog, monkeypatch):
  space, population, tasks = model
  tasks = tasks[:1]
  whole = make(tasks).evaluate(space, population)
  engine = make(tasks, members_per_group=4)
  program = forms.group_program
  calls = []

  def run_out(*arguments):
    run = program(*arguments)
    active = arguments[-2]
    calls.append(active.shape[0])
    if active.shape[0] > 2 and len(calls) == 2:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    if active.shape[0] > 1 and len(calls) > 2:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return run

  monkeypatch.setattr(forms, 'group_program', run_out)
  scores = engine.evaluate(space, population)
  assert calls[:3] == [4, 4, 2] and set(calls[3:]) == {1}
  np.testing.assert_allclose(values_of(scores), values_of(whole), atol=1e-5)
  assert engine.plan.members_per_group == 1
  assert 'going on with 2' in caplog.text and 'going on with 1' in caplog.text

  def never(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(forms, 'group_program', never)
  with pytest.raises(planning.MemoryPlanError, match='with 1 members on 1'):
    engine.evaluate(space, population)

  def broken(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')

  monkeypatch.setattr(forms, 'group_program', broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
    engine.evaluate(space, population)


def test_some_items_have_the_scores_that_they_have_among_all(model):
  space, population, tasks = model
  engine = make(tasks)
  whole = engine.evaluate(space, population)
  some = engine.evaluate(space, population, [3], items=[[5, 0], [8, 2]])
  assert [task.ids for task in some.tasks] == [['5', '0'], ['8', '2']]
  for k, picked in enumerate(([5, 0], [8, 2])):
    np.testing.assert_array_equal(
      some.tasks[k].correct[0], whole.tasks[k].correct[3, picked]
    )
  found = values_of(some)
  np.testing.assert_allclose(found, values_of(whole, 3)[[5, 0]], atol=1e-5)


def test_a_race_ends_as_scoring_everything_does_for_those_that_finish(model):
  space, population, tasks = model
  tasks = tasks[:1]
  engine = make(tasks)
  whole = engine.evaluate(space, population)
  shares = []
  raced = engine.race(
    space,
    population,
    [4, 0, 2],
    Racing('halving', rounds=2),
    jax.random.key(0),
    generation=3,
    progress=shares.append,
  )
  items = sum(len(task.dev) for task in tasks)
  finished = raced.seen == items
  assert 1 <= finished.sum() < 3 and shares[-1] == 1.0
  np.testing.assert_allclose(
    raced.fitness[finished], whole.fitness[[4, 0, 2]][finished], rtol=1e-6
  )
  assert (
    engine.ledger.items_saved == raced.saved == 3 * items - raced.seen.sum()
  )
  # What was asked is kept in its place, and the rest is known to be a gap.
  (found,) = raced.tasks
  assert found.ids == [item.id for item in tasks[0].dev]
  np.testing.assert_array_equal(found.asked.sum(axis=1), raced.seen)
  expected = whole.tasks[0].values[[4, 0, 2]]
  np.testing.assert_array_equal(
    found.values, np.where(found.asked, expected, np.nan)
  )
  for m, member in enumerate([4, 0, 2]):
    for i, asked in enumerate(found.asked[m]):
      said = whole.tasks[0].predictions[member][i] if asked else None
      assert found.predictions[m][i] == said


def test_one_member_and_256(model):
  space, _, tasks = model
  few = [dataclasses.replace(tasks[0], dev=tasks[0].dev[:2])]
  population = setting.population_of(256)
  for form in ('folded', 'batched'):
    engine = make(few, form=form, members_per_group=64)
    many = engine.evaluate(space, population)
    assert many.fitness.shape == (256,) and np.isfinite(many.fitness).all()
    one = jax.tree.map(lambda leaf: leaf[200:201], population)
    alone = make(few, form=form).evaluate(space, one)
    np.testing.assert_allclose(
      values_of(many, 200), values_of(alone), atol=1e-5
    )


def test_ten_thousand_items(model):
  space, population, _ = model
  choices = (('A', 'x'), ('B', 'yz'))
  items = tuple(Item(str(i), f'{i:04d}', 'A', choices) for i in range(10_000))
  task = Task('many', 'multiple_choice', items)
  task = dataclasses.replace(
    task,
    format=dataclasses.replace(task.format, prompt='{question}', choice='text'),
  )
  engine = make([task])
  scores = engine.evaluate(space, population, [2])
  assert scores.tasks[0].correct.shape == (1, 10_000)
  assert engine.ledger.programs == 2  # one of them expresses members.
  few = make([dataclasses.replace(task, dev=items[7000:7003])])
  np.testing.assert_allclose(
    values_of(scores)[7000:7003],
    values_of(few.evaluate(space, population, [2])),
    atol=1e-5,
  )


def test_an_empty_prompt_is_bos_and_a_long_one_is_cut(model, caplog):
  space, population, _ = model
  choices = (('A', 'x'), ('B', 'yz'))
  task = Task(
    'odd',
    'multiple_choice',
    (Item('empty', '', 'A', choices), Item('long', 'q' * 500, 'B', choices)),
  )
  task = dataclasses.replace(
    task,
    format=dataclasses.replace(task.format, prompt='{question}', choice='text'),
  )
  engine = make([task])
  values = values_of(engine.evaluate(space, population))
  assert np.isfinite(values).all()
  assert 'cut from the left' in caplog.text
  short = dataclasses.replace(
    task, dev=(Item('short', 'q' * 124, 'B', choices),)
  )
  again = make([short]).evaluate(space, population)
  # BOS, what fits of the question, and a space with two letters.
  np.testing.assert_allclose(values[1::2], values_of(again), atol=1e-5)


def test_the_form_is_tried_where_sizes_do_not_tell(model, monkeypatch):
  space, population, tasks = model
  known = make(tasks[:1])
  expected = known.evaluate(space, population)
  assert known.plan.form == 'folded' and 'the rule' in known.plan.describe()
  monkeypatch.setattr(planning, '_FOLD_AT_MOST_BYTES', 0)
  engine = make(tasks[:1])
  scores = engine.evaluate(space, population)
  assert engine.plan.reason.startswith('measured tokens/s: batched')
  np.testing.assert_allclose(values_of(scores), values_of(expected), atol=1e-4)
  # Where answers are generated they do: one look at the weights for everybody.
  plan = make(tasks[1:]).prepare(space, population)
  assert plan.form == 'batched' and 'the rule' in plan.describe()
  asked = make(tasks[:1], form='batched')
  plan = asked.prepare(space, population)
  assert plan.form == 'batched' and 'asked for' in plan.describe()


@pytest.mark.parametrize('budget', (np.inf, np.nan, -1.0, 0))
def test_a_budget_that_is_no_number_of_bytes_is_refused(model, budget):
  space, population, tasks = model
  engine = make(tasks[:1], memory_budget=budget)
  with pytest.raises(planning.MemoryPlanError, match=f'budget of {budget}'):
    engine.prepare(space, population)


def test_no_group_has_more_than_all_members(model):
  space, population, tasks = model
  plan = make(tasks[:1], members_per_group=10**6).prepare(space, population)
  assert plan.members_per_group == len(jax.tree.leaves(population)[0])
  with pytest.raises(planning.MemoryPlanError, match='members_per_group -1'):
    make(tasks[:1], members_per_group=-1).prepare(space, population)


def test_populations_are_refused_before_they_are_made(experts):
  base, tokenizer, tasks, adapters = experts
  for space, members, budget, message in (
    (
      GateSpace(adapters, base),
      10**6,
      None,
      '1,000,000 members in a population',
    ),
    (AdapterSpace(adapters, base), 100, 1000, r'100 members of .* MiB takes'),
  ):
    engine = make(tasks, tokenizer, memory_budget=budget)
    with pytest.raises(planning.MemoryPlanError, match=message):
      engine.check_population(space, members)
    make(tasks, tokenizer).check_population(space, 100)


def test_64_bits_are_refused():
  with jax.enable_x64(True), pytest.raises(ValueError, match='JAX_ENABLE_X64'):
    Runtime()


def test_sampled_answers_go_by_id_and_not_by_place(model):
  space, population, tasks = model
  engine = make(tasks[1:], sampling=Sampling(temperature=1.0, seed=2))

  def said(population, members, ids):
    scores = engine.evaluate(space, population, members, ids=ids)
    return scores.tasks[0].predictions

  first = said(population, [1, 3], [7, 9])
  turned = jax.tree.map(lambda leaf: leaf[::-1].copy(), population)
  assert said(turned, [1, 3], [9, 7]) == first[::-1]
  other = said(population, [1, 3], [8, 9])
  assert other[0] != first[0] and other[1] == first[1]
  assert said(population, [1], None) == said(population, [1], [1])
