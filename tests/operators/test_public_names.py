import subprocess
import sys

from evojax_llm import operators
from evojax_llm.operators import registry


def test_public_names_are_there():
  for name in operators.__all__:
    assert getattr(operators, name), name


def test_what_is_on_the_page_can_be_imported_by_its_name():
  for op in registry.OPERATORS:
    found = getattr(operators, op.name)
    assert found is (op if op.kind == 'merge' else op.function), op.name


def test_defaults_are_those_of_the_page():
  for op in registry.OPERATORS:
    if op.kind != 'merge':
      for option in op.takes:
        given = op.signature[option.name].default
        assert given == option.default, (op.name, option.name)


def test_nothing_is_imported_before_it_is_asked_for():
  program = (
    'import sys, evojax_llm.operators as o\n'
    "assert 'jax' not in sys.modules\n"
    "o.merge\nassert 'jax' in sys.modules\n"
  )
  subprocess.run([sys.executable, '-c', program], check=True)
