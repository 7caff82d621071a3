r"""Scores a model, and adapters of it, on task files.

  evojax-llm score --model=/models/gemma-2-2b-it \
      --adapters=/experts/code,/experts/cot --tasks=mmlu.json,gsm8k.json \
      --split=dev --out=scores.json

  evojax-llm score --run=runs/pocket_genome_plus --row=vote \
      --split=test

The base and all adapters are scored together, as one population; `base` is the
model without an adapter. --run takes a run folder, or what `export --row=vote`
wrote, in place of --model and --adapters: then the members of a row of the
run's table are scored, and what they decide together, on the run's tasks, items
and prompts where no flag says otherwise.

Multiple choice is scored by the likelihood of the options, everything else by
greedy decoding. The table gives accuracies in percent with 95 % intervals
(Wilson); --out=FILE takes them as JSON:

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
from typing import Any

from absl import flags

from evojax_llm.commands import command
from evojax_llm.commands import settings
from evojax_llm.commands import source as source_lib
from evojax_llm.runs.run_config import RunConfig

source_lib.define(
  'Run generated code, in limits, and code that task files name.'
)
_TASKS = flags.DEFINE_list(
  'tasks',
  None,
  "Task files, or pocket tasks by name, by commas; by default the run's.",
)
_SPLIT = flags.DEFINE_enum(
  'split', 'dev', ['dev', 'test'], 'Which items of the tasks to score.'
)
_LIMIT = flags.DEFINE_integer(
  'limit', None, 'Score only so many items of each task.', lower_bound=1
)
_MAX_LENGTH = flags.DEFINE_integer(
  'max_length',
  None,
  "Longest prompt in tokens, new tokens included; by default the model's "
  'context. What is longer is cut from the left, which is told.',
  lower_bound=2,
)
_PER_ITEM = flags.DEFINE_bool(
  'per_item', False, 'Write every prediction to --out.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  'Type of the computation; that of the run, or float32.',
)
_BASE_DTYPE = flags.DEFINE_enum(
  'base_dtype',
  None,
  ['int8'],
  'Eight-bit kernels of the base; what it changes is told and written.',
)
command.define_out()
command.define_hosts()
# Settings of a run, and the flags that change them.
_SETTINGS = settings.define_own(
  *('chat', 'shots', 'shots_seed', 'system'),
  *('allow_overlap', 'drop_overlap', 'skip_bad_rows'),
  draw='dev_draw',
)


def main(_: Sequence[str]) -> None:
  source = source_lib.read()
  run = source.run
  if not run and not _TASKS.value:
    raise command.UserError(
      'An exported vote has no tasks: name them with --tasks.'
      if source.named
      else '--tasks is missing: task files, separated by commas. See --help.'
    )
  if _PER_ITEM.value and not flags.FLAGS.out:
    raise command.UserError('--per_item is of the file --out: name one.')
  config, tasks = _read_tasks(run)
  out = command.check_out([*source.reads, *(_TASKS.value or ())])
  if run:
    command.use_cores(run.files.model, 1 + max(1, run.config.ensemble.size))
  elif source.named is None:  # An exported vote says later which model.
    command.use_cores(source.folder, 1 + len(source.adapters))
  with command.joined():
    _score(source, config, tasks, out)


def _score(source: Any, config: RunConfig, tasks: list[Any], out: Any) -> None:
  """Scores, on this host and others, what was read."""
  told = {
    name: str(flag.value)
    for name, flag in command.own_flags().items()
    if name != 'process'
  }
  command.check_same(told, [*source.reads, *(_TASKS.value or ())])
  command.check_hosts(tasks)
  # Only now, so that --help and wrong task files are answered at once.
  import jax.numpy as jnp

  from evojax_llm.fitness.evaluator import Evaluator
  from evojax_llm.runs import base_and_adapters
  from evojax_llm.runs import finalists
  from evojax_llm.runs import report
  from evojax_llm.tasks.scorers.registry import scorer_of

  execution = config.execution
  dtype = jnp.dtype(_DTYPE.value or execution.dtype)
  base_dtype = _BASE_DTYPE.value or execution.base_dtype
  members, vote = source.load(dtype)
  make = functools.partial(
    Evaluator,
    members.tokenizer,
    tasks,
    chat=config.chat,
    dtype=dtype,
    max_length=_MAX_LENGTH.value or execution.max_length,
  )
  evaluator = make(base_dtype=base_dtype)
  changed = None
  if base_dtype:
    eight = make(base_dtype=base_dtype)
    changed = base_and_adapters.int8_difference(
      make(), eight, members.space.model()
    )
    command.say(base_and_adapters.describe_int8(changed))
  command.say(evaluator.prepare(members.space, members.population).describe())
  scores = evaluator.evaluate(
    members.space, members.population, progress=command.Progress()
  )
  names = members.names
  if vote:
    voters = range(1, len(names))
    scores = finalists.with_vote(scores, voters, *vote, tasks)
    names = (*names, f'vote of {len(voters)}')
  results = report.of_members(names, tasks, scores, _PER_ITEM.value)
  command.write_json(
    out,
    {
      **source.record(members),
      'split': _SPLIT.value,
      'chat': config.chat,
      'truncated': evaluator.ledger.truncated,
      'left_out': {t.name: t.left_out for t in tasks if t.left_out},
      'base_dtype': changed,
      'members': results,
    },
  )
  percent = {task.name: scorer_of(task).percent for task in tasks}
  print(report.members_table(results, percent))


def _read_tasks(run: Any) -> tuple[RunConfig, list[Any]]:
  """The settings of tasks, those of a run first, and what is scored."""
  config, split = RunConfig() if run is None else run.config, _SPLIT.value
  given = {n: flag.value for n, flag in _SETTINGS.items() if flag.present}
  if _LIMIT.value:
    given |= {f'{split}_limit': _LIMIT.value, f'{split}_limits': ()}
  # Whether code may run is never read from a folder.
  config = dataclasses.replace(
    config, allow_code=flags.FLAGS.allow_code, **given
  )
  from evojax_llm.runs import inputs as inputs_lib
  from evojax_llm.tasks import task_files

  whole = task_files.load_tasks(
    inputs_lib.task_files(_TASKS.value) if _TASKS.value else run.files.tasks,
    inputs_lib.rules(config),
  )
  if run and not _TASKS.value:
    for task, known in zip(whole, run.inputs['tasks'], strict=False):
      if task.fingerprint() != known:
        command.say(
          f'{task.name}: not as the run read it: scores are not those of its '
          'table'
        )
  limits = getattr(config, f'{split}_limits')
  if len(limits) != len(whole):
    limits = [getattr(config, f'{split}_limit')] * len(whole)
  tasks = []
  for task, limit in zip(whole, limits, strict=True):
    chosen = task.subset(split, limit, config.dev_draw)
    count, there = len(chosen), len(getattr(task, split))
    of_all = f' of {there}' if there > count else ''
    command.say(f'{task.name}: {count}{of_all} {split} items, {task.kind}')
    # The engine plans by the dev split: whatever is scored stands there.
    tasks.append(dataclasses.replace(task, dev=chosen, test=()))
  if run and not _LIMIT.value and any(limits):
    command.say(
      f'as in the table of the run, whose config.{split}_limit and '
      'config.dev_draw chose them; --limit and --draw choose others'
    )
  elif not run and not any(limits) and split == 'test':
    command.say(
      "all test items; a run's table has config.test_limit of each task (250 "
      'by default on the pocket), which --limit=250 takes here as well'
    )
  return config, tasks
