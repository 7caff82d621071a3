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
    if self.extract == 'genome':
      code = _longest_code(answer.text)
    else:
      block = _FENCE.search(answer.text)
      code = block.group(1) if block else answer.text
    if not code.strip():
      return Verdict(None, 0.0)
    # What a question has before its last function is given to the tests, such
    # as a function that undoes the one to be written: it is not the answer's.
    before, name = _begun(item.question)
    begun = item.question if self.continues else ''
    if begun and name and re.search(rf'^def {name}\b', code, re.MULTILINE):
      begun = before  # It defines the question's last function anew.
    outcome = sandbox.run(
      begun + code,
      _tests(item),
      before if _parses(before) else '',
      _entry(item),
      seconds=self.timeout,
      megabytes=self.memory,
    )
    return Verdict(code, float(outcome.passed))

  def score_all(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Verdict]:
    """Runs many answers, as many at a time as there are processors."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      return list(pool.map(lambda pair: self.score(*pair), pairs))


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
  return _begun(item.question)[1] if checks else ''


def _defines(node: ast.stmt) -> bool:
  """Whether a statement of tests can only define names."""
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign)
  plain = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
  return plain or isinstance(node, (*kinds, ast.Import, ast.ImportFrom))


def _begun(question: str) -> tuple[str, str]:
  """Returns what a question has before its last function, and that one's name.

  Both are '' where it begins no function.
  """
  begun = list(re.finditer(r'^def (\w+)', question, re.MULTILINE))
  return (question[: begun[-1].start()], begun[-1][1]) if begun else ('', '')


def _longest_code(text: str) -> str:
  """The rule of GENOME; see the module."""
  lines = text.splitlines()[:_MOST_LINES]
  for size in range(len(lines), 0, -1):
    for start in range(len(lines) - size + 1):
      part = '\n'.join(lines[start : start + size])
      if part.strip() and _parses(part):
        tree = ast.parse(part)
        tree.body = [node for node in tree.body if _is_kept(node)]
        try:
          return ast.unparse(tree)
        except RecursionError:  # Such as a sum of a thousand terms.
          return ''
  return ''


def _parses(text: str) -> bool:
  try:
    ast.parse(text)
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    return False
  return True


def _is_kept(node: ast.stmt) -> bool:
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
    return any(isinstance(part, ast.Return) for part in ast.walk(node))
  kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.ClassDef)
  return isinstance(node, kinds)
