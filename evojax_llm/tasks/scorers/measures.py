"""Scorers between right and wrong: words and characters that two texts share.

BLEU and chrF are as sacrebleu computes them, ROUGE-L as rouge_score does, exact
match and F1 of reading answers as DROP's script does.
"""

import collections
from collections.abc import Sequence
import dataclasses
import math
import re
import string

import numpy as np
from scipy import optimize

from evojax_llm.options import option
from evojax_llm.tasks.scorers import answers
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.task import Item

_ORDER = 4  # of BLEU
_ENTITIES = (('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>'))
_RULES_13A = (
  (re.compile(r'([\{-\~\[-\` -\&\(-\+\:-\@\/])'), r' \1 '),
  (re.compile(r'([^0-9])([\.,])'), r'\1 \2 '),
  (re.compile(r'([\.,])([^0-9])'), r' \1 \2'),
  (re.compile(r'([0-9])(-)'), r'\1 \2 '),
)
_MARK = re.compile(r'\b(?:translation|answer)\s*:[ \t]*([^\n]*)', re.IGNORECASE)
_ARTICLES = re.compile(r'\b(?:a|an|the)\b')


@dataclasses.dataclass(frozen=True)
class _Translation(Scorer):
  """Base of BLEU and chrF: an output against one or more references.

  Scores are made `_from_counts`, which add up over the items.
  Both are shares of the whole task; an item's value is its sentence score (BLEU
  then with effective order), as sacrebleu's sentence functions give it.

  extract='line' takes the first line that is not blank, 'marked' the line after
  the last 'Translation:' or 'Answer:', 'all' the whole output. level='sentence'
  is the mean of the items.
  """

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
    if self.extract == 'all':
      text = answer.text.strip()
    elif self.extract == 'marked':
      text = (_MARK.findall(answer.text) or [''])[-1].strip()
    else:
      text = answers.first_line(answer.text)
    counts = self._counts(text or '', item.golds)
    return Verdict(text or None, self._from_counts(counts, sentence=True))

  def aggregate(self, items: Sequence[Item], verdicts: Verdicts) -> float:
    if self.level == 'sentence':
      return super().aggregate(items, verdicts)
    counts = sum(
      self._counts(text or '', item.golds)
      for item, text in zip(items, verdicts.predictions, strict=True)
    )
    return self._from_counts(counts, sentence=False)


@dataclasses.dataclass(frozen=True)
class Bleu(_Translation):
  """BLEU of the task, in [0, 1].

  BLEU (Papineni et al. 2002) of up to four words, tokenised as mteval-v13a,
  with exponential smoothing; sacrebleu's signature is
  `nrefs:*|case:mixed|eff:no|tok:13a|smooth:exp`. tokenize='char' is for
  languages without spaces, and 'none' splits at white space.
  """

  tokenize: str = option(
    '13a', 'what words are', choices=('13a', 'char', 'none')
  )

  metric = 'bleu'

  def _counts(self, text: str, golds: Sequence[str]) -> np.ndarray:
    """(hits, n-grams) of each order, length, nearest reference length."""
    words = self._words(text)
    references = [self._words(gold) for gold in golds]
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

  def _words(self, text: str) -> list[str]:
    if self.tokenize == '13a':
      text = text.replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
      for entity, character in _ENTITIES:
        text = text.replace(entity, character)
      text = f' {text} '
      for pattern, replacement in _RULES_13A:
        text = pattern.sub(replacement, text)
    elif self.tokenize == 'char':
      text = ' '.join(text)
    return text.split()


@dataclasses.dataclass(frozen=True)
class Chrf(_Translation):
  """chrF2 of the task, in [0, 1].

  chrF2 (Popović 2015) of up to six characters without white space, beta 2, and
  with `word_order=2` chrF++.
  """

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


@dataclasses.dataclass(frozen=True)
class RougeL(Scorer):
  """Mean ROUGE-L F measure, in [0, 1].

  ROUGE-L (Lin 2004): the F measure of LCS / words of the output and LCS / words
  of the reference, the best of several references. Words are runs of the
  letters a to z and digits, in lower case; `tokenize='characters'` compares
  characters without white space, for scripts that do not part words (Sakana's
  evaluation parts them with MeCab, arXiv 2403.13187). There is no stemming.
  """

  tokenize: str = option(
    'words', 'what is compared', choices=('words', 'characters')
  )

  metric = 'rouge_l'
  binary = False
  max_new_tokens = 128

  def score(self, item: Item, answer: Answer) -> Verdict:
    text = answer.text.strip()
    own = self._parts(text)
    value = max(_f_measure(own, self._parts(gold)) for gold in item.golds)
    return Verdict(text or None, value)

  def _parts(self, text: str) -> Sequence[str]:
    if self.tokenize == 'characters':
      return ''.join(text.split())
    return re.sub(r'[^a-z0-9]+', ' ', text.lower()).split()


def _f_measure(own: Sequence[str], reference: Sequence[str]) -> float:
  """The F measure of two sequences' longest common subsequence."""
  if not own or not reference:
    return 0.0
  row = [0] * (len(reference) + 1)
  for part in own:
    diagonal = 0
    for j, other in enumerate(reference, start=1):
      above = row[j]
      row[j] = diagonal + 1 if part == other else max(above, row[j - 1])
      diagonal = above
  # 2 PR / (P + R) with P = LCS / own and R = LCS / reference.
  return 2 * row[-1] / (len(own) + len(reference))


@dataclasses.dataclass(frozen=True)
class Drop(Scorer):
  """Exact match or F1 by the rules of DROP.

  Words are parted at spaces and hyphens; case, articles and punctuation go, and
  numbers are compared as numbers (Dua et al. 2019, arXiv 1903.00161). F1 is
  that of the two sets of words, and 0 where the gold answer has numbers and
  none of them is in the output; it is rounded to two places, as in the script.
  Alternatives of a gold answer are parted by `separator` ('a|b', as GENOME's
  data has them); the best one counts.

  An answer may be several spans, in any order: `spans` is what parts them in
  gold answers and in the output ('Bell, Gray'). They match exactly where both
  have the same spans, and F1 is the mean over spans that are matched one to one
  as well as can be; spans without a partner count 0.

  extract='line' takes the first line that is not blank, 'marked' the rest of
  the line after the last 'Answer:'; 'genome' takes the first 'Answer:' line,
  else the whole text (arXiv 2503.01155).
  """

  score_by: str = option('em', 'what is scored', choices=('em', 'f1'))
  extract: str = option(
    'line', 'what the answer is', choices=('line', 'marked', 'genome')
  )
  separator: str = option('|', "between alternatives of a gold; '' for none")
  spans: str = option('', "between spans of an answer; '' for one span")

  max_new_tokens = 64

  @property
  def metric(self) -> str:
    return f'drop_{self.score_by}'

  @property
  def binary(self) -> bool:
    return self.score_by == 'em'

  def score(self, item: Item, answer: Answer) -> Verdict:
    text = answer.text
    if self.extract == 'genome':
      text = answers.marked(text, last=False) or text
    else:
      marked = self.extract == 'marked'
      text = (answers.marked if marked else answers.first_line)(text) or ''
    own = self._spans(text)
    if not own:
      return Verdict(None, 0.0)
    golds = [
      self._spans(part)
      for gold in item.golds
      for part in (gold.split(self.separator) if self.separator else [gold])
    ]
    prediction = (self.spans or ' ').join(map(' '.join, own))
    return Verdict(prediction, max(self._measure(own, gold) for gold in golds))

  def _measure(self, own: list[list[str]], gold: list[list[str]]) -> float:
    if self.score_by == 'em':
      same = set(map(tuple, own)) == set(map(tuple, gold))
      return float(len(own) == len(gold) and same)
    if not gold:
      return 0.0
    each = np.array([[_span_f1(mine, one) for mine in own] for one in gold])
    best = each[optimize.linear_sum_assignment(-each)].sum()
    return round(float(best) / max(each.shape), 2)

  def _spans(self, text: str) -> list[list[str]]:
    """Returns the spans of an answer that have words, each as its words."""
    parts = text.split(self.spans) if self.spans else [text]
    return [words for words in map(_drop_words, parts) if words]


def _drop_words(text: str) -> list[str]:
  words = []
  for word in re.split(r'[ \n\t-]+', text):
    number = _number(word)
    if number is None:
      word = ''.join(c for c in word if c not in string.punctuation)
      number = _number(word)
    word = str(number) if number is not None else word.lower()
    words += _ARTICLES.sub(' ', word).split()
  return words


def _span_f1(own: list[str], gold: list[str]) -> float:
  wanted = {word for word in gold if _number(word) is not None}
  if wanted and not wanted & set(own):
    return 0.0
  mine, theirs = set(own), set(gold)
  return 2 * len(mine & theirs) / (len(mine) + len(theirs))


def _number(word: str) -> float | None:
  try:
    value = float(word)
  except ValueError:
    return None
  return value if word.strip().lower().lstrip('+-')[:1] not in 'in' else None
