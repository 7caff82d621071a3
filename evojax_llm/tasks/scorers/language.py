"""A language gate: an answer in another language is wrong.

Sakana's MGSM multiplies correctness by whether fastText takes the output for
Japanese (arXiv 2403.13187); so does MERGE3. Its ROUGE-L on images does so only
where the gold answer is Japanese as well (gate 'gold'). `Gated` wraps any
scorer of text. A detector is a function (text, language) -> probability in
[0, 1]; the default looks at the scripts of the letters, needs no model, and
tells languages apart only where they are written differently.
"""

from collections.abc import Sequence
import dataclasses
import numbers
from typing import Any
import unicodedata

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task import find_function
from evojax_llm.tasks.task import shown

# First words of the Unicode names of a language's letters; the second list is
# of scripts that it shares with others and does not tell it from them.
_SCRIPTS = {
  'ja': ('HIRAGANA KATAKANA', 'CJK'),
  'zh': ('CJK', ''),
  'ko': ('HANGUL', 'CJK'),
  'ru': ('CYRILLIC', ''),
  'el': ('GREEK', ''),
  'ar': ('ARABIC', ''),
  'he': ('HEBREW', ''),
  'hi': ('DEVANAGARI', ''),
  'bn': ('BENGALI', ''),
  'th': ('THAI', ''),
  'te': ('TELUGU', ''),
  'ta': ('TAMIL', ''),
}


def by_script(text: str, language: str) -> float:
  """Returns the share of a text's letters that are of a language's scripts.

  0 where none of its own scripts occurs: Chinese is not Japanese.

  Raises:
    TaskError: the language shares its script with others.
  """
  if language not in _SCRIPTS:
    raise TaskError(
      f'language: the detector by script knows {", ".join(_SCRIPTS)}; got '
      f"{language!r}. Name another detector, as 'module:function'."
    )
  own, shared = map(str.split, _SCRIPTS[language])
  letters = (unicodedata.name(c, '?') for c in text if c.isalpha())
  names = [name.split(' ')[0].split('-')[0] for name in letters]
  if not any(name in own for name in names):
    return 0.0
  return sum(name in own + shared for name in names) / len(names)


@dataclasses.dataclass(frozen=True)
class Gated:
  """A scorer of text whose values count only in one language.

  Attributes:
    scorer: what is wrapped; all else is asked of it.
    language: such as 'ja'.
    detector: 'script', or 'module:function' of (text, language) -> probability.
    threshold: the probability that the language must exceed.
    gate: 'all' answers, or those of items whose 'gold' answer is in the
      language.
  """

  scorer: Scorer
  language: str
  detector: str = 'script'
  threshold: float = 0.5
  gate: str = 'all'

  def __post_init__(self):
    for field in dataclasses.fields(self)[1:]:
      value = getattr(self, field.name)
      kinds = (float, int) if field.type is float else (str,)
      if not isinstance(value, kinds) or isinstance(value, bool):
        expected = f'expected {field.type.__name__}, got {shown(value)}'
        raise TaskError(f'{field.name}: {expected}.')
    if self.gate not in ('all', 'gold'):
      raise TaskError(f"gate: expected 'all' or 'gold', got {self.gate!r}.")
    if self.scorer.reads != 'text':
      raise TaskError(
        f'language: expected a kind that generates text, and this one reads '
        f"'{self.scorer.reads}'."
      )
    if not self.scorer.maximise:
      raise TaskError('language: a metric to be minimised cannot be gated.')
    if self.detector == 'script':
      by_script('', self.language)
    else:
      find_function(self.detector)

  def __getattr__(self, name: str) -> Any:
    if name == 'scorer':  # not set yet, as while it is unpickled
      raise AttributeError(name)
    return getattr(self.scorer, name)

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Scores one answer; 0 in another language."""
    return self.score_all([(item, answer)])[0]

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    """Scores many answers; 0 in another language."""
    verdicts = self.scorer.score_all(pairs)
    for i, (item, answer) in enumerate(pairs):
      golds = item.golds if self.gate == 'gold' else ()
      gated = not golds or any(map(self._is_in_language, golds))
      if gated and not self._is_in_language(answer.text):
        verdicts[i] = dataclasses.replace(verdicts[i], value=0.0)
    return verdicts

  def _is_in_language(self, text: str) -> bool:
    return self._probability(text) > self.threshold

  def _probability(self, text: str) -> float:
    if self.detector == 'script':
      return by_script(text, self.language)
    value = find_function(self.detector)(text, self.language)
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
      raise TaskError(
        f'detector: {self.detector} gave {value!r}; expected a probability.'
      )
    return float(value)
