"""rouge_l: longest common subsequence of words, as rouge_score computes it.

ROUGE-L (Lin 2004): the F measure of LCS / words of the output and LCS / words
of the reference, the best of several references. Words are runs of the letters
a to z and digits, in lower case; `tokenize='characters'` compares characters
without white space, for scripts that do not part words (Sakana's evaluation
parts them with MeCab, arXiv 2403.13187). There is no stemming.
"""

from collections.abc import Sequence
import dataclasses
import re

from evojax_llm.options import option
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item


@dataclasses.dataclass(frozen=True)
class RougeL(Scorer):
  """Mean ROUGE-L F measure, in [0, 1]."""

  tokenize: str = option(
    'words', 'what is compared', choices=('words', 'characters')
  )

  metric = 'rouge_l'
  binary = False
  max_new_tokens = 128

  def score(self, item: Item, answer: Answer) -> Verdict:
    text = answer.text.strip()
    own = self._parts(text)
    value = max(f_measure(own, self._parts(gold)) for gold in item.golds)
    return Verdict(text or None, value)

  def _parts(self, text: str) -> Sequence[str]:
    if self.tokenize == 'characters':
      return ''.join(text.split())
    return re.sub(r'[^a-z0-9]+', ' ', text.lower()).split()


def f_measure(own: Sequence[str], reference: Sequence[str]) -> float:
  """Returns the F measure of two sequences' longest common subsequence."""
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
