"""Writes metrics.json: scores by sacrebleu and rouge_score.

  python -m tests.golden.make_metrics

Needs sacrebleu and rouge_score. Machines without them check BLEU, chrF and
ROUGE-L against what is stored.
"""

import json
import pathlib

FILE = pathlib.Path(__file__).with_name('metrics.json')

# (output, references): alike, unlike, empty, of punctuation, entities, numbers
# and hyphens, of scripts without spaces.
PAIRS = (
  ('the cat sat on the mat', ('the cat sat on the mat',)),
  ('the cat sat on a mat .', ('the cat is on the mat.', 'a cat sat on a mat')),
  ('It cost $1,000.50, i.e. too much!', ('It cost $1,000.50 - too much.',)),
  ('well-known "quotes" &amp; so', ('well known &quot;quotes&quot; & so',)),
  ('a', ('a b c d e f',)),
  ('', ('nothing was said',)),
  ('entirely different words here', ('no overlap at all in this one',)),
  ('猫はマットの上に座った', ('猫がマットの上に座っている',)),
  ('Der Hund läuft schnell nach Hause.', ('Der Hund rennt schnell heim.',)),
  ('one two three four five six', ('six five four three two one',)),
)  # fmt: skip


def bleu_options() -> dict[str, dict]:
  """Options of our BLEU by name."""
  return {'13a': {}, 'char': {'tokenize': 'char'}, 'none': {'tokenize': 'none'}}


def compute() -> dict:
  """All scores, by the other packages."""
  from rouge_score import rouge_scorer
  import sacrebleu

  outputs = [output for output, _ in PAIRS]
  most = max(len(references) for _, references in PAIRS)
  streams = [
    [r[i] if i < len(r) else None for _, r in PAIRS] for i in range(most)
  ]
  found: dict = {}
  for name in bleu_options():
    corpus = sacrebleu.corpus_bleu(outputs, streams, tokenize=name)
    found[f'bleu {name}'] = [
      corpus.score,
      [
        sacrebleu.sentence_bleu(o, list(r), tokenize=name).score
        for o, r in PAIRS
      ],
    ]
  for order in (0, 2):
    corpus = sacrebleu.corpus_chrf(outputs, streams, word_order=order)
    found[f'chrf {order}'] = [
      corpus.score,
      [
        sacrebleu.sentence_chrf(o, list(r), word_order=order).score
        for o, r in PAIRS
      ],
    ]
  scorer = rouge_scorer.RougeScorer(['rougeL'])
  found['rouge'] = [
    max(scorer.score(r, o)['rougeL'].fmeasure for r in references)
    for o, references in PAIRS
  ]
  return found


if __name__ == '__main__':
  FILE.write_text(json.dumps(compute(), indent=1) + '\n')
  print(f'{FILE.name}: {FILE.stat().st_size} bytes')
