"""A task written in Python: one class.

    from evojax_llm.tasks.python_task import PythonTask

    class Rhymes(PythonTask):
      format = {'max_new_tokens': 8}

      def dev(self):
        return [{'question': 'A rhyme on cat:', 'answer': 'at'}]

      def score(self, item, text):
        return float(text.strip().endswith(item.answer))

Rows are those of a file, and everything that is checked in a file is checked
here. Without `score` the scorer is that of `format['kind']`, or what follows
from the rows. The task is named by its file, as in --tasks=rhymes.py, or
--tasks=rhymes.py:Rhymes where the file has several.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import inspect
import math
from typing import Any
from typing import ClassVar

from evojax_llm.tasks.scorers import plugins
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
    """Rows that a search may see."""
    raise NotImplementedError

  def test(self) -> Iterable[dict[str, Any]]:
    """Sealed rows; none by default."""
    return []

  def score(self, item: Item, text: str) -> float:
    """The score of a generated text; leave it out to take a scorer by kind."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FunctionScorer(Scorer):
  """A function (item, text) -> score of generated text.

  Attributes:
    function: the function.
    metric: what the mean of the scores is called.
    maximise: whether more is better.
  """

  # Fields of the base keep their place before it: it needs a default.
  function: Callable[[Item, str], float] | None = None
  metric: str = 'score'
  maximise: bool = True

  binary: ClassVar[bool] = False
  percent: ClassVar[bool] = False
  choices: ClassVar[bool | None] = None
  gold: ClassVar[bool] = False

  def score(self, item: Item, answer: Answer) -> Verdict:
    """The function's score.

    Raises:
      TaskError: it is no number, which fails the run and not the member: a
        fault of the task is nobody's fitness.
    """
    value = self.function(item, answer.text)
    try:
      value = float(value)
    except (TypeError, ValueError):
      value = math.nan
    if not math.isfinite(value):
      raise TaskError(
        f"{self.function}: the score of item '{item.id}' is no finite number."
      )
    return Verdict(answer.text.strip() or None, value)


def load(name: str, rules: Any) -> Task:
  """The task of a Python file, 'file.py' or 'file.py:Name'.

  Raises:
    TaskError: no such file or class, more than one class and none named, or
      rows and options that cannot be right.
  """
  from evojax_llm.tasks import task_files

  path, wanted = (name, '') if name.endswith('.py') else name.rsplit(':', 1)
  module = plugins.load_module(path)
  classes = {
    key: value
    for key, value in vars(module).items()
    if inspect.isclass(value)
    and issubclass(value, PythonTask)
    and value.__module__ == module.__name__
  }
  if wanted:
    classes = {k: v for k, v in classes.items() if k == wanted}
  if len(classes) != 1:
    found = ', '.join(classes) or 'none'
    raise TaskError(
      f'{name}: expected one class of evojax_llm.tasks.python_task.'
      f"PythonTask, found {found}. Name one as 'file.py:Name'."
    )
  ((key, kind),) = classes.items()
  task = kind()
  scorer = None
  if kind.score is not PythonTask.score:
    scorer = FunctionScorer(
      function=task.score, metric=task.metric, maximise=task.maximise
    )
  top = {
    'name': task.name or key.lower(),
    'dev': list(task.dev()),
    'test': list(task.test()),
    'format': dict(task.format),
  }
  return task_files.build(top, path, key.lower(), rules, scorer)
