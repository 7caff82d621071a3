"""Options of the gradient steps that members take before they are scored.

No jax: configurations are read where nothing is computed.
"""

import dataclasses
from typing import Any

from evojax_llm.options import option

LOSSES = ('sft', 'dpo', 'kto_pair')
# Of which each member draws one.
DRAWN = ('lr', 'beta', 'rank', 'alpha')


@dataclasses.dataclass(frozen=True)
class RefineOptions:
  """How members are refined; see `engine.gradient` for what each one does."""

  loss: str = option(
    '', "what steps minimise; '' refines no members", choices=('', *LOSSES)
  )
  data: str = option(
    '',
    'JSONL file of {prompt, completion}, for dpo and kto_pair of {prompt, '
    "chosen, rejected}; '' for dev items",
  )
  items: str = option(
    'scored',
    "without data: the dev items that are 'scored', so that no more labels are "
    "read than by other searches, or the 'others'",
    choices=('scored', 'others'),
  )
  lr: tuple[float, ...] = option(
    (1e-4,), 'learning rates, of which a member draws one'
  )
  beta: tuple[float, ...] = option((0.1,), 'of dpo and kto_pair, likewise')
  rank: tuple[int, ...] = option((8,), 'of an adapter, likewise')
  alpha: tuple[float, ...] = option((16.0,), 'of an adapter, likewise')
  steps: int = option(10, 'steps of a member', low=1)
  batch: int = option(8, 'rows of a step', low=1)
  rows: int | None = option(
    None, 'rows that a member draws, and then repeats', low=1, kind=int
  )
  optimizer: str = option('adamw', 'of optax')
  optimizer_options: dict[str, Any] = option({}, 'its arguments by name')
  schedule: str = option('constant', 'of the learning rate')
  warmup: float = option(
    0.0, 'share of the steps in which the rate rises', low=0.0, high=1.0
  )
  clip: float | None = option(None, 'largest norm of a gradient', low=0.0)
  train: str = option(
    'auto',
    "the 'member', its own numbers; an 'adapter' that is folded into its "
    "weights; or 'auto', an adapter for whole models",
    choices=('auto', 'member', 'adapter'),
  )
  members_per_group: int | None = option(
    None, 'members that learn side by side', low=1, kind=int
  )
