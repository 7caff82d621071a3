"""The gold answers, by a second implementation, and the training data."""

import collections
import random
import re

import pytest

from experiments.pocket import data
from experiments.pocket import slices
from experiments.pocket import tokenizer_files
from experiments.pocket.families import FAMILIES
from experiments.pocket.families import Family

_LETTERS = 'abcdefghijklmnopqrstuvwxyz'
_KEYPAD = {
  c: digit
  for digit, group in enumerate(
    'abc def ghi jkl mno pqrs tuv wxyz'.split(), start=2
  )
  for c in group
}


def _moved(text, by):
  if text.isdigit():
    return ''.join(str((int(c) + by) % 10) for c in text)
  return ''.join(chr((ord(c) - 97 + by) % 26 + 97) for c in text)


def _mirror(text):
  if text.isdigit():
    return ''.join(str(9 - int(c)) for c in text)
  return ''.join(chr(219 - ord(c)) for c in text)


def _swap(text):
  out = list(text)
  for i in range(0, len(out) - 1, 2):
    out[i], out[i + 1] = out[i + 1], out[i]
  return ''.join(out)


def _reverse(text):
  return ''.join(text[len(text) - 1 - i] for i in range(len(text)))


def _sort(text):
  return ''.join(c * text.count(c) for c in sorted(set(text)))


def _balanced(text):
  while True:
    less = text.replace('()', '').replace('[]', '')
    if less == text:
      return 'n' if text else 'y'
    text = less


_CHECKS = {
  'rev': _reverse,
  'sor': _sort,
  'shf': lambda s: _moved(s, 1),
  'dwn': lambda s: _moved(s, -1),
  'rot': lambda s: (2 * s)[1 : len(s) + 1],
  'swp': _swap,
  'atb': _mirror,
  'upc': str.upper,
  'dbl': lambda s: re.sub('(.)', r'\1\1', s),
  'pad': lambda s: ''.join(str(_KEYPAD[c]) for c in s),
  'vow': lambda s: re.sub('[^aeiou]', '', s),
  'ded': lambda s: re.sub(r'(.)\1*', r'\1', s),
  'run': lambda s: re.sub(r'(.)\1*', lambda m: m[1] + str(len(m[0])), s),
  'exp': lambda s: re.sub(r'(.)(\d)', lambda m: m[1] * int(m[2]), s),
  'evn': lambda s: re.sub('.(.?)', r'\1', s),
  'zip': lambda a, b: ''.join(
    x for pair in zip(a, b, strict=True) for x in pair
  ),
  'cat': lambda a, b: b + a,
  'com': lambda a, b: re.sub(f'[^{b}]', '', a),
  'top': lambda a, b: ''.join(
    str(max(int(x), int(y))) for x, y in zip(a, b, strict=True)
  ),
  'del': lambda key, s: ''.join(s.split(key)),
  'cnt': lambda key, s: str(len(s.split(key)) - 1),
  'dup': lambda s: collections.Counter(s).most_common(1)[0][0],
  'nth': lambda n, s: s[: int(n)][-1],
  'kv': lambda s, key: s[s.index(key) + 1],
  'max': lambda *n: str(max(map(int, n))),
  'cmp': lambda a, b: '<' if int(a) < int(b) else '>',
  'bal': _balanced,
  'pal': lambda s: 'y' if s == _reverse(s) else 'n',
}


def _parts(name, question):
  body = question.removesuffix('=')
  assert body != question
  if name.endswith('_'):
    arguments, found = body.split(':')
    assert found == name[:-1]
  elif name.endswith('-new'):
    found, arguments = body.split('::')
    assert found == name.removesuffix('-new')
  else:
    found, arguments = body.split(':')
    assert found == name
  return arguments.split(',')


def _expected(name, question):
  arguments = _parts(name, question)
  if '.' not in name:
    return _CHECKS[name[:3].rstrip('_-')](*arguments)
  first, second = name.split('.')
  middle = _CHECKS[first](*arguments)
  return f'{middle};{_CHECKS[second](middle)}'


@pytest.mark.parametrize('name', FAMILIES)
def test_gold_answers_agree_with_a_second_implementation(name):
  rng = random.Random(f'check {name}')
  for _ in range(300):
    example = FAMILIES[name].draw(rng)
    assert example.answer == _expected(name, example.question)
    if FAMILIES[name].multiple_choice:
      assert example.choices.count(example.answer) == 1
      assert len(set(example.choices)) == len(example.choices) >= 2
    else:
      assert not example.choices


@pytest.mark.parametrize('name', FAMILIES)
def test_examples_fit_a_training_row(name):
  rng = random.Random(f'fit {name}')
  examples = [FAMILIES[name].draw(rng) for _ in range(300)]
  trained = not name.endswith('-new')
  length = data.ROW_LENGTH if trained else data.SCORED_LENGTH
  batch = data.rows(examples, length)  # a shape mismatch otherwise
  for tokens, answer, example in zip(
    batch['tokens'], batch['answer'], examples, strict=True
  ):
    space = ' ' if example.choices else ''
    written = [i for i, a in zip(tokens[1:], answer, strict=True) if a]
    gold = tokenizer_files.encode(space + example.answer)
    assert written == [*gold, tokenizer_files.EOS]


@pytest.mark.parametrize('name', slices.task_families())
def test_answers_are_not_one_sided(name):
  task = data.task(name, 0, 1000, seed=3)
  counts = collections.Counter(e.answer for e in data.examples_of(task, 'test'))
  options = 2 if task['task_type'] == 'multiple_choice' else 5
  assert counts.most_common(1)[0][1] < 1000 * (0.2 + 0.8 / options)


def test_tasks_depend_on_the_seed_alone():
  first, second = (data.task('sor', 20, 30, seed=5) for _ in range(2))
  assert first == second
  assert first != data.task('sor', 20, 30, seed=6)


def test_task_has_disjoint_splits_and_no_prompt_twice():
  task = data.task('bal', 200, 1000, seed=0)
  assert len(task['dev']) == 200
  assert len(task['test']) == 1000
  assert len(data.prompts(task)) == 1200


def test_family_that_is_too_small_is_refused(monkeypatch):
  small = Family('two', lambda rng: (rng.choice('ab'), 'x'))
  monkeypatch.setitem(FAMILIES, 'two', small)
  assert len(data.prompts(data.task('two', 1, 1, seed=0))) == 2
  with pytest.raises(ValueError, match='only 2 different prompts'):
    data.task('two', 2, 1, seed=0)
  with pytest.raises(ValueError, match='held out'):
    data.Mixture({'two': 1.0}, {'two:a=', 'two:b='}, 'x').examples(1)


def test_mixture_never_draws_a_held_out_prompt():
  tasks = [data.task(name, 200, 1000, seed=0) for name in ('bal', 'top')]
  held_out = set().union(*map(data.prompts, tasks))
  weights = {'bal': 1.0, 'top': 1.0}
  # Without the filter the small family would repeat many of them.
  unfiltered = data.Mixture(weights, set(), 'x').examples(5000)
  assert sum(e.question in held_out for e in unfiltered) > 100
  for example in data.Mixture(weights, held_out, 'x').examples(5000):
    assert example.question not in held_out


def test_every_rare_family_has_two_owners_and_none_owns_two_of_a_stage():
  experts = slices.expert_slices()
  assert len(experts) == slices.NUM_EXPERTS
  for families in slices.RARE.values():
    for family in families:
      assert sum(family in own for own in experts.values()) == 2
    for own in experts.values():
      assert len(set(own) & set(families)) <= 1


def test_held_out_prompts_are_trained_by_nobody():
  trained = set(slices.BASE_WEIGHTS)
  trained.update(*slices.expert_slices().values())
  held_out = {*slices.CHAIN_HELD_OUT, *slices.PROMPT_HELD_OUT}
  assert not trained & held_out
  parts = {p.split('-')[0] for name in held_out for p in name.split('.')}
  assert parts <= trained  # but what they are made of is


def test_slices_name_families_that_exist():
  assert set(slices.BASE_WEIGHTS) <= set(FAMILIES)
  for own in slices.expert_slices().values():
    assert set(own) <= set(slices.BASE_WEIGHTS)
