"""The house rules that a program can check."""

import ast
import collections
import functools
import graphlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A part may import from its own rank and from lower ones, never from higher.
RANKS = {
  'evojax_llm': 0,
  'evojax_llm.files': 0,
  'evojax_llm.lookup': 0,
  'evojax_llm.options': 0,
  'evojax_llm.models': 0,
  'evojax_llm.pocket': 0,
  'evojax_llm.population': 1,
  'evojax_llm.operators': 2,
  'evojax_llm.tasks': 2,
  'evojax_llm.genomes': 3,
  'evojax_llm.recipes': 3,
  'evojax_llm.engine': 4,
  'evojax_llm.fitness': 5,
  'evojax_llm.strategies': 6,
  'evojax_llm.runs': 7,
  'evojax_llm.types': 8,
  'evojax_llm.systems': 8,
  'evojax_llm.commands': 9,
  'evojax_llm.__main__': 10,
  'experiments': 10,
}
PROGRAMS = ('evojax_llm.commands', 'experiments')
MAX_LINES = 420

# Sites that documents may point to. A package index is none of them.
HOSTS = {
  '127.0.0.1',
  'aclanthology.org',
  'arxiv.org',
  'creativecommons.org',
  'doi.org',
  'git-lfs.github.com',
  'github.com',
  'huggingface.co',
  'openreview.net',
  'sakana.ai',
  'www.apache.org',
}

MACHINE_PATH = re.compile(r'(?<![\w.$}])/(?:root|home|work|opt|mnt|Users)/\w')
INDEX_OPTION = re.compile(r'--(?:extra-)?index-url|--find[-]links|-f\s+/')
HOST = re.compile(r'https?://([\w-]+(?:\.[\w-]+)+)')


@functools.cache
def _files(suffix: str = '') -> tuple[pathlib.Path, ...]:
  """The files of the repository: tracked, or new and not ignored."""
  try:
    listed = subprocess.run(
      ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
      cwd=ROOT,
      check=True,
      capture_output=True,
      text=True,
    ).stdout
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('the files of the repository are listed by git')
  files = (ROOT / name for name in sorted(listed.split('\0')) if name)
  return tuple(f for f in files if f.is_file() and f.name.endswith(suffix))


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def _modules() -> dict[str, ast.Module]:
  """Parsed modules of the library and of the experiments, by dotted name."""
  return {
    _module(path): ast.parse(path.read_text(), filename=str(path))
    for path in _files('.py')
    if path.relative_to(ROOT).parts[0] in ('evojax_llm', 'experiments')
  }


def _imports(tree: ast.AST, nodes=None) -> set[str]:
  """Dotted names that `tree` imports from this project."""
  names = set()
  for node in ast.walk(tree) if nodes is None else nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        names.add(full if full in _modules() else node.module)
  return {n for n in names if n.split('.')[0] in ('evojax_llm', 'experiments')}


def _part(module: str) -> str:
  """The part of the layout that a module belongs to."""
  parts = module.split('.')
  return parts[0] if parts[0] == 'experiments' else '.'.join(parts[:2])


def test_every_module_belongs_to_a_known_part():
  unknown = {m for m in _modules() if _part(m) not in RANKS}
  assert not unknown, 'name their place in RANKS and in the README'


def test_imports_run_one_way():
  against = [
    f'{module} imports {name}'
    for module, tree in _modules().items()
    for name in sorted(_imports(tree))
    if RANKS[_part(name)] > RANKS[_part(module)]
  ]
  assert not against


def test_no_import_cycle():
  graph = {
    module: _imports(tree, tree.body) - {module}
    for module, tree in _modules().items()
  }
  graphlib.TopologicalSorter(graph).prepare()


def test_files_are_short():
  long = {
    str(path.relative_to(ROOT)): lines
    for path in _files('.py')
    if (lines := len(path.read_text().splitlines())) > MAX_LINES
  }
  assert not long


def test_no_utils():
  stems = ('util', 'utils', 'helpers', 'misc', 'common')
  assert not [f for f in _files('.py') if f.stem in stems]


def _private_names(tree: ast.Module) -> set[str]:
  """Names with an underscore that the top level of a module defines."""
  names = set()
  for node in tree.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    targets = getattr(node, 'targets', [getattr(node, 'target', None)])
    names |= {t.id for t in targets if isinstance(t, ast.Name)}
  return {n for n in names if n.startswith('_') and not n.startswith('__')}


def test_what_a_module_keeps_to_itself_it_uses():
  unused = []
  for name, tree in _modules().items():
    read = {
      node.id
      for node in ast.walk(tree)
      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    unused += [f'{name}.{n}' for n in sorted(_private_names(tree) - read)]
  assert not unused, 'defined and never used: ' + ', '.join(unused)


def test_library_defines_no_flags():
  defining = [
    module
    for module, tree in _modules().items()
    if _part(module) not in PROGRAMS
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and node.attr.startswith('DEFINE_')
  ]
  assert not defining


def _bases(node: ast.ClassDef) -> list[str]:
  """Last names of the classes that a class is derived from."""
  return [
    base.attr if isinstance(base, ast.Attribute) else base.id
    for base in node.bases
    if isinstance(base, ast.Attribute | ast.Name)
  ]


@functools.cache
def _classes() -> dict[str, list[ast.ClassDef]]:
  """All classes of all modules by name."""
  found = collections.defaultdict(list)
  for tree in _modules().values():
    for node in ast.walk(tree):
      if isinstance(node, ast.ClassDef):
        found[node.name].append(node)
  return found


@functools.cache
def _documented(name: str) -> frozenset[str]:
  """Documented names in the classes of a name and in their bases."""
  found = frozenset()
  for node in _classes().get(name, ()):
    found |= {
      part.name
      for part in node.body
      if isinstance(part, ast.FunctionDef) and ast.get_docstring(part)
    }
    # Attributes that the class declares, which its docstring names.
    found |= {
      part.target.id
      for part in node.body
      if isinstance(part, ast.AnnAssign)
      and f'{part.target.id}:' in (ast.get_docstring(node) or '')
    }
    found = found.union(*map(_documented, set(_bases(node)) - {name}))
  return found


def _undocumented(body, prefix: str, inherited=frozenset()):
  """Public functions, classes and methods in `body` without a docstring.

  A method that overrides a documented one has that docstring.
  """
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  for node in body:
    if not isinstance(node, kinds) or node.name.startswith('_'):
      continue
    if node.name == 'setup' or node.name in inherited:  # `setup` is Flax's.
      continue
    if ast.get_docstring(node) is None:
      yield f'{prefix}.{node.name}'
    if isinstance(node, ast.ClassDef):
      known = frozenset().union(*map(_documented, _bases(node)))
      yield from _undocumented(node.body, f'{prefix}.{node.name}', known)


def test_public_names_are_documented():
  missing = []
  for module, tree in _modules().items():
    if ast.get_docstring(tree) is None:
      missing.append(module)
    if _part(module) not in PROGRAMS:
      missing += _undocumented(tree.body, module)
  assert not missing


_IMPORT_ALL = """
import importlib
import sys
from absl import flags
import jax
if sys.argv[1] == 'evosax':
  import evosax.algorithms
  before = len(jax.live_arrays())
for name in sys.argv[2:]:
  importlib.import_module(name)
  if name.startswith(('experiments', 'evojax_llm.commands')):
    # Each of them is a program of its own.
    for flag in list(flags.FLAGS):
      delattr(flags.FLAGS, flag)
if sys.argv[1] == 'evosax':
  assert len(jax.live_arrays()) == before, 'a module makes arrays'
"""


def _outside(tree: ast.Module) -> set[str]:
  """First names of what a module imports when it is imported."""
  names = set()
  for node in tree.body:
    if isinstance(node, ast.Import):
      names |= {alias.name.split('.')[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module.split('.')[0])
  return names


def _reaching(package: str) -> set[str]:
  """Modules that import `package`, themselves or through one another."""
  modules = _modules()
  found = {m for m, tree in modules.items() if package in _outside(tree)}
  while True:
    more = {
      m
      for m, tree in modules.items()
      if m not in found and _imports(tree, tree.body) & found
    }
    if not more:
      return found
    found |= more


@pytest.mark.parametrize('with_evosax', [False, True])
def test_importing_makes_no_array(with_evosax):
  """No jax call at import: it would start a backend before flags are read.

  There is no platform to start, so that any call fails. evosax makes arrays
  itself when it is imported; of what imports it, only the arrays beyond those
  are noticed.
  """
  names = {
    module
    for module, tree in _modules().items()
    if all(map(importlib.util.find_spec, _outside(tree) & {'torch', 'peft'}))
  }
  of_evosax = _reaching('evosax')
  names = names & of_evosax if with_evosax else names - of_evosax
  platform = 'cpu' if with_evosax else 'no_such_platform'
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      _IMPORT_ALL,
      'evosax' if with_evosax else '',
      *sorted(names),
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': platform},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]


def _text_lines():
  for path in _files():
    try:
      lines = path.read_text().splitlines()
    except UnicodeDecodeError:
      continue
    for number, line in enumerate(lines, 1):
      yield f'{path.relative_to(ROOT)}:{number}', line


def test_no_machine_path_and_no_registry():
  found = []
  for where, line in _text_lines():
    if MACHINE_PATH.search(line) or INDEX_OPTION.search(line):
      found.append(f'{where}: {line.strip()[:80]}')
    found += [
      f'{where}: {host}' for host in HOST.findall(line) if host not in HOSTS
    ]
  assert not found, 'local paths and package indexes are none of our business'
