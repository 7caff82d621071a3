"""bleu and chrf: as sacrebleu computes them, in a few lines of our own.

BLEU (Papineni et al. 2002) of up to four words, tokenised as mteval-v13a, with
exponential smoothing; sacrebleu's signature is
`nrefs:*|case:mixed|eff:no|tok:13a|smooth:exp`. chrF2 (Popović 2015) of up to
six characters without white space, beta 2, and with `word_order=2` chrF++.
Both are percentages of the whole task; an item's value is its sentence score
(BLEU then with effective order), as sacrebleu's sentence functions give it.

extract='line' takes the first line that is not blank, 'marked' the line after
the last 'Translation:' or 'Answer:', 'all' the whole output. level='sentence'
is the mean of the items. tokenize='char' is for languages without spaces, and
'none' splits at white space.
"""

import collections
from collections.abc import Sequence
import dataclasses
import math
import re
import string

import numpy as np

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item

_ORDER = 4
_ENTITIES = (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>'))
_RULES_13A = (
  (re.compile(r'([\{-\~\[-\` -\&\(-\+\:-\@\/])'), r' \1 '),
  (re.compile(r'([^0-9])([\.,])'), r'\1 \2 '),
  (re.compile(r'([\.,])([^0-9])'), r' \1 \2'),
  (re.compile(r'([0-9])(-)'), r'\1 \2 '),
)


@dataclasses.dataclass(frozen=True)
class _Translation(Scorer):
  """Base of both: an output against one or more references."""

  extract: str = option(
    'line', 'what the translation is', choices=('line', 'marked', 'all')
  )
  level: str = option(
    'corpus', 'what is scored', choices=('corpus', 'sentence')
  )

  binary = False
  max_new_tokens = 128

  @property
  def corpus(self) -> bool:
    return self.level == 'corpus'

  def score(self, item: Item, answer: Answer) -> Verdict:
    text = _extract(answer.text, self.extract)
    counts = self._counts(text or '', item.golds)
    return Verdict(text, self._from_counts(counts, sentence=True))

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    if self.level == 'sentence':
      return super().aggregate(items, verdicts)
    counts = sum(
      self._counts(text or '', item.golds)
      for item, text in zip(items, verdicts.predictions, strict=True)
    )
    return self._from_counts(counts, sentence=False)

  def _counts(self, text: str, golds: Sequence[str]) -> np.ndarray:
    raise NotImplementedError

  def _from_counts(self, counts: np.ndarray, sentence: bool) -> float:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bleu(_Translation):
  """BLEU of the task, in [0, 1]."""

  tokenize: str = option(
    '13a', 'what words are', choices=('13a', 'char', 'none')
  )

  metric = 'bleu'

  def _counts(self, text: str, golds: Sequence[str]) -> np.ndarray:
    """(hits, n-grams) of each order, length, nearest reference length."""
    words = tokenized(text, self.tokenize)
    references = [tokenized(gold, self.tokenize) for gold in golds]
    counts = np.zeros(2 * _ORDER + 2)
    for order in range(1, _ORDER + 1):
      own = _ngrams(words, order)
      most: collections.Counter = collections.Counter()
      for reference in references:
        most |= _ngrams(reference, order)
      counts[2 * order - 2] = sum((own & most).values())
      counts[2 * order - 1] = sum(own.values())
    lengths = [len(reference) for reference in references]
    # The nearest length; of two as near, the shorter.
    nearest = min(lengths, key=lambda n: (abs(n - len(words)), n))
    counts[-2:] = len(words), nearest
    return counts

  def _from_counts(self, counts: np.ndarray, sentence: bool) -> float:
    hits, totals = counts[: 2 * _ORDER : 2], counts[1 : 2 * _ORDER : 2]
    length, reference = counts[-2:]
    if not hits.any() or not length:
      return 0.0
    logs, smooth, orders = 0.0, 1.0, 0
    for hit, total in zip(hits, totals, strict=True):
      if not total:
        break
      orders += 1
      if not hit:
        smooth *= 2
      logs += math.log((hit or 1 / smooth) / total)
    if not sentence and orders < _ORDER:
      return 0.0
    brevity = min(0.0, 1 - reference / length)
    return math.exp(brevity + logs / orders)


@dataclasses.dataclass(frozen=True)
class Chrf(_Translation):
  """chrF2 of the task, in [0, 1]."""

  char_order: int = option(6, 'longest run of characters', low=1)
  word_order: int = option(0, 'longest run of words', low=0)
  beta: int = option(2, 'weight of recall', low=1)

  metric = 'chrf'

  def _counts(self, text: str, golds: Sequence[str]) -> np.ndarray:
    """(n-grams, reference n-grams, hits) of each order."""
    own = self._all_ngrams(text)
    best, best_score = None, -1.0
    for gold in golds:
      orders = []
      for mine, theirs in zip(own, self._all_ngrams(gold), strict=True):
        hits = sum((mine & theirs).values())
        # An output without n-grams of an order says nothing about it.
        total = sum(mine.values()) if theirs else 0
        orders.append((total, sum(theirs.values()), hits))
      counts = np.asarray(orders, np.float64)
      score = self._from_counts(counts, sentence=True)
      if score > best_score:
        best, best_score = counts, score
    return best

  def _from_counts(self, counts: np.ndarray, sentence: bool) -> float:
    del sentence
    own, reference, hits = counts.T
    used = (own > 0) & (reference > 0)
    if not used.any():
      return 0.0
    precision = float(np.mean(hits[used] / own[used]))
    recall = float(np.mean(hits[used] / reference[used]))
    if not precision + recall:
      return 0.0
    factor = self.beta**2
    return (1 + factor) * precision * recall / (factor * precision + recall)

  def _all_ngrams(self, text: str) -> list[collections.Counter]:
    letters = ''.join(text.split())
    words = [part for word in text.split() for part in _parted(word)]
    return [
      _ngrams(letters, order) for order in range(1, self.char_order + 1)
    ] + [_ngrams(words, order) for order in range(1, self.word_order + 1)]


def tokenized(text: str, tokenize: str) -> list[str]:
  """Returns words of a text by mteval-v13a, character or white space."""
  if tokenize == '13a':
    text = text.replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
    for entity, character in _ENTITIES:
      text = text.replace(entity, character)
    text = f' {text} '
    for pattern, replacement in _RULES_13A:
      text = pattern.sub(replacement, text)
  elif tokenize == 'char':
    text = ' '.join(text)
  return text.split()


def _ngrams(parts: Sequence[str], order: int) -> collections.Counter:
  return collections.Counter(
    tuple(parts[i : i + order]) for i in range(len(parts) - order + 1)
  )


def _parted(word: str) -> list[str]:
  """A word and the punctuation mark at its end or, else, its beginning."""
  if len(word) > 1 and word[-1] in string.punctuation:
    return [word[:-1], word[-1]]
  if len(word) > 1 and word[0] in string.punctuation:
    return [word[0], word[1:]]
  return [word]


_MARK = re.compile(r'\b(?:translation|answer)\s*:[ \t]*([^\n]*)', re.IGNORECASE)


def _extract(text: str, how: str) -> str | None:
  if how == 'all':
    return text.strip() or None
  if how == 'marked':
    marked = _MARK.findall(text)
    return marked[-1].strip() or None if marked else None
  return answers.first_line(text) or None
