import subprocess
import sys

from evojax_llm import operators
from evojax_llm.operators import registry


def test_public_names_are_there():
  for name in operators.__all__:
    assert getattr(operators, name), name


def test_every_operator_of_the_page_has_a_public_name():
  functions = [getattr(operators, name) for name in operators.__all__]
  for op in registry.OPERATORS:
    assert op.kind == 'merge' or op.function in functions, op.name


def test_nothing_is_imported_before_it_is_asked_for():
  program = (
    'import sys, evojax_llm.operators as o\n'
    "assert 'jax' not in sys.modules\n"
    "o.merge\nassert 'jax' in sys.modules\n"
  )
  subprocess.run([sys.executable, '-c', program], check=True)
