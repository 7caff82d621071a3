"""Parameters and options that several merges take."""

from evojax_llm.operators.operator import Parameter
from evojax_llm.options import Option

WEIGHTS = Parameter('weights', 1.0, 'weight of each parent', per_model=True)
DENSITY = Parameter(
  'density', 1.0, 'share of each delta that is kept', 0.0, 1.0, per_model=True
)
LAMBDA = Parameter(
  'lambda_', 1.0, 'factor on the merged delta', span=(0.0, 2.0)
)
T = Parameter('t', 0.5, 'position between parent one, 0, and two, 1')
CHANGE = Parameter(
  'epsilon', 1e-5, 'largest change that counts as none', 0.0, span=(0.0, 1e-2)
)


def choice(name: str, text: str, *choices: str) -> Option:
  """Returns a static option with these choices, the default first."""
  return Option(name, choices[0], text, choices=choices, kind=str)


NORMALIZE = choice(
  'normalize', 'what the weights are divided by', 'weights', 'none'
)
