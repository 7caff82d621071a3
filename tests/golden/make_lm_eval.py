"""Writes lm_eval.json: what lm-evaluation-harness makes of a tiny model.

  python -m tests.golden.make_lm_eval

Needs lm_eval and torch. Machines without them check accuracies and
log-likelihoods against what is stored.
"""

import json
import pathlib
import tempfile

from tests import tiny

FILE = pathlib.Path(__file__).with_name('lm_eval.json')
METRICS = ('acc', 'acc_norm', 'acc_bytes')
# Of two options one has more characters and the other more bytes a letter.
_WORDS = (
  'tea',
  '日本語の宿',
  'rather',
  'the inn at noon',
  'éé',
  'tin in her hat',
)


def rows(split: str, count: int) -> list[dict]:
  """Questions with two to five options of very different lengths."""
  first = 0 if split == 'validation' else 1000
  return [
    {
      'question': f'What is number {first + i}?',
      'options': [_WORDS[(i + j) % 6] for j in range(2 + i % 4)],
      'gold': (i * i + 1) % (2 + i % 4),
    }
    for i in range(count)
  ]


def write_task(
  folder: pathlib.Path, count: int = 24, **changes
) -> pathlib.Path:
  """Writes a task of the harness with its data; returns its YAML file.

  `changes` replace settings of the task; None leaves a setting out.
  """
  files = {}
  for split in ('validation', 'test'):
    files[split] = str(folder / f'{split}.jsonl')
    lines = [json.dumps(row) for row in rows(split, count)]
    pathlib.Path(files[split]).write_text('\n'.join(lines))
  metrics = [
    {'metric': m, 'aggregation': 'mean', 'higher_is_better': True}
    for m in METRICS
  ]
  task = {
    'task': 'tiny_choice',
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': files},
    'output_type': 'multiple_choice',
    'validation_split': 'validation',
    'test_split': 'test',
    'doc_to_text': 'Question: {{question}}\nAnswer:',
    'doc_to_choice': '{{options}}',
    'doc_to_target': 'gold',
    'metric_list': metrics,
  } | changes
  task = {key: value for key, value in task.items() if value is not None}
  path = folder / f'{task["task"]}.yaml'
  path.write_text(json.dumps(task))  # JSON is YAML.
  return path


def evaluate(base: pathlib.Path, task: pathlib.Path, **options) -> dict:
  """What the harness says of a model on a task; options go to its model."""
  import lm_eval
  from lm_eval.models.huggingface import HFLM
  from lm_eval.tasks import TaskManager

  model = HFLM(
    pretrained=str(base),
    device='cpu',
    dtype='float32',
    batch_size=1,
    attn_implementation='eager',
    **options,
  )
  loaded = TaskManager().load([str(task)])
  return lm_eval.evaluate(
    lm=model, task_dict=loaded['tasks'], bootstrap_iters=0
  )


def compute(folder: pathlib.Path) -> dict:
  """Accuracies and log-likelihoods by the harness, on its test split."""
  base = tiny.write_gemma(folder / 'base', 'gemma2')
  results = evaluate(base, write_task(folder))
  samples = sorted(
    results['samples']['tiny_choice'], key=lambda sample: sample['doc_id']
  )
  scores = results['results']['tiny_choice']
  return {
    **{metric: scores[f'{metric},none'] for metric in METRICS},
    'loglikelihoods': [
      [float(value) for value, _ in sample['filtered_resps']]
      for sample in samples
    ],
  }


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as scratch:
    FILE.write_text(json.dumps(compute(pathlib.Path(scratch))) + '\n')
  print(f'{FILE.name}: {FILE.stat().st_size} bytes')
