"""Task files and training rows of the pocket families."""

from collections.abc import Iterable
from collections.abc import Mapping
import json
import pathlib
import random
from typing import Any

import numpy as np

from experiments.pocket import tokenizer_files
from experiments.pocket.families import FAMILIES
from experiments.pocket.families import Example

ROW_LENGTH = 24
# Prompts that are only scored may be one character longer.
SCORED_LENGTH = 25
_MAX_TRIES = 200


def task(name: str, num_dev: int, num_test: int, seed: int) -> dict[str, Any]:
  """One family as a MoCo task file, no prompt twice.

  Args:
    name: family name.
    num_dev: dev items.
    num_test: test items.
    seed: the same seed and sizes give the same file.

  Returns:
    The content of the file.

  Raises:
    ValueError: if the family has too few different prompts.
  """
  family = FAMILIES[name]
  rng = random.Random(f'{seed}/{name}/task')
  examples: dict[str, Example] = {}
  for _ in range(_MAX_TRIES * (num_dev + num_test)):
    if len(examples) == num_dev + num_test:
      break
    example = family.draw(rng)
    examples.setdefault(example.question, example)
  else:
    raise ValueError(
      f'family {name!r} gave only {len(examples)} different prompts; expected '
      f'{num_dev + num_test}. Widen its lengths or alphabets.'
    )
  items = list(examples.values())
  kind = 'multiple_choice' if family.multiple_choice else 'exact_match'
  longest = max(len(example.answer) for example in items)
  return {
    'name': name,
    'task_type': kind,
    'format': {
      'kind': kind,
      'prompt': '{question}',
      **(
        {'choice': 'text'}
        if family.multiple_choice
        else {'max_new_tokens': longest + 1, 'stop': []}
      ),
    },
    'dev': [_item(e, f'd{i}') for i, e in enumerate(items[:num_dev])],
    'test': [_item(e, f't{i}') for i, e in enumerate(items[num_dev:])],
  }


def _item(example: Example, name: str) -> dict[str, Any]:
  if not example.choices:
    return {'input': example.question, 'output': example.answer, 'id': name}
  letters = 'ABCDEFGHIJ'[: len(example.choices)]
  return {
    'question': example.question,
    'choices': dict(zip(letters, example.choices, strict=True)),
    'answer': letters[example.choices.index(example.answer)],
    'id': name,
  }


def write_task(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes a task with one item a line."""
  lines = []
  for key, value in content.items():
    if key in ('dev', 'test'):
      items = ',\n'.join(json.dumps(i, separators=(',', ':')) for i in value)
      lines.append(f'{json.dumps(key)}:[\n{items}\n]')
    else:
      lines.append(f'{json.dumps(key)}:{json.dumps(value)}')
  path.write_text('{' + ',\n'.join(lines) + '}\n')


def prompts(content: dict[str, Any]) -> set[str]:
  """All prompts of a task file."""
  return {
    item.get('input', item.get('question'))
    for split in ('dev', 'test')
    for item in content[split]
  }


def examples_of(content: dict[str, Any], split: str) -> list[Example]:
  """The items of a task file as examples with the text a model writes."""
  found = []
  for item in content[split]:
    if 'input' in item:
      found.append(Example(item['input'], item['output']))
      continue
    answer = item['choices'][item['answer']]
    choices = tuple(item['choices'].values())
    found.append(Example(item['question'], answer, choices))
  return found


def rows(
  examples: Iterable[Example], length: int = ROW_LENGTH
) -> dict[str, np.ndarray]:
  """Token rows: <bos>, question, answer, <eos>.

  A space parts the options of multiple choice from the prompt, as it does when
  they are scored; a written answer follows the prompt at once.

  Args:
    examples: B of them, at most `length` - 2 bytes each.
    length: T.

  Returns:
    tokens and positions (B, T) i32, positions -1 on padding; answer (B, T - 1)
    f32, 1 where the next token belongs to the answer or ends it.
  """
  examples = list(examples)
  shape = (len(examples), length)
  tokens = np.full(shape, tokenizer_files.PAD, np.int32)
  positions = np.full(shape, -1, np.int32)
  answer = np.zeros((shape[0], length - 1), np.float32)
  for i, example in enumerate(examples):
    question = tokenizer_files.encode(example.question)
    space = ' ' if example.choices else ''
    ids = [
      tokenizer_files.BOS,
      *question,
      *tokenizer_files.encode(space + example.answer),
      tokenizer_files.EOS,
    ]
    tokens[i, : len(ids)] = ids
    positions[i, : len(ids)] = np.arange(len(ids))
    answer[i, len(question) : len(ids) - 1] = 1.0
  return {'tokens': tokens, 'positions': positions, 'answer': answer}


class Mixture:
  """An endless stream of training rows from weighted families."""

  def __init__(
    self, weights: Mapping[str, float], held_out: set[str], seed: str
  ):
    """Starts the stream.

    Args:
      weights: how often each family is drawn, not normalised.
      held_out: prompts that must never be drawn: those of all task files.
      seed: the same seed gives the same stream.
    """
    self._names = list(weights)
    self._weights = list(weights.values())
    self._held_out = held_out
    self._rng = random.Random(seed)

  def examples(self, count: int) -> list[Example]:
    """The next `count` examples."""
    return [
      self._draw(name)
      for name in self._rng.choices(self._names, self._weights, k=count)
    ]

  def _draw(self, name: str) -> Example:
    for _ in range(_MAX_TRIES):
      example = FAMILIES[name].draw(self._rng)
      if example.question not in self._held_out:
        return example
    raise ValueError(
      f'family {name!r}: {_MAX_TRIES} draws in a row are held out; widen its '
      'lengths or alphabets.'
    )
