"""What the space `seeded` is told: where noise is, and of which rank."""

import dataclasses

from evojax_llm.options import option


@dataclasses.dataclass(frozen=True)
class SeededOptions:
  """Members that are seeds around a centre."""

  on: str = option(
    'factors',
    "what has noise: the 'factors' of an adapter, or all 'weights' of a model",
    choices=('factors', 'weights'),
  )
  rank: int = option(1, 'of the noise of each matrix', low=1)
  relative: bool = option(
    True, 'whether a scale is relative to the root mean square of each matrix'
  )
