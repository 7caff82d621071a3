"""The generated text families of the pocket population.

A family turns a random source into examples `(question, answer, choices)`.
Every question is one short line, `name:arguments=`; the answer is what a model
writes after it. Lengths and alphabets vary on purpose: with fixed ones, nothing
a small model learns carries over to any other length or alphabet.

Four kinds of family exist:

* *atoms*, one function under one name;
* *chains*, `first.second:word=intermediate;final`: two atoms, one after the
  other, with the intermediate word written out;
* *suffix prompts*, `arguments:name=`: an atom under the other word order;
* *doubled prompts*, `name::arguments=`: an atom under a form never trained.
"""

from collections.abc import Callable
import dataclasses
import itertools
import random
import string

LETTERS = string.ascii_lowercase
DIGITS = string.digits
VOWELS = 'aeiou'
PLAIN = '{name}:{arguments}='
SUFFIX = '{arguments}:{name}='
DOUBLED = '{name}::{arguments}='
_KEYPAD = dict(zip(LETTERS, '22233344455566677778889999', strict=True))


@dataclasses.dataclass(frozen=True)
class Example:
  """One question with its gold answer.

  Attributes:
    question: the whole prompt, used as it is.
    answer: the text the model has to write.
    choices: the options' texts in the order A, B, ..., one of them the answer;
      empty for exact match.
  """

  question: str
  answer: str
  choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
  """One family.

  Attributes:
    name: file name and task name.
    make: draws (arguments, answer, choices) from a random source.
    multiple_choice: whether the options are scored and nothing is written.
    form: how name and arguments make the prompt.
    atom: the name in the prompt, when it is not `name`.
  """

  name: str
  make: Callable[[random.Random], tuple]
  multiple_choice: bool = False
  form: str = PLAIN
  atom: str = ''

  def draw(self, rng: random.Random) -> Example:
    """Draws one example."""
    arguments, answer, *choices = self.make(rng)
    question = self.form.format(
      name=self.atom or self.name, arguments=arguments
    )
    return Example(question, answer, tuple(*choices))


def word(rng: random.Random, low: int, high: int, letters: bool = False) -> str:
  """A random word of `low`..`high` characters over one of three alphabets."""
  pick = rng.random()
  alphabet = LETTERS
  if pick < 0.2:
    alphabet = LETTERS[: rng.randint(5, 9)]
  elif pick < 0.45 and not letters:
    alphabet = DIGITS
  return ''.join(rng.choices(alphabet, k=rng.randint(low, high)))


def _alphabet_of(text: str) -> str:
  return DIGITS if text[0].isdigit() else LETTERS


def _distinct(rng: random.Random, count: int) -> list[str]:
  return rng.sample(LETTERS if rng.random() < 0.7 else DIGITS, count)


# Functions of one word, usable alone and in chains.


def reverse(text: str) -> str:
  return text[::-1]


def sort(text: str) -> str:
  return ''.join(sorted(text))


def shift(text: str, by: int = 1) -> str:
  alphabet = _alphabet_of(text)
  size = len(alphabet)
  return ''.join(alphabet[(alphabet.index(c) + by) % size] for c in text)


def down(text: str) -> str:
  return shift(text, -1)


def rotate(text: str) -> str:
  return text[1:] + text[:1]


def swap(text: str) -> str:
  pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
  return ''.join(pair[::-1] for pair in pairs)


def mirror(text: str) -> str:
  alphabet = _alphabet_of(text)
  return ''.join(alphabet[-1 - alphabet.index(c)] for c in text)


WORD_FUNCTIONS = {
  'rev': reverse,
  'sor': sort,
  'shf': shift,
  'dwn': down,
  'rot': rotate,
  'swp': swap,
  'atb': mirror,
}


def _of_word(function: Callable[[str], str], low: int = 4, high: int = 7):
  def make(rng):
    text = word(rng, low, high)
    return text, function(text)

  return make


def _upper(rng):
  text = word(rng, 4, 7, letters=True)
  return text, text.upper()


def _double(rng):
  text = word(rng, 3, 5)
  return text, ''.join(2 * c for c in text)


def _keypad(rng):
  text = word(rng, 3, 7, letters=True)
  return text, ''.join(_KEYPAD[c] for c in text)


def _vowels(rng):
  k = rng.randint(4, 8)
  text = ''.join(
    rng.choice(VOWELS if rng.random() < 0.45 else LETTERS) for _ in range(k)
  )
  kept = ''.join(c for c in text if c in VOWELS)
  return (text, kept) if kept else _vowels(rng)


def _runs(rng, groups: int, longest: int) -> list[tuple[str, int]]:
  names = _distinct(rng, groups + 1)
  found = []
  for _ in range(groups):
    options = [c for c in names if not found or c != found[-1][0]]
    found.append((rng.choice(options), rng.randint(1, longest)))
  return found


def _dedupe(rng):
  runs = _runs(rng, rng.randint(2, 5), 3)
  text = ''.join(c * n for c, n in runs)
  if not 4 <= len(text) <= 9 or len(text) == len(runs):
    return _dedupe(rng)
  return text, ''.join(c for c, _ in runs)


def _letter_runs(rng) -> list[tuple[str, int]]:
  while True:
    runs = _runs(rng, rng.randint(2, 4), 4)
    if runs[0][0].isalpha() and 3 <= sum(n for _, n in runs) <= 8:
      return runs


def _encode_runs(rng):
  runs = _letter_runs(rng)
  return ''.join(c * n for c, n in runs), ''.join(f'{c}{n}' for c, n in runs)


def _expand_runs(rng):
  text, short = _encode_runs(rng)
  return short, text


def _every_other(rng):
  text = word(rng, 4, 9)
  return text, text[1::2]


def _interleave(rng):
  n = rng.randint(2, 4)
  first, second = word(rng, n, n), word(rng, n, n)
  mixed = ''.join(a + b for a, b in zip(first, second, strict=True))
  return f'{first},{second}', mixed


def _second_first(rng):
  first, second = word(rng, 2, 4), word(rng, 2, 4)
  return f'{first},{second}', second + first


def _common(rng):
  shared = rng.randint(1, 3)
  names = _distinct(rng, 7)
  n, m = rng.randint(shared, 4), rng.randint(shared, 4)
  n, m = max(n, 3), max(m, 3)
  first = names[:n]
  second = first[:shared] + names[n : n + m - shared]
  rng.shuffle(first)
  rng.shuffle(second)
  both = ''.join(c for c in first if c in second)
  return f'{"".join(first)},{"".join(second)}', both


def _elementwise_max(rng):
  n = rng.randint(3, 4)
  pairs = [(rng.choice(DIGITS), rng.choice(DIGITS)) for _ in range(n)]
  first, second = (''.join(p[i] for p in pairs) for i in (0, 1))
  return f'{first},{second}', ''.join(max(p) for p in pairs)


def _with_key(rng, low: int, high: int) -> tuple[str, str]:
  """A word and one character that occurs one to four times in it."""
  text = list(word(rng, low, high))
  key = rng.choice(text)
  for i in rng.sample(range(len(text)), rng.randint(0, 3)):
    text[i] = key
  return ''.join(text), key


def _delete(rng):
  text, key = _with_key(rng, 5, 8)
  rest = text.replace(key, '')
  return (f'{key},{text}', rest) if rest else _delete(rng)


def _count(rng):
  text, key = _with_key(rng, 5, 10)
  return f'{key},{text}', str(text.count(key))


def _repeated(rng):
  names = _distinct(rng, rng.randint(4, 8))
  rest = names[1:]
  rng.shuffle(rest)
  text = rest[:]
  for _ in range(2):
    text.insert(rng.randint(0, len(text)), names[0])
  return ''.join(text), names[0]


def _nth(rng):
  text = word(rng, 4, 8)
  n = rng.randint(1, len(text))
  return f'{n},{text}', text[n - 1]


def _lookup(rng):
  n = rng.randint(3, 5)
  keys = rng.sample(LETTERS, n)
  values = rng.choices(DIGITS, k=n)
  pairs = ''.join(k + v for k, v in zip(keys, values, strict=True))
  i = rng.randrange(n)
  return f'{pairs},{keys[i]}', values[i]


def _largest(rng):
  shared = rng.choice(DIGITS[1:]) if rng.random() < 0.5 else ''
  low = 10 ** (2 - len(shared))
  numbers = [shared + str(n) for n in rng.sample(range(low, 10 * low), 3)]
  return ','.join(numbers), max(numbers), tuple(numbers)


def _compare(rng):
  n = rng.randint(3, 5)
  digits = rng.choices(DIGITS[1:], k=n)
  other = digits[:]
  start = rng.randrange(n)
  while other == digits:
    other[start:] = rng.choices(DIGITS[1:], k=n - start)
  a, b = ''.join(digits), ''.join(other)
  return f'{a},{b}', '>' if a > b else '<', ('<', '>')


def _balanced(rng):
  n = rng.randint(3, 6)
  text, stack = [], []
  while len(text) < 2 * n:
    left = 2 * n - len(text)
    if stack and (len(stack) == left or rng.random() < 0.5):
      text.append({'(': ')', '[': ']'}[stack.pop()])
    else:
      stack.append(rng.choice('(['))
      text.append(stack[-1])
  if rng.random() < 0.5:
    i = rng.randrange(2 * n)
    text[i] = rng.choice([c for c in '()[]' if c != text[i]])
    # One changed character always breaks the balance of one bracket kind.
    return ''.join(text), 'n', ('y', 'n')
  return ''.join(text), 'y', ('y', 'n')


def _palindrome(rng):
  half = word(rng, 2, 4)
  odd = rng.random() < 0.5
  text = list(half + half[::-1][odd:])
  if rng.random() < 0.5:
    i = rng.randrange(len(half) - odd)
    text[i] = rng.choice([c for c in _alphabet_of(half) if c != text[i]])
    return ''.join(text), 'n', ('y', 'n')
  return ''.join(text), 'y', ('y', 'n')


def _chain(first: str, second: str):
  def make(rng):
    text = word(rng, 3, 4)
    middle = WORD_FUNCTIONS[first](text)
    return text, f'{middle};{WORD_FUNCTIONS[second](middle)}'

  return make


_ATOMS = (
  *(Family(name, _of_word(f)) for name, f in WORD_FUNCTIONS.items()),
  Family('upc', _upper),
  Family('dbl', _double),
  Family('pad', _keypad),
  Family('vow', _vowels),
  Family('ded', _dedupe),
  Family('run', _encode_runs),
  Family('exp', _expand_runs),
  Family('evn', _every_other),
  Family('zip', _interleave),
  Family('cat', _second_first),
  Family('com', _common),
  Family('top', _elementwise_max),
  Family('del', _delete),
  Family('cnt', _count),
  Family('dup', _repeated),
  Family('nth', _nth),
  Family('kv', _lookup),
  Family('max', _largest, multiple_choice=True),
  Family('cmp', _compare, multiple_choice=True),
  Family('bal', _balanced, multiple_choice=True),
  Family('pal', _palindrome, multiple_choice=True),
)
_CHAINS = tuple(
  Family(f'{a}.{b}', _chain(a, b))
  for a, b in itertools.permutations(WORD_FUNCTIONS, 2)
)
_OTHER_FORMS = tuple(
  dataclasses.replace(
    family, name=f'{family.name}{mark}', form=form, atom=family.name
  )
  for mark, form in (('_', SUFFIX), ('-new', DOUBLED))
  for family in _ATOMS
  if not family.multiple_choice
)
FAMILIES: dict[str, Family] = {
  family.name: family for family in (*_ATOMS, *_CHAINS, *_OTHER_FORMS)
}
