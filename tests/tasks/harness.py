"""The models and items that lm-evaluation-harness has read as well."""

from collections.abc import Sequence
import json
import os
import pathlib
import subprocess

from evojax_llm import pocket
from evojax_llm.tasks.prompts import write_prompt
from evojax_llm.tasks.task import Format
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task_files import load_task
from tests import tiny

PROGRAM = (
  pathlib.Path(__file__).resolve().parents[2]
  / 'third_party'
  / 'lm_eval'
  / 'loglikelihood.py'
)
PYTHON = os.environ.get('EVOJAX_LLM_LM_EVAL')
MODELS = ('gemma2', 'gemma3_text', 'pocket')
_OPTIONS = (
  'tea',
  'the inn at noon',
  'the inn',
  'éé ïê',
  'rather late in the day',
  'the',
)


def folder(model: str, root: pathlib.Path) -> pathlib.Path:
  """The checkpoint of a model, written below `root` unless it ships."""
  if model == 'pocket':
    return pathlib.Path(pocket.base_folder())
  return tiny.write_gemma(root / model, model, seed=3)


def task(model: str) -> Task:
  """Multiple choice by text, with options of one token and of many."""
  if model == 'pocket':
    whole = load_task(pocket.task_file('max'))
    return Task('max', whole.kind, whole.dev[:20], format=whole.format)
  items = []
  for i in range(12):
    options = [_OPTIONS[(i + j) % 6] for j in range(2 + i % 4)]
    question = f'What is it, {"really, " * (i % 5)}at {i} in the inn?'
    choices = tuple(zip('ABCDE', options, strict=False))
    items.append(Item(str(i), question, 'A', choices))
  return Task(
    'text', 'multiple_choice', tuple(items), format=Format(choice='text')
  )


def requests(model: str) -> list[tuple[str, str]]:
  """(context, continuation) of every option, in order."""
  made = task(model)
  return [
    (write_prompt(made, item), f' {text}')
    for item in made.dev
    for _, text in item.choices
  ]


def ask(
  python: str,
  model_folder: pathlib.Path,
  asked: Sequence[tuple[str, str]],
  scratch: pathlib.Path,
) -> dict:
  """What the harness answers."""
  file = scratch / 'requests.json'
  file.write_text(
    json.dumps({'model': str(model_folder), 'requests': asked}),
    encoding='utf-8',
  )
  done = subprocess.run(
    [python, str(PROGRAM), str(file)],
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])
