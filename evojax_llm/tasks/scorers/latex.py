r"""math_match: the final answer of a MATH solution, up to how it is written.

The answer is the contents of the last \boxed{...}, else what follows the last
'answer is', else the last line. Two answers are the same where they are equal
after normalisation, or are the same number, or lists of the same answers in the
same order. Normalisation (after Hendrycks et al. 2021, arXiv 2103.03874, and
wider): white space, \left and \right, \! \, \; and \displaystyle go, as do
dollar signs, degrees, percent signs and a unit in \text{...} or \mbox{...} at
the end; \dfrac and \tfrac are \frac, and so is a/b of integers; \frac12 and
\sqrt3 get their braces; 'x =' before an answer goes; .5 is 0.5.

`match='genome'` is the published rule: the rest of the line after 'Answer:'
equals the gold answer to the letter (arXiv 2503.01155).
"""

import dataclasses
import re

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers import numerals
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item

_STATED = re.compile(r'answer\s+is\b\s*:?\s*([^\n]*)', re.IGNORECASE)
# What goes, in this order.
_GONE = (
  *r'\left \right \displaystyle \! \, \; \:'.split(),
  '\\ ',
  *r'^{\circ} ^\circ \circ \$ $ \% %'.split(),
  '\u00b0',
)
_UNIT = re.compile(r'\\(?:text|mbox|mathrm)\{[^{}]*\}$')
_TEXT = re.compile(r'\\(?:text\w*|mbox|mathrm|mathbf)\{([^{}]*)\}')
_SHORT_FRAC = re.compile(r'\\frac(?!\{)(\w|\{[^{}]*\})')
_MIXED_FRAC = re.compile(r'\\frac(\{[^{}]*\})(?!\{)(\w)')
_SHORT_ROOT = re.compile(r'\\sqrt(?![\[{])(\w)')
_NAMED = re.compile(r'^[a-zA-Z](?:\([a-zA-Z]\))?=(?=.)')
_SLASH = re.compile(r'^(-?)(\d+)/(\d+)$')
_FRACTION = re.compile(r'^(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}$')


@dataclasses.dataclass(frozen=True)
class MathMatch(Scorer):
  """Share of final answers that are those of the gold solutions."""

  match: str = option(
    'equivalent', 'when answers are equal', choices=('equivalent', 'genome')
  )

  metric = 'math_match'
  max_new_tokens = 512

  def score(self, item: Item, answer: Answer) -> Verdict:
    if self.match == 'genome':
      prediction = answers.marked(answer.text, last=False)
      return Verdict(prediction, float(prediction in item.golds))
    final = final_answer(answer.text)
    if final is None or not normalised(final):
      return Verdict(None, 0.0)
    golds = [answers.last_boxed(gold) or gold for gold in item.golds]
    right = any(equivalent(final, gold) for gold in golds)
    return Verdict(normalised(final), float(right))


def final_answer(text: str) -> str | None:
  """Returns the final answer of a solution as it is written, or None."""
  boxed = answers.last_boxed(text)
  if boxed is not None:
    return boxed.strip() or None
  stated = _STATED.findall(text)
  lines = stated or [line for line in text.splitlines() if line.strip()]
  return answers.without_lead_in(lines[-1].strip()) or None if lines else None


def normalised(text: str) -> str:
  """Returns an answer in one spelling; see the module."""
  text = text.strip().rstrip('.').strip()
  text = text.replace('\\dfrac', '\\frac').replace('\\tfrac', '\\frac')
  for gone in _GONE:
    text = text.replace(gone, '')
  shorter = _UNIT.sub('', text.strip()).strip()
  text = _TEXT.sub(r'\1', shorter or text)
  text = ''.join(text.split())
  text = re.sub(r'(\d),(?=\d{3}(?!\d))', r'\1', text)
  text = _SHORT_FRAC.sub(_braced, text)
  text = _MIXED_FRAC.sub(r'\\frac\1{\2}', text)
  text = _SHORT_ROOT.sub(r'\\sqrt{\1}', text)
  text = re.sub(r'([_^])\{(\w)\}', r'\1\2', text)
  text = _NAMED.sub('', text)
  text = re.sub(r'(^|[^\d])\.(?=\d)', r'\g<1>0.', text)
  return _SLASH.sub(r'\1\\frac{\2}{\3}', text).rstrip('.')


def _braced(match: re.Match[str]) -> str:
  part = match.group(1)
  return '\\frac' + (part if part.startswith('{') else f'{{{part}}}')


def equivalent(first: str, second: str) -> bool:
  """Returns whether two answers are the same up to how they are written."""
  first, second = normalised(first), normalised(second)
  if first == second:
    return True
  a, b = _value(first), _value(second)
  if a is not None and b is not None:
    return a == b
  one, other = _parts(first), _parts(second)
  return (
    len(one) == len(other) > 1
    and first[0] == second[0]
    and all(map(equivalent, one, other))
  )


def _value(text: str):
  """The number that a normalised answer is, or None."""
  match = _FRACTION.match(text)
  if match:
    sign, top, bottom = match.groups()
    # One minus sign, wherever it stands.
    minus = (sign + top + bottom).count('-') % 2
    text = f'{"-" * minus}{top.lstrip("-")}/{bottom.lstrip("-")}'
  return numerals.whole_number(text) if not text.startswith('+') else None


def _parts(text: str) -> list[str]:
  """Elements of a list in one pair of brackets, at the outer level."""
  if len(text) < 2 or text[0] not in '([{':
    return [text]
  parts, depth, part = [], 0, ''
  for letter in text[1:-1]:
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append(part)
      part = ''
    else:
      part += letter
  return [*parts, part]
