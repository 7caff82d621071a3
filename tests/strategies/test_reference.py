"""The tables of options are those of the declarations."""

import pathlib

import pytest

from evojax_llm.strategies import registry
import experiments
from experiments import operators_reference as reference

SYSTEMS = sorted(pathlib.Path(experiments.__file__).parent.glob('*/README.md'))


@pytest.mark.parametrize('page', SYSTEMS, ids=lambda page: page.parent.name)
def test_the_tables_of_options_are_up_to_date(page):
  text = page.read_text()
  assert reference.with_tables(text) == text, (
    'run python -m experiments.operators_reference'
  )


@pytest.mark.parametrize(
  'name',
  (
    'genome_plus',
    'model_swarms',
    'low_rank_es',
    'randopt',
    'pso_merging',
    'evogm',
    'm2n2',
    'nsga2',
    'evomerge',
    'cma_es',
    'ipop_cma_es',
    'mixed_cma_es',
    'random_search',
    'lorahub',
    'grid',
  ),
)
def test_every_system_has_its_table(name):
  pages = ''.join(p.read_text() for p in SYSTEMS)
  assert f'<!-- options: {name} -->' in pages


def test_a_table_says_default_range_and_meaning():
  old = 'Text.\n<!-- options: genome_plus -->\nold\n<!-- end -->\nMore.\n'
  page = reference.with_tables(old)
  assert page.startswith('Text.\n') and page.endswith('<!-- end -->\nMore.\n')
  known = registry.options('genome_plus')
  assert page.count('\n| `') == len(known)
  assert '| `cross_rate` | `0.8` | 0 to 1 | chance that a slot' in page
  assert (
    "| `mask` | `'element'` | one of 'element', 'matrix', 'layer' |" in page
  )
