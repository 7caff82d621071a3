"""Says where a search has nothing to go by: all members score alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evojax_llm.runs import report
from evojax_llm.tasks import prompts

_PROMPTS, _ANSWERS, _CHARACTERS = 3, 3, 300


def describe(evaluator: Any, scored: Any) -> str | None:
  """Returns what to tell the user where nothing tells members apart.

  Takes the evaluator of the dev items that they were asked, and their fitness
  (M,) with results by task. None where members differ.
  """
  fitness = scored.fitness[np.isfinite(scored.fitness)]
  if (fitness != fitness[0]).any() or (len(fitness) < 2 and fitness[0]):
    return None
  score = report.number(float(fitness[0]), evaluator.objective.percent, ' %')
  return '\n'.join(
    [
      f'no signal: all {len(fitness)} members that were scored have a fitness '
      f'of {score}, so that nothing tells them apart. Some of the prompts, of '
      'what was answered, and of the golds:',
      *_examples(evaluator, scored.tasks),
      'Look at the prompts, stop texts and max_new_tokens of the tasks, take '
      'other items, or begin with other members (config.initial).',
    ]
  )


def _examples(evaluator: Any, results: Sequence[Any]) -> list[str]:
  """Lines on the first items of the tasks, the tasks in turn."""
  tasks, items = evaluator.tasks, evaluator.items('dev')
  turns = sorted((i, k) for k in range(len(tasks)) for i in range(_PROMPTS))
  lines = []
  by_id = [{item.id: item for item in task} for task in items]
  for i, k in [turn for turn in turns if turn[0] < len(results[turn[1]].ids)]:
    if len(lines) == 3 * _PROMPTS:
      break
    item = by_id[k][results[k].ids[i]]
    prompt = prompts.write_prompt(tasks[k], item, evaluator.chat)
    answers = dict.fromkeys(row[i] for row in results[k].predictions)
    shown = ', '.join(map(_short, list(answers)[:_ANSWERS]))
    golds = ' or '.join(map(_short, item.golds))
    lines += [
      f'  {tasks[k].name}, item {item.id}: {_short(prompt)}',
      f'    answered: {shown}{", ..." if len(answers) > _ANSWERS else ""}',
      f'    gold: {golds}',
    ]
  return lines


def _short(text: str | None) -> str:
  if text is None:
    return 'nothing'
  if len(text) > _CHARACTERS:
    return f'...{text[-_CHARACTERS:]!r}'
  return repr(text)
