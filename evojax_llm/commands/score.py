r"""Scores a model, and adapters of it, on task files.

  evojax-llm score --model=gemma-2-2b-it \
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

where `items` are there with --per_item. Where an item is more than right or
wrong it has a "value" in place of "correct". The interval is of a mean of the
items then, and null for what is no mean, such as a perplexity. "truncated"
counts prompts that were cut from the left to fit the context or --max_length.

Task files are JSON objects with "dev" and "test" lists of rows, or JSONL; rows
have a "question", an "answer" and, for multiple choice, "choices" {"A": ...,
"B": ...}. evojax_llm/tasks/README.md has the kinds of tasks.
"""

from collections.abc import Sequence
import dataclasses
import functools

from absl import flags

from evojax_llm.commands import command

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
_SHOTS = flags.DEFINE_integer(
  'shots', None, 'Worked examples before each question.', lower_bound=0
)
_SHOTS_SEED = flags.DEFINE_integer(
  'shots_seed', None, 'Chooses the examples among the dev items.'
)
_SYSTEM = flags.DEFINE_string('system', None, 'Text before everything.')
_MAX_LENGTH = flags.DEFINE_integer(
  'max_length',
  None,
  "Longest prompt in tokens, new tokens included; by default the model's "
  'context. What is longer is cut from the left, which is told.',
  lower_bound=2,
)
_ALLOW_CODE = flags.DEFINE_bool(
  'allow_code',
  False,
  'Run generated code, in limits, and code that task files name.',
)
_ALLOW_OVERLAP = flags.DEFINE_bool(
  'allow_overlap', False, 'Read tasks whose dev and test share items.'
)
_DROP_OVERLAP = flags.DEFINE_bool(
  'drop_overlap', False, 'Leave items out of dev that are in test as well.'
)
_SKIP_BAD_ROWS = flags.DEFINE_bool(
  'skip_bad_rows', False, 'Leave out rows of task files that cannot be used.'
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


def main(_: Sequence[str]) -> None:
  out = command.check_out(_OUT.value, _OVERWRITE.value)
  from evojax_llm.tasks import task_files as tasks_lib

  rules = tasks_lib.Rules(
    allow_overlap=_ALLOW_OVERLAP.value,
    drop_overlap=_DROP_OVERLAP.value,
    allow_code=_ALLOW_CODE.value,
    skip_bad_rows=_SKIP_BAD_ROWS.value,
    shots=_SHOTS.value,
    shots_seed=_SHOTS_SEED.value,
    system=_SYSTEM.value,
  )
  tasks = tasks_lib.load_tasks(_TASKS.value, rules)
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

  from evojax_llm.fitness.evaluator import Evaluator
  from evojax_llm.runs import base_and_adapters as members_lib
  from evojax_llm.runs import int8_base
  from evojax_llm.runs import scoring
  from evojax_llm.tasks.scorers.registry import scorer_of

  dtype = jnp.dtype(_DTYPE.value)
  command.say(f'loading {_MODEL.value}')
  members = members_lib.load(_MODEL.value, _ADAPTERS.value, dtype)
  for task in tasks:
    command.say(
      f'{task.name}: {len(task.dev)} {_SPLIT.value} items, {task.kind}'
    )
  make = functools.partial(
    Evaluator,
    members.tokenizer,
    tasks,
    chat=_CHAT.value,
    dtype=dtype,
    max_length=_MAX_LENGTH.value,
  )
  evaluator = make(base_dtype=_BASE_DTYPE.value)
  changed = None
  if _BASE_DTYPE.value:
    eight = make(base_dtype=_BASE_DTYPE.value)
    changed = int8_base.difference(make(), eight, members.space.model())
    command.say(int8_base.describe(changed))
  command.say(evaluator.prepare(members.space, members.population).describe())
  scores = evaluator.evaluate(
    members.space, members.population, progress=command.Progress()
  )
  results = scoring.results(members.names, tasks, scores, _PER_ITEM.value)
  command.write_json(
    out,
    {
      'model': _MODEL.value,
      'adapters': _ADAPTERS.value,
      'split': _SPLIT.value,
      'chat': _CHAT.value,
      'truncated': evaluator.ledger.truncated,
      'left_out': {t.name: t.left_out for t in tasks if t.left_out},
      'base_dtype': changed,
      'members': results,
    },
  )
  percent = {task.name: scorer_of(task).percent for task in tasks}
  print(scoring.table(results, percent))
  command.say(f'wrote {out}')


if __name__ == '__main__':
  command.launch(main)
