r"""Scores a model, and adapters of it, on task files.

  python -m experiments.score --model=gemma-2-2b-it \
      --adapters=experts/code,experts/cot --tasks=mmlu.json,gsm8k.json \
      --split=dev --out=scores.json

The base and all adapters are scored together, as one population; `base` is the
model without an adapter. Multiple choice is scored by the likelihood of the
options, everything else by greedy decoding. The table gives accuracies in
percent with 95 % intervals (Wilson); --out takes them as JSON:

  {"members": [{"name": "base", "tasks": {"mmlu": {
      "metric": "accuracy", "score": 0.52, "interval": [0.45, 0.59], "n": 200,
      "items": [{"id": "17", "prediction": "B", "correct": true,
                 "loglikelihoods": {"A": -3.1, "B": -0.4}}]}}}]}

where `items` are there with --per_item. Task files are JSON objects with "dev"
and "test" lists of rows, or JSONL; rows have a "question", an "answer" and, for
multiple choice, "choices" {"A": ..., "B": ...}.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

from absl import app
from absl import flags

from experiments import command

_MODEL = flags.DEFINE_string(
  'model', None, 'Gemma folder in Hugging Face form.', required=True
)
_ADAPTERS = flags.DEFINE_list(
  'adapters', [], 'PEFT LoRA folders, separated by commas; none by default.'
)
_TASKS = flags.DEFINE_list(
  'tasks', None, 'Task files, separated by commas.', required=True
)
_SPLIT = flags.DEFINE_enum(
  'split', 'dev', ['dev', 'test'], 'Which items of the tasks to score.'
)
_LIMIT = flags.DEFINE_integer(
  'limit', None, 'Score only so many items of each task.', lower_bound=1
)
_DRAW = flags.DEFINE_integer('draw', 0, 'Seed of the choice under --limit.')
_CHAT = flags.DEFINE_bool(
  'chat', False, "Put prompts through the model's chat template."
)
_ALLOW_OVERLAP = flags.DEFINE_bool(
  'allow_overlap', False, 'Read tasks whose dev and test share items.'
)
_PER_ITEM = flags.DEFINE_bool(
  'per_item', False, 'Write every prediction to --out.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Type of the computation.'
)
_BASE_DTYPE = flags.DEFINE_enum(
  'base_dtype',
  None,
  ['int8'],
  'Eight-bit kernels of the base; what it changes is told and written.',
)
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace --out if it exists.'
)

_METRICS = {'multiple_choice': 'accuracy'}


@command.clean_errors
def main(_: Sequence[str]) -> None:
  out = command.check_out(_OUT.value, _OVERWRITE.value)
  from evojax_llm.fitness import tasks as tasks_lib

  tasks = tasks_lib.load_tasks(_TASKS.value, _ALLOW_OVERLAP.value)
  # The engine plans by the dev split: whatever is scored stands there.
  tasks = [
    dataclasses.replace(
      task, dev=task.subset(_SPLIT.value, _LIMIT.value, _DRAW.value), test=()
    )
    for task in tasks
  ]

  command.use_cores(_MODEL.value, 1 + len(_ADAPTERS.value))

  # Only now, so that --help and wrong task files are answered at once.
  import jax.numpy as jnp

  from evojax_llm.fitness.evaluation import Evaluator
  from experiments import members as members_lib
  from experiments import quantised

  dtype = jnp.dtype(_DTYPE.value)
  command.say(f'loading {_MODEL.value}')
  members = members_lib.load(_MODEL.value, _ADAPTERS.value, dtype)
  for task in tasks:
    command.say(
      f'{task.name}: {len(task.dev)} {_SPLIT.value} items, {task.kind}'
    )
  make = functools.partial(
    Evaluator,
    members.config,
    members.params,
    members.tokenizer,
    tasks,
    chat=_CHAT.value,
    dtype=dtype,
  )
  evaluator = make(base_dtype=_BASE_DTYPE.value)
  changed = None
  if _BASE_DTYPE.value:
    eight = make(base_dtype=_BASE_DTYPE.value)
    changed = quantised.difference(make(), eight, members.config)
    command.say(quantised.describe(changed))
  space = members_lib.Expressed()
  command.say(evaluator.prepare(space, members.population).describe())
  scores = evaluator.evaluate(
    space, members.population, progress=command.Progress()
  )
  results = [
    {
      'name': name,
      **({} if scores.reasons[m] is None else {'failed': scores.reasons[m]}),
      'tasks': {
        task.name: _result(task, result, m, scores.reasons[m] is not None)
        for task, result in zip(tasks, scores.tasks, strict=True)
      },
    }
    for m, name in enumerate(members.names)
  ]
  command.write_json(
    out,
    {
      'model': _MODEL.value,
      'adapters': _ADAPTERS.value,
      'split': _SPLIT.value,
      'chat': _CHAT.value,
      'base_dtype': changed,
      'members': results,
    },
  )
  print(table(results))
  command.say(f'wrote {out}')


def _result(task, result, member: int, failed: bool) -> dict:
  """What a member did on a task, for JSON."""
  from evojax_llm.fitness import intervals

  total = len(result.ids)
  correct = int(result.correct[member].sum())
  summary = {
    'metric': _METRICS.get(task.kind, task.kind),
    'score': None if failed else correct / total,
    'interval': None if failed else intervals.wilson_interval(correct, total),
    'n': total,
  }
  if not _PER_ITEM.value:
    return summary
  items = []
  for i, name in enumerate(result.ids):
    item = {
      'id': name,
      'prediction': result.predictions[member][i],
      'correct': bool(result.correct[member, i]),
    }
    if result.loglikelihoods is not None:
      item['loglikelihoods'] = {
        key: value if math.isfinite(value) else None
        for key, value in result.loglikelihoods[member][i].items()
      }
    items.append(item)
  return summary | {'items': items}


def table(results: Sequence[dict]) -> str:
  """Members by tasks: percent with 95 % intervals, and the tasks' mean."""
  names = list(results[0]['tasks'])
  sizes = [task['n'] for task in results[0]['tasks'].values()]
  rows = [['member']]
  rows[0] += [f'{name} (n={n})' for name, n in zip(names, sizes, strict=True)]
  rows[0] += ['mean'] if len(names) > 1 else []
  for result in results:
    row = [result['name']]
    if 'failed' in result:
      rows.append([*row, f'failed: {result["failed"]}'])
      continue
    tasks = result['tasks'].values()
    for task in tasks:
      low, high = (100 * limit for limit in task['interval'])
      row.append(f'{100 * task["score"]:.1f} [{low:.1f}, {high:.1f}]')
    if len(names) > 1:
      mean = sum(task['score'] for task in tasks) / len(names)
      row.append(f'{100 * mean:.1f}')
    rows.append(row)
  widths = [
    max(len(row[column]) for row in rows if column < len(row))
    for column in range(len(rows[0]))
  ]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=False)
    ).rstrip()
    for row in rows
  )


if __name__ == '__main__':
  app.run(main)
