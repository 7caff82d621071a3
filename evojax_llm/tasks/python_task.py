"""A task written in Python: one class; an example is in the README.

Rows are those of a file, and everything that is checked in a file is checked
here. Without `score` the scorer is that of `format['kind']`, or what follows
from the rows.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import inspect
import math
from typing import Any
from typing import ClassVar

from evojax_llm import lookup
from evojax_llm.tasks import task as task_lib
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.base import Scorer
from evojax_llm.tasks.scorers.base import Verdict
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task import TaskError


class PythonTask:
  """Base of tasks written in Python.

  Attributes:
    name: of the task; the class's name in lower case by default.
    format: what `format` is in a file.
    metric: what the mean of `score` is called.
    maximise: whether more of it is better.
  """

  name: str = ''
  format: ClassVar[dict[str, Any]] = {}
  metric: str = 'score'
  maximise: bool = True

  def dev(self) -> Iterable[dict[str, Any]]:
    """Returns rows that a search may see."""
    raise NotImplementedError

  def test(self) -> Iterable[dict[str, Any]]:
    """Returns sealed rows; none by default."""
    return []

  def score(self, item: Item, text: str) -> float:
    """Scores a generated text; left out, the scorer is that of the kind."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FunctionScorer(Scorer):
  """A function (item, text) -> score of generated text."""

  function: Callable[[Item, str], float] | None = None
  metric: str = 'score'
  maximise: bool = True

  binary = percent = gold = False
  choices = None

  def score(self, item: Item, answer: Answer) -> Verdict:
    value = self.function(item, answer.text)
    try:
      value = float(value)
    except (TypeError, ValueError):
      value = math.nan
    # A fault of the task and not of the member, so that the run ends.
    if not math.isfinite(value):
      raise TaskError(
        f"{self.function}: the score of item '{item.id}' is no finite number."
      )
    return Verdict(answer.text.strip() or None, value)


def load(name: str, rules: Any) -> Task:
  """Makes the task of 'file.py', 'file.py:Name' or 'package.module:Name'.

  Raises:
    TaskError: no such file or class, more than one class and none named, or
      rows and options that cannot be right.
  """
  from evojax_llm.tasks import task_files

  if ':' in name:
    cls = task_lib.find(name, {}, 'task')
    if not (inspect.isclass(cls) and issubclass(cls, PythonTask)):
      raise TaskError(
        f'Got task {name!r}, which is {cls!r}; expected a class derived from '
        'evojax_llm.tasks.python_task.PythonTask.'
      )
    path = name.rpartition(':')[0]
    if not path.endswith('.py'):
      path = inspect.getsourcefile(cls) or name
  else:
    path, cls = name, _only_class(name)
  task, scorer = cls(), None
  if cls.score is not PythonTask.score:
    scorer = FunctionScorer(
      function=task.score, metric=task.metric, maximise=task.maximise
    )
  key = cls.__name__.lower()
  top = {
    'name': task.name or key,
    'dev': list(task.dev()),
    'test': list(task.test()),
    'format': dict(task.format),
  }
  # What the class names is no more code than the class itself.
  rules = dataclasses.replace(rules, allow_code=True)
  return task_files.build(top, path, key, rules, scorer)


def _only_class(path: str) -> type[PythonTask]:
  """Returns the one task class that a file defines."""
  try:
    module = lookup.load_module(path)
  except Exception as error:
    raise TaskError(
      f'{path}: cannot be imported: {type(error).__name__}: {error}.'
    ) from error
  classes = [
    value
    for value in vars(module).values()
    if inspect.isclass(value)
    and issubclass(value, PythonTask)
    and value.__module__ == module.__name__
  ]
  if len(classes) != 1:
    names = ', '.join(cls.__name__ for cls in classes) or 'none'
    raise TaskError(
      f'{path}: expected one class of evojax_llm.tasks.python_task.'
      f"PythonTask, found {names}. Name one as 'file.py:Name'."
    )
  return classes[0]
