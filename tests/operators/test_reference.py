from evojax_llm.operators import registry
from experiments import operators_reference as reference


def test_the_page_is_up_to_date():
  assert reference.PAGE.read_text() == reference.page(), (
    'run `python -m experiments.operators_reference`'
  )


def test_every_operator_and_parameter_is_on_the_page():
  page = reference.page()
  for op in registry.OPERATORS:
    (row,) = (r for r in page.split('\n') if r.startswith(f'| `{op.name}` |'))
    for name in (*op.parameters, *op.options):
      assert f'`{name}`' in row
