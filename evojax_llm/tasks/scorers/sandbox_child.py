"""The two processes in which an answer and its tests are run.

`main` is started by `sandbox.run` with a new interpreter. It makes a process
for the answer, which never sees the tests: it is asked for the values of calls.
`main` itself then runs the tests and says how they ended. Neither has rights
(see `sandbox_limits`), and only data goes between them (see `sandbox_data`).
"""

import builtins
import contextlib
import operator
import os
import sys
import types
from typing import Any
from typing import NoReturn

from evojax_llm.tasks.scorers import sandbox_data
from evojax_llm.tasks.scorers import sandbox_limits

_LONGEST_REASON = 300

# What tests may do with an object of the answer that is no data.
_OPERATIONS = {
  'call': lambda function, *args, **named: function(*args, **named),
  'getattr': getattr,
  'setattr': setattr,
  'getitem': operator.getitem,
  'setitem': operator.setitem,
  'bool': bool,
  'iter': iter,
  'next': next,
  'len': len,
  'str': str,
}


def main() -> None:
  """Runs one answer with its tests.

  The arguments are the folder of this package, megabytes, seconds and folders
  of modules. Standard input has the answer and then the tests (see
  `sandbox.run`); the first message on standard output says which limits are not
  there, the second how the tests ended.
  """
  _, own, megabytes, seconds, *folders = sys.argv
  sys.path.remove(own)
  sys.path += folders
  limits = int(megabytes), float(seconds)
  verdict, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 1)
  code = sandbox_data.receive(0)
  requests, replies = os.pipe(), os.pipe()
  try:
    missing = sandbox_limits.isolate()
    sandbox_limits.keep_readable()
    child = os.fork()
    if not child:
      # The tests are not in it, nor is there a way to them or to the verdict.
      os.dup2(null, 0)
      for stream in (verdict, requests[1], replies[0]):
        os.close(stream)
      sandbox_limits.seal(*limits, traced=True)
      _serve(code, requests[0], replies[1])
    for stream in (requests[0], replies[1]):
      os.close(stream)
    missing += sandbox_limits.seal(*limits)
  except OSError as error:
    sandbox_data.send(verdict, {'refused': str(error)})
    os._exit(0)
  sandbox_data.send(verdict, {'missing': missing})
  answer = _Answer(child, requests[1], replies[0], verdict)
  _run_tests(answer, **sandbox_data.receive(0))


def _serve(code: str, requests: int, replies: int) -> NoReturn:
  """Is the answer's process: does what it is asked, sends what comes of it."""
  module = sys.modules['__main__'] = types.ModuleType('__main__')
  sys.argv = ['answer.py']
  kept, numbers = [], {}

  def run():
    exec(compile(code, 'answer.py', 'exec'), module.__dict__)

  def look_up(name):
    value = module.__dict__[name]
    if isinstance(value, types.ModuleType):
      raise KeyError(name)  # Tests import their modules themselves.
    return value

  def keep(value):
    if isinstance(value, type) and issubclass(value, BaseException):
      return ['error', *(kind.__name__ for kind in value.__mro__)]
    number = numbers.setdefault(id(value), len(kept))
    if number == len(kept):
      kept.append(value)
    return ['object', number, type(value).__name__]

  operations = {**_OPERATIONS, 'run': run, 'look_up': look_up}
  while True:
    request = sandbox_data.receive(requests)
    try:
      operation, args, named = sandbox_data.decode(
        request, lambda kind, number: kept[number]
      )
      value = operations[operation](*args, **named)
      sandbox_data.send(replies, [True, sandbox_data.encode(value, keep)])
    except BaseException as error:
      parts = sandbox_data.encode((type(error), error.args), keep)
      sandbox_data.send(replies, [False, parts])


class _Answer:
  """The answer as its tests see it.

  Attributes:
    uses: how often something of it has been used.
  """

  def __init__(self, child: int, requests: int, replies: int, verdict: int):
    self._child, self._verdict = child, verdict
    self._requests, self._replies = requests, replies
    self._objects, self._errors = {}, {}
    self.uses = 0

  def ask(self, operation: str, *args: Any, **named: Any) -> Any:
    """Returns what an operation gives, or raises what it raises."""
    try:
      request = (operation, args, named)
      request = sandbox_data.encode(request, self._number)
      sandbox_data.send(self._requests, request)
      good, value = sandbox_data.receive(self._replies)
      value = sandbox_data.decode(value, self._other)
    except (EOFError, BrokenPipeError):
      code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
      self.finish(f'exit code {code}')
    except Exception as error:
      self.finish(f'no data from the answer: {error!r}')
    self.uses += operation not in ('run', 'look_up')
    if good is True:
      return value
    kind, args = value
    try:
      error = kind(*args)
    except Exception:
      error = RuntimeError(str(value))
    if isinstance(error, StopIteration) and operation != 'next':
      error = RuntimeError('StopIteration')  # It would end `map` early.
    raise error

  def finish(self, reason: str = '') -> NoReturn:
    """Ends the run, with a reason where the answer has not passed."""
    sandbox_data.send(self._verdict, {'reason': reason[:_LONGEST_REASON]})
    os._exit(0)

  def _number(self, value):
    if not isinstance(value, _Object):
      self.finish(f'TypeError: tests can pass no {type(value).__name__}')
    return ['object', value._number]

  def _other(self, kind, *parts):
    if kind == 'object':
      number, name = parts
      return self._objects.setdefault(number, _Object(self, number, name))
    known = (getattr(builtins, name, None) for name in parts)
    base = next(k for k in known if k and issubclass(k, BaseException))
    return self._errors.setdefault(parts[0], type(parts[0], (base,), {}))


def _asking(operation: str):
  """A method that does an operation where the object is."""
  return lambda self, *args, **named: self._answer.ask(
    operation, self, *args, **named
  )


class _Object:
  """Something of the answer that is no data; it stays where it is.

  Tests can call it, go through it and read or set what it has. They cannot
  compare it: it could say that it equals everything.
  """

  __slots__ = ('_answer', '_kind', '_number')

  def __init__(self, answer: _Answer, number: int, kind: str):
    for name, value in zip(self.__slots__, (answer, kind, number), strict=True):
      object.__setattr__(self, name, value)

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return self._answer.ask('getattr', self, name)

  __call__ = _asking('call')
  __setattr__ = _asking('setattr')
  __getitem__ = _asking('getitem')
  __setitem__ = _asking('setitem')
  __iter__ = _asking('iter')
  __next__ = _asking('next')
  __len__ = _asking('len')
  __str__ = _asking('str')
  __bool__ = _asking('bool')

  def __eq__(self, other):
    if self is not other:
      self._answer.finish(f'TypeError: a {self._kind} is no data to compare')
    return True

  __hash__ = object.__hash__


def _run_tests(
  answer: _Answer, given: str, tests: str, names: list[str], entry: str
) -> NoReturn:
  """Is the tests' process once the answer's is there."""
  space = {'__name__': '__main__'}
  try:
    answer.ask('run')
    exec(compile(given, 'given.py', 'exec'), space)
    for name in names:
      with contextlib.suppress(KeyError):
        space[name] = answer.ask('look_up', name)
        answer.uses += not isinstance(space[name], _Object | type)
    exec(compile(tests, 'tests.py', 'exec'), space)
    if entry:
      space['check'](answer.ask('look_up', entry))
  except BaseException as error:
    answer.finish(f'{type(error).__name__}: {error}')
  answer.finish('' if answer.uses else 'the tests use nothing of the answer')
