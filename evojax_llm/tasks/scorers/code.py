"""code: generated Python passes the tests that are the item's gold answer.

The code of an output is its first fenced block, else all of it. It is run in a
process with limits, the item's tests in another one (see `sandbox`). Tasks of
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
    """Refuses tests that are no Python, or that test nothing."""
    tests = _tests(item)
    try:
      body = ast.parse(tests).body
      entry = _entry(item)
      names, _ = sandbox.names_of_answer(tests, entry=entry)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
      raise TaskError(
        f'a code task has Python tests as its answer; got {tests[:60]!r}: '
        f'{error}.'
      ) from error
    if not entry and (not names or all(map(_defines, body))):
      raise TaskError(
        'the tests call nothing of an answer; expected such as `assert '
        f'double(2) == 4`, got {tests[:60]!r}. Where they define '
        '`check(candidate)` call it there, or begin the function in the '
        'question.'
      )

  def score(self, item: Item, answer: Answer) -> Verdict:
    """Runs one answer with its tests."""
    code = self.find_code(answer.text)
    if not code.strip():
      return Verdict(None, 0.0)
    begun = _beginning(item.question, code) if self.continues else ''
    outcome = sandbox.run(
      begun + code,
      _tests(item),
      _given(item.question),
      _entry(item),
      seconds=self.timeout,
      megabytes=self.memory,
    )
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


def _tests(item: Item) -> str:
  return '\n\n'.join(item.golds)


def _entry(item: Item) -> str:
  """Returns the function that tests of an uncalled `check(candidate)` are of.

  It is the last one that the question begins, as in HumanEval; '' where the
  tests call themselves what they define.
  """
  checks = False
  for node in ast.parse(_tests(item)).body:
    if isinstance(node, ast.FunctionDef) and node.name == 'check':
      checks = True
    elif any(
      isinstance(part, ast.Call) and getattr(part.func, 'id', '') == 'check'
      for part in ast.walk(node)
    ):
      return ''
  begun = _functions(item.question)
  return begun[-1].group(1) if checks and begun else ''


def _defines(node: ast.stmt) -> bool:
  """Whether a statement of tests can only define names."""
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign)
  plain = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
  return plain or isinstance(node, (*kinds, ast.Import, ast.ImportFrom))


def _functions(question: str) -> list[re.Match[str]]:
  return list(re.finditer(r'^def (\w+)', question, re.MULTILINE))


def _given(question: str) -> str:
  """Returns what a question has before its last function, for the tests.

  They use it, such as a function that undoes the one to be written: it is not
  to be the answer's.
  """
  begun = _functions(question)
  given = question[: begun[-1].start()] if begun else ''
  return given if _parses(given) else ''


def _beginning(question: str, code: str) -> str:
  """Returns what of a question stands before code that goes on with it.

  Code that defines the question's last function anew follows what stands
  before that function.
  """
  last = _functions(question)
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
  try:
    return ast.unparse(tree)
  except RecursionError:  # Such as a sum of a thousand terms.
    return ''
