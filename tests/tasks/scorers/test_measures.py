"""Measures between right and wrong, against the packages that define them."""

import json
import math

import pytest

from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Verdicts
from evojax_llm.tasks.scorers.choice_text import WeightedF1
from evojax_llm.tasks.scorers.choice_text import weighted_f1
from evojax_llm.tasks.scorers.measures import Bleu
from evojax_llm.tasks.scorers.measures import Chrf
from evojax_llm.tasks.scorers.measures import RougeL
from evojax_llm.tasks.scorers.options import MultipleChoice
from evojax_llm.tasks.scorers.options import Perplexity
from evojax_llm.tasks.task import Item
from tests.golden import make_metrics
from tests.tasks.scorers.judging import judge
from tests.tasks.scorers.judging import letter_item
from tests.tasks.scorers.judging import text_item

ITEMS = [text_item(r[0], *r[1:]) for _, r in make_metrics.PAIRS]
OUTPUTS = [output for output, _ in make_metrics.PAIRS]


@pytest.fixture(scope='module', params=['stored', 'live'])
def expected(request):
  """Scores by sacrebleu and rouge_score, as stored and as they are now."""
  if request.param == 'stored':
    return json.loads(make_metrics.FILE.read_text())
  for package in ('sacrebleu', 'rouge_score'):
    pytest.importorskip(package, reason=f'{package} is the oracle here')
  return make_metrics.compute()


def scored(scorer):
  """100 times the corpus score and the items' scores."""
  verdicts = [
    scorer.score(item, Answer((output,)))
    for item, output in zip(ITEMS, OUTPUTS, strict=True)
  ]
  values = [100 * verdict.value for verdict in verdicts]
  return 100 * scorer.aggregate(ITEMS, Verdicts.of(verdicts)), values


@pytest.mark.parametrize('name', make_metrics.bleu_options())
def test_bleu_is_that_of_sacrebleu(name, expected):
  options = make_metrics.bleu_options()[name]
  corpus, sentences = scored(Bleu(extract='all', **options))
  assert corpus == pytest.approx(expected[f'bleu {name}'][0], abs=1e-8)
  assert sentences == pytest.approx(expected[f'bleu {name}'][1], abs=1e-8)


@pytest.mark.parametrize('order', [0, 2])
def test_chrf_is_that_of_sacrebleu(order, expected):
  corpus, sentences = scored(Chrf(extract='all', word_order=order))
  assert corpus == pytest.approx(expected[f'chrf {order}'][0], abs=1e-8)
  assert sentences == pytest.approx(expected[f'chrf {order}'][1], abs=1e-8)


def test_rouge_is_that_of_rouge_score(expected):
  _, values = scored(RougeL())
  assert values == pytest.approx([100 * v for v in expected['rouge']])


def test_translations_are_found_in_the_output():
  item = text_item('ein Hund')
  assert judge(Bleu(level='sentence'), item, '\n ein Hund \n\nx')[1] == 1
  text = 'thinking\nTranslation: ein Hund'
  assert judge(Chrf(extract='marked'), item, text) == ('ein Hund', 1)
  assert judge(Chrf(extract='marked'), item, 'ein Hund') == (None, 0)
  assert judge(Bleu(), item, '') == (None, 0)


def test_rouge_of_characters():
  item = text_item('猫が座る')
  assert judge(RougeL(), item, '猫が座る')[1] == 0
  assert judge(RougeL('characters'), item, '猫 が座る')[1] == 1


def test_weighted_f1_by_hand():
  # A: 2 of 3 named A are right, of 2; B: 1 of 1 named B, of 2; C: 0 of 1.
  gold, said = list('AABBC'), ['A', 'A', 'B', 'A', None]
  f1 = {'A': 0.8, 'B': 2 / 3, 'C': 0.0}
  expected = (2 * f1['A'] + 2 * f1['B'] + f1['C']) / 5
  assert weighted_f1(gold, said) == pytest.approx(expected)
  assert weighted_f1(gold, gold) == 1
  assert weighted_f1(gold, [None] * 5) == 0


def test_weighted_f1_is_that_of_scikit_learn():
  metrics = pytest.importorskip('sklearn.metrics', reason='the oracle')
  gold, said = list('ABCABCAADEA'), list('ABAACBAADDC')
  assert weighted_f1(gold, said) == pytest.approx(
    metrics.f1_score(gold, said, average='weighted', zero_division=0)
  )


def test_weighted_f1_reads_options_or_text():
  item = letter_item('B', 3)
  by_text = WeightedF1(by='text')
  assert (WeightedF1().reads, by_text.reads) == ('options', 'text')
  assert judge(by_text, item, '(B)') == ('B', 1)
  verdict = WeightedF1().score(item, Answer(loglik=(-3.0, -1.0, -2.0)))
  assert (verdict.prediction, verdict.value) == ('B', 1)


def test_perplexity_weighs_by_units():
  items = [text_item('ab cd'), text_item('é')]
  answers = [Answer(loglik=(-6.0,), tokens=(3,)), Answer((), (-1.0,), (1,))]

  def perplexity(unit):
    scorer = Perplexity(unit)
    verdicts = [
      scorer.score(item, answer)
      for item, answer in zip(items, answers, strict=True)
    ]
    return scorer.aggregate(items, Verdicts.of(verdicts))

  assert perplexity('token') == pytest.approx(math.exp(7 / 4))
  assert perplexity('byte') == pytest.approx(math.exp(7 / 7))
  assert perplexity('word') == pytest.approx(math.exp(7 / 3))
  assert Perplexity().metric == 'perplexity'
  assert Perplexity('byte').metric == 'byte_perplexity'
  assert not Perplexity().maximise
  huge = Perplexity().score(items[0], Answer((), (-9999.0,), (1,)))
  assert Perplexity().aggregate(items[:1], Verdicts.of([huge])) == math.inf


@pytest.mark.parametrize(
  ('norm', 'key'),
  [('none', 'A'), ('characters', 'B'), ('bytes', 'B'), ('tokens', 'C')],
)
def test_likelihoods_are_normalised(norm, key):
  choices = (('A', 'ab'), ('B', 'abcdefgh'), ('C', 'é' * 3))
  item = Item('0', 'q', 'A', choices)
  # By characters -1, -0.375 and -1; by tokens -2, -3 and -0.75.
  answer = Answer(loglik=(-2.0, -3.0, -3.0), tokens=(1, 1, 4))
  assert MultipleChoice(norm).score(item, answer).prediction == key


def test_bytes_are_not_characters():
  item = Item('0', 'q', 'A', (('A', 'éé'), ('B', 'abc')))
  answer = Answer(loglik=(-4.0, -4.0), tokens=(1, 1))
  assert MultipleChoice('characters').score(item, answer).prediction == 'B'
  assert MultipleChoice('bytes').score(item, answer).prediction == 'A'
