"""Numbers in text: what a gold answer or an output says, as a fraction.

A numeral may have a sign, a currency sign on either side of the sign, commas
between groups of three digits, a decimal part, an exponent, or the form a/b
(also with a whole part: 1 1/2). A unit, a percent sign or a period after it is
not part of it: '50 %' and '50 dollars.' are 50. A minus sign counts only where
no number, letter or bracket stands before it: '5-3' holds 5 and 3.
"""

import fractions
import re

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
  ('{,}', ','),
  ('\\!', ''),
  ('\\$', '$'),
  ('\\%', '%'),
  ('\\,', ''),
  ('**', ' '),
)


def _value(match: re.Match[str]) -> fractions.Fraction | None:
  """The number of one regex match, or None where there is none."""
  groups = match.groupdict()
  if len(match.group()) > _MAX_DIGITS:
    return None
  negative = any(
    groups[name] is not None and groups[name] in _MINUS
    for name in ('sign', 'sign2')
  )
  if groups['top'] is not None:
    bottom = int(groups['bottom'])
    if bottom == 0:
      return None
    value = fractions.Fraction(int(groups['top']), bottom)
    value += int(groups['whole'] or 0)
  else:
    digits = (groups['digits'] or '').replace(',', '')
    decimals = groups['decimals'] or ''
    if not digits and not decimals:
      return None
    value = fractions.Fraction((digits or '0') + decimals)
    if groups['exponent'] is not None:
      exponent = int(groups['exponent'])
      if abs(exponent) > _MAX_EXPONENT:
        return None
      value *= fractions.Fraction(10) ** exponent
  return -value if negative else value


def _plain(text: str) -> str:
  text = _FRAC.sub(r'\1/\2', text)
  for dressed, plain in _DRESS:
    text = text.replace(dressed, plain)
  return text


def find_numbers(text: str) -> list[fractions.Fraction]:
  """All numbers of a text, in order."""
  values = (_value(match) for match in _NUMERAL.finditer(_plain(text)))
  return [value for value in values if value is not None]


def whole_number(text: str) -> fractions.Fraction | None:
  """The number that a text *is*, but for a unit sign; None where it is not.

  A gold answer that ends in '#### 72', as in GSM8K (arXiv 2110.14168), is 72.
  """
  text = _plain(text.rsplit('####', 1)[-1]).strip()
  text = text.removesuffix('.').removesuffix('%').strip()
  match = _NUMERAL.fullmatch(text)
  return None if match is None else _value(match)


def quantity(text: str) -> fractions.Fraction | None:
  """The number of a text that is one number and perhaps its unit, else None.

  '18 dollars per day.' is 18; '2. Add the two' and '3 and 4' are None.
  """
  text = _plain(text).strip()
  match = _NUMERAL.match(text)
  if match is None or not _UNIT.fullmatch(text, match.end()):
    return None
  return _value(match)


def write_number(value: fractions.Fraction) -> str:
  """A number in one way: an integer, a finite decimal, else 'a/b'."""
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
