"""code: generated Python passes the tests that are the item's gold answer.

The code of an output is its first fenced block, else all of it. It is run with
the item's tests after it, in a process with limits (see `sandbox`). Tasks of
this kind are refused unless code is allowed (`allow_code`).

`extract='genome'` is the published rule (arXiv 2503.01155, mbpp): the longest
run of the first 100 lines that parses, of which imports, assignments, classes
and functions with a return are kept.
"""

import ast
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import os
import re

from evojax_llm.options import option
from evojax_llm.tasks.scorers import sandbox
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError

_FENCE = re.compile(r'```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)', re.DOTALL)
_MOST_LINES = 100


@dataclasses.dataclass(frozen=True)
class CodeTests(Scorer):
  """Share of programs that pass the tests of their item."""

  extract: str = option(
    'block', 'what the code is', choices=('block', 'genome')
  )
  # As in HumanEval; where the output does not define the function anew.
  continues: bool = option(False, 'the question begins the code')
  timeout: float = option(10.0, 'seconds of wall time', low=0.1)
  memory: int = option(512, 'megabytes', low=64)

  metric = 'pass_rate'
  max_new_tokens = 512
  runs_code = True

  def check(self, item: Item) -> None:
    """Refuses tests that are no Python."""
    for tests in item.golds:
      try:
        ast.parse(tests)
      except (SyntaxError, ValueError) as error:
        raise TaskError(
          f'a code task has Python tests as its answer; got {tests[:60]!r}: '
          f'{error}.'
        ) from error

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Runs one answer with its tests."""
    code = self.find_code(answer.text)
    if not code.strip():
      return Verdict(None, 0.0)
    before = _beginning(item.question, code) if self.continues else ''
    program = '\n\n'.join([before + code, *item.golds])
    outcome = sandbox.run(program, self.timeout, self.memory)
    return Verdict(code, float(outcome.passed))

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    """Runs many answers, as many at a time as there are processors."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      return list(pool.map(lambda pair: self.score(*pair), pairs))

  def find_code(self, text: str) -> str:
    """Returns the code of an output."""
    if self.extract == 'genome':
      return _longest_code(text)
    block = _FENCE.search(text)
    return block.group(1) if block else text


def _beginning(question: str, code: str) -> str:
  """Returns what of a question stands before code that goes on with it.

  Code that defines the question's last function anew follows what stands
  before that function.
  """
  last = list(re.finditer(r'^def (\w+)', question, re.MULTILINE))
  if last and re.search(rf'^def {last[-1].group(1)}\b', code, re.MULTILINE):
    return question[: last[-1].start()]
  return question


def _longest_code(text: str) -> str:
  lines = text.splitlines()[:_MOST_LINES]
  for size in range(len(lines), 0, -1):
    for start in range(len(lines) - size + 1):
      part = '\n'.join(lines[start : start + size])
      if part.strip() and _parses(part):
        return _kept(part)
  return ''


def _parses(text: str) -> bool:
  try:
    ast.parse(text)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return False
  return True


def _kept(text: str) -> str:
  kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.ClassDef)
  functions = (ast.FunctionDef, ast.AsyncFunctionDef)
  tree = ast.parse(text)
  tree.body = [
    node
    for node in tree.body
    if isinstance(node, kinds)
    or (
      isinstance(node, functions)
      and any(isinstance(part, ast.Return) for part in ast.walk(node))
    )
  ]
  return ast.unparse(tree)
