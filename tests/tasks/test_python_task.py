"""Tasks written in Python: the README's example, and what is refused."""

import pathlib
import re

import pytest

from evojax_llm import tasks
from evojax_llm.tasks.python_task import PythonTask
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task

README = pathlib.Path(tasks.__file__).with_name('README.md')


@pytest.fixture
def write(tmp_path):
  def write(text, name='task.py'):
    head = 'from evojax_llm.tasks.python_task import PythonTask\n\n'
    (tmp_path / name).write_text(text if 'import' in text else head + text)
    return str(tmp_path / name)

  return write


def example():
  return re.search(
    r'```python\n(.*?class Rhymes.*?)```', README.read_text(), re.S
  )


def test_the_example_of_the_readme(write):
  task = load_task(write(example().group(1)))
  assert (task.name, task.kind, len(task.dev)) == ('rhymes', 'python', 3)
  assert task.format.max_new_tokens == 4 and task.test == ()
  scorer = scorer_of(task)
  assert (scorer.reads, scorer.metric, scorer.binary) == (
    'text',
    'score',
    False,
  )
  assert task.dev[0].question == 'A rhyme on cat:'
  for text, value in ((' a hat\n', 1.0), ('dog', 0.0)):
    assert scorer.score(task.dev[0], Answer((text,))).value == value


ROWS = """
  def dev(self):
    return [{'question': f'q{i}', 'answer': 'a'} for i in range(9)]
"""


class Installed(PythonTask):
  def dev(self):
    return [{'question': 'q', 'answer': '3'}]


def test_a_class_of_a_package():
  task = load_task(f'{__name__}:Installed')
  assert (task.name, task.kind) == ('installed', 'numeric_match')
  assert task.source == __file__


def test_without_a_score_the_kind_decides(write):
  text = f"""
class T(PythonTask):
  name = 'mine'
  format = {{'kind': 'exact_match', 'match': 'words', 'shots': 2}}
{ROWS}
  def test(self):
    return [{{'question': 'x', 'answer': 'a'}}]
"""
  task = load_task(write(text))
  assert (task.name, task.kind, len(task.dev)) == ('mine', 'exact_match', 7)
  assert len(task.shots) == 2 and len(task.test) == 1
  assert scorer_of(task).match == 'words'


def test_direction_and_metric(write):
  text = f"""
class T(PythonTask):
  metric, maximise = 'length', False
{ROWS}
  def score(self, item, text):
    return len(text)
"""
  scorer = scorer_of(load_task(write(text, 'b.py')))
  assert (scorer.metric, scorer.maximise) == ('length', False)


def test_two_classes_are_told_apart_by_name(write):
  text = f"""
class A(PythonTask):
{ROWS}

class B(PythonTask):
  name = 'second'
{ROWS}
"""
  path = write(text, 'two.py')
  assert load_task(f'{path}:B').name == 'second'
  with pytest.raises(TaskError, match='found A, B. Name one'):
    load_task(path)
  with pytest.raises(TaskError, match="has no 'C'"):
    load_task(f'{path}:C')
  with pytest.raises(TaskError, match='expected a class derived from'):
    load_task(f'{path}:__name__')


@pytest.mark.parametrize(
  ('body', 'words'),
  [
    ("  def dev(self):\n    return [{'answer': 'a'}]", "no field 'question'"),
    ("  format = {'kind': 'x'}\n" + ROWS, "'format.kind'"),
    ('x', 'cannot be imported: NameError'),
  ],
)
def test_mistakes_are_told(write, tmp_path, body, words, request):
  name = f'wrong{request.node.callspec.indices["body"]}.py'
  path = write(f'class T(PythonTask):\n{body}\n' if body != 'x' else body, name)
  with pytest.raises(TaskError, match=words) as error:
    load_task(path)
  assert name in str(error.value)


def test_a_file_that_is_not_there():
  with pytest.raises(TaskError, match='there is no file absent.py'):
    load_task('absent.py')


def test_a_score_that_is_no_number_ends_the_run(write):
  text = f"""
class T(PythonTask):
{ROWS}
  def score(self, item, text):
    return None
"""
  task = load_task(write(text, 'none.py'))
  with pytest.raises(TaskError, match="item '3' is no finite number"):
    scorer_of(task).score(task.dev[3], Answer(('x',)))


def test_what_changes_a_task_changes_its_fingerprint(write):
  path = write(f'class T(PythonTask):\n{ROWS}', 'f.py')
  first = load_task(path).fingerprint()
  assert load_task(path).fingerprint() == first
  assert load_task(path, Rules(shots=1)).fingerprint() != first
  write(f'class T(PythonTask):\n{ROWS}  # other', 'f.py')
  assert load_task(path).fingerprint() != first
