r"""Scorers of numbers and formulas, and the numbers in a text as fractions.

A numeral may have a sign, a currency sign on either side of the sign, commas
between groups of three digits, a decimal part, an exponent, or the form a/b
(also with a whole part: 1 1/2). A unit, a percent sign or a period after it is
not part of it: '50 %' and '50 dollars.' are 50. A minus sign counts only where
no number, letter or bracket stands before it: '5-3' holds 5 and 3.
"""

import dataclasses
import fractions
import re

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

# Longer runs of digits and larger exponents are noise from a degenerate model;
# turning them into exact fractions would cost unbounded time and memory.
_MAX_DIGITS = 300
_MAX_EXPONENT = 300

_CURRENCY = '$€£¥₹'
_MINUS = '-\u2212\u2013'  # hyphen, minus sign, en dash
_NUMERAL = re.compile(
  rf"""
  (?<![\w^])(?<!\d\.)                             # not inside a word, number
  (?P<sign>(?<![\w)\]}}])[{_MINUS}+])?          # a sign, not a difference
  (?:[{_CURRENCY}]\s?(?P<sign2>[{_MINUS}])?)?
  (?:
    (?<!/)(?:(?P<whole>[0-9]+)[ ])?
    (?P<top>[0-9]+)/(?P<bottom>[0-9]+)(?![\d/]|\.\d)
  |
    (?P<digits>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9]) | [0-9]+)?
    (?P<decimals>(?<!\.)\.[0-9]+)?
    (?:[eE](?P<exponent>[+-]?[0-9]+)(?!\w))?
  )
  """,
  re.VERBOSE,
)
_FRAC = re.compile(r'\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}')
# A unit: a sign or up to three words, then nothing but a period.
_UNIT = re.compile(r'\s*[%°]?\s*(?:[^\W\d_]+[ /]?){0,3}\.?\s*')
# LaTeX dress around digits: \$, \%, thin spaces and braces between groups.
_DRESS = (
  *(('{,}', ','), ('\\!', ''), ('\\$', '$'), ('\\%', '%')),
  *(('\\,', ''), ('**', ' ')),
)

_SUBSTRING = ('model_swarms', 'evogm')
_MATCHES = ('number', *_SUBSTRING, 'genome', 'sakana')
_PLAIN_NUMBER = re.compile(r'-?[0-9]+(?:\.[0-9]+)?')

_STATED = re.compile(r'answer\s+is\b\s*:?\s*([^\n]*)', re.IGNORECASE)
# What goes of a formula, in this order.
_GONE = (
  *r'\left \right \displaystyle \! \, \; \:'.split(),
  '\\ ',
  *r'^{\circ} ^\circ \circ \$ $ \% %'.split(),
  '\u00b0',
)
_TEXT_UNIT = re.compile(r'\\(?:text|mbox|mathrm)\{[^{}]*\}$')
# What becomes what, in this order.
_SPELLINGS = (
  (re.compile(r'\\(?:text\w*|mbox|mathrm|mathbf)\{([^{}]*)\}'), r'\1'),
  (re.compile(r'\s+'), ''),
  (re.compile(r'(\d),(?=\d{3}(?!\d))'), r'\1'),
  (re.compile(r'\\frac(?!\{)(\w)'), r'\\frac{\1}'),
  (re.compile(r'\\frac(\{[^{}]*\})(?!\{)(\w)'), r'\\frac\1{\2}'),
  (re.compile(r'\\sqrt(?![\[{])(\w)'), r'\\sqrt{\1}'),
  (re.compile(r'([_^])\{(\w)\}'), r'\1\2'),
  (re.compile(r'^[a-zA-Z](?:\([a-zA-Z]\))?=(?=.)'), ''),
  (re.compile(r'(^|[^\d])\.(?=\d)'), r'\g<1>0.'),
  (re.compile(r'^(-?)(\d+)/(\d+)$'), r'\1\\frac{\2}{\3}'),
)
_FRACTION = re.compile(r'^(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}$')


def _value(match: re.Match[str] | None) -> fractions.Fraction | None:
  """The number of a match of `_NUMERAL`, or None where there is none."""
  if match is None or len(match.group()) > _MAX_DIGITS:
    return None
  groups = match.groupdict(default='')
  if groups['top']:
    if not int(groups['bottom']):
      return None
    value = fractions.Fraction(int(groups['top']), int(groups['bottom']))
    value += int(groups['whole'] or 0)
  else:
    digits = groups['digits'].replace(',', '')
    if not digits and not groups['decimals']:
      return None
    value = fractions.Fraction((digits or '0') + groups['decimals'])
    exponent = int(groups['exponent'] or 0)
    if abs(exponent) > _MAX_EXPONENT:
      return None
    value *= fractions.Fraction(10) ** exponent
  signs = (groups['sign'], groups['sign2'])
  return -value if any(sign and sign in _MINUS for sign in signs) else value


def _plain(text: str) -> str:
  text = _FRAC.sub(r'\1/\2', text)
  for dressed, plain in _DRESS:
    text = text.replace(dressed, plain)
  return text


def find_numbers(text: str) -> list[fractions.Fraction]:
  """Returns all numbers of a text, in order."""
  values = map(_value, _NUMERAL.finditer(_plain(text)))
  return [value for value in values if value is not None]


def whole_number(text: str) -> fractions.Fraction | None:
  """Returns the number that a text *is*, but for a unit sign, or None.

  A gold answer that ends in '#### 72', as in GSM8K (arXiv 2110.14168), is 72.
  """
  text = _plain(text.rsplit('####', 1)[-1]).strip()
  text = text.removesuffix('.').removesuffix('%').strip()
  return _value(_NUMERAL.fullmatch(text))


def quantity(text: str) -> fractions.Fraction | None:
  """Returns the number of a text that is one and perhaps its unit, or None.

  '18 dollars per day.' is 18; '2. Add the two' and '3 and 4' are None.
  """
  text = _plain(text).strip()
  match = _NUMERAL.match(text)
  return _value(match) if match and _UNIT.fullmatch(text, match.end()) else None


def write_number(value: fractions.Fraction) -> str:
  """Writes a number in one way: an integer, a finite decimal, else 'a/b'."""
  if value.denominator == 1:
    return str(value.numerator)
  rest, places = value.denominator, 0
  for prime in (2, 5):
    count = 0
    while rest % prime == 0:
      rest //= prime
      count += 1
    places = max(places, count)
  if rest != 1 or places > 20:
    return f'{value.numerator}/{value.denominator}'
  scaled = abs(value.numerator) * 10**places // value.denominator
  digits = str(scaled).rjust(places + 1, '0')
  sign = '-' if value < 0 else ''
  return f'{sign}{digits[:-places]}.{digits[-places:]}'


@dataclasses.dataclass(frozen=True)
class NumericMatch(Scorer):
  r"""Share of outputs whose last number is the gold number.

  The last '#### number' (a number, perhaps with a unit, to the line's end) is
  the answer; else the last number of the last \boxed{...}; else the last number
  of the text.

  Published rules, by name of `match`:
    model_swarms  the gold answer is a substring of the last `last_words` words
                  of the output: 10 on its test, 5 on its dev (arXiv
                  2410.11163).
    evogm         the same with 10 words (arXiv 2605.29295).
    genome        the rest of the line after 'Answer:' without all that is no
                  digit equals the gold answer (arXiv 2503.01155, mgsm): '-3' is
                  3 and '1.5' is 15.
    sakana        the last match of an integer or decimal without commas (arXiv
                  2403.13187, MGSM): '1,000' is 0.
  """

  match: str = option('number', 'what is compared', choices=_MATCHES)
  last_words: int = option(
    10, 'words in which model_swarms and evogm look', low=1
  )
  tolerance: float = option(
    0.0, 'relative difference that counts as equal', low=0.0
  )

  metric = 'numeric_match'
  max_new_tokens = 256

  def check(self, item: Item) -> None:
    for gold in item.golds:
      if whole_number(gold) is None:
        raise TaskError(
          f'a numeric_match task needs a number as its answer; got {gold!r}.'
        )

  def score(self, item: Item, answer: Answer) -> Verdict:
    if self.match in _SUBSTRING:
      tail = ' '.join(answer.text.split(' ')[-self.last_words :])
      return Verdict(tail.strip() or None, float(item.answer in tail))
    prediction = self.extract(answer.text)
    if prediction is None:
      return Verdict(None, 0.0)
    golds = [whole_number(gold) for gold in item.golds]
    if None in golds:
      self.check(item)
    if not self.tolerance:
      return Verdict(prediction, float(prediction in map(write_number, golds)))
    value = whole_number(prediction)
    close = any(abs(value - g) <= self.tolerance * abs(g) for g in golds)
    return Verdict(prediction, float(close))

  def extract(self, text: str) -> str | None:
    """Returns the number of an output in one spelling (1000, 0.5, 1/3)."""
    if self.match == 'genome':
      marked = answers.marked(text, last=False) or ''
      return re.sub(r'[^0-9]', '', marked) or None
    if self.match == 'sakana':
      plain = _PLAIN_NUMBER.findall(text)
      value = whole_number(plain[-1]) if plain else None
      return None if value is None else write_number(value)
    for rest in reversed(re.findall(r'####([^\n]*)', text)):
      value = quantity(rest)
      if value is not None:
        return write_number(value)
    for part in (answers.last_boxed(text), text):
      numbers = find_numbers(part or '')
      if numbers:
        return write_number(numbers[-1])
    return None


@dataclasses.dataclass(frozen=True)
class MathMatch(Scorer):
  r"""Share of final answers that are those of the gold solutions.

  The answer is the contents of the last \boxed{...}, else what follows the last
  'answer is', else the last line. Two answers are the same where they are equal
  after normalisation, or are the same number, or lists of the same answers in
  the same order. Normalisation (after Hendrycks et al. 2021, arXiv 2103.03874,
  and wider): white space, \left and \right, \! \, \; and \displaystyle go, as
  do dollar signs, degrees, percent signs and a unit in \text{...} or \mbox{...}
  at the end; \dfrac and \tfrac are \frac, and so is a/b of integers; \frac12
  and \sqrt3 get their braces; 'x =' before an answer goes; .5 is 0.5.

  `match='genome'` is the published rule: the rest of the line after 'Answer:'
  equals the gold answer to the letter (arXiv 2503.01155).
  """

  match: str = option(
    'equivalent', 'when answers are equal', choices=('equivalent', 'genome')
  )

  metric = 'math_match'
  max_new_tokens = 512

  def score(self, item: Item, answer: Answer) -> Verdict:
    if self.match == 'genome':
      prediction = answers.marked(answer.text, last=False)
      return Verdict(prediction, float(prediction in item.golds))
    final = _final_answer(answer.text)
    prediction = _normalised(final)
    if not prediction:
      return Verdict(None, 0.0)
    golds = [answers.last_boxed(gold) or gold for gold in item.golds]
    right = any(_equivalent(final, gold) for gold in golds)
    return Verdict(prediction, float(right))


def _final_answer(text: str) -> str:
  boxed = answers.last_boxed(text)
  if boxed is not None:
    return boxed
  lines = _STATED.findall(text) or [x for x in text.splitlines() if x.strip()]
  return answers.without_lead_in(lines[-1].strip()) if lines else ''


def _normalised(text: str) -> str:
  text = text.strip().rstrip('.').strip()
  text = text.replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac')
  for gone in _GONE:
    text = text.replace(gone, '')
  text = _TEXT_UNIT.sub('', text.strip()).strip() or text
  for pattern, spelling in _SPELLINGS:
    text = pattern.sub(spelling, text)
  return text.rstrip('.')


def _equivalent(first: str, second: str) -> bool:
  first, second = _normalised(first), _normalised(second)
  if first == second:
    return True
  a, b = _formula_value(first), _formula_value(second)
  if a is not None and b is not None:
    return a == b
  one, other = _parts(first), _parts(second)
  return (
    len(one) == len(other) > 1
    and first[0] == second[0]
    and all(map(_equivalent, one, other))
  )


def _formula_value(text: str) -> fractions.Fraction | None:
  """The number that a normalised answer is, or None."""
  match = _FRACTION.match(text)
  if match:
    sign, top, bottom = match.groups()
    # One minus sign, wherever it stands.
    minus = (sign + top + bottom).count('-') % 2
    text = f'{"-" * minus}{top.lstrip("-")}/{bottom.lstrip("-")}'
  return whole_number(text) if not text.startswith('+') else None


def _parts(text: str) -> list[str]:
  """Elements of a list in one pair of brackets, at the outer level."""
  if len(text) < 2 or text[0] not in '([{':
    return [text]
  parts, depth = [''], 0
  for letter in text[1:-1]:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += letter
  return parts
