"""What the space `layer_path` is told: which layers, and what evolves."""

import dataclasses

from evojax_llm.options import option

BASE = 'base'


@dataclasses.dataclass(frozen=True)
class LayerPathOptions:
  """Paths through the layers of models, laid end to end and repeated."""

  sources: str = option(
    '',
    "names of experts or 'base', by commas; the first, A, has embedding and "
    'head; the base and the first expert by default',
  )
  repeats: int = option(3, 'times that all layers are laid end to end', low=1)
  scales: str = option(
    'matrix',
    "what the stream is multiplied by: a number for each 'matrix' entry of two "
    "layers, for each 'hop', by a 'network' of both layers and the hop, or "
    "'none'",
    choices=('matrix', 'hop', 'network', 'none'),
  )
  hidden: int = option(8, 'units of that network', low=1)
  pinned: bool = option(
    True, 'whether the first and last layer of A are the ends of every path'
  )
  reuse: bool = option(False, 'whether these come within a path as well')
  cap: int | None = option(
    None,
    'most hops, at which a path is cut; twice the layers of A by default',
    low=2,
    kind=int,
  )
  penalty: float = option(
    0.0,
    'what the search sees fitness less for each hop beyond the layers of A',
    low=0.0,
  )
  on: float = option(
    2.0, "indicator of the first slots of A's layers, in deviations", low=0.0
  )
  off: float = option(
    -2.0,
    'indicator of all other slots, in deviations; 0 in the paper',
    high=0.0,
  )
