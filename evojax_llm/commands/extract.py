r"""Extracts the change of a tuned model as a LoRA adapter of its base.

  evojax-llm extract --model=/models/code --base=/models/base \
      --out=adapters/code --rank=32

Of every matrix of the layers, the nearest of rank R there is (SVD). What is
missing of the changes is told as a share of their Frobenius norm, of all and of
each module over the layers, and so is what no adapter holds: changed norms,
biases and embeddings.
"""

from collections.abc import Sequence
import os
import pathlib

from absl import flags

from evojax_llm.commands import command

_MODEL = flags.DEFINE_string(
  'model', None, 'Folder of the tuned model.', required=True
)
_BASE = flags.DEFINE_string(
  'base', None, 'Folder that it was tuned from.', required=True
)
_OUT = flags.DEFINE_string(
  'out', None, 'New folder to be written.', required=True
)
_RANK = flags.DEFINE_integer(
  'rank', 16, 'Highest rank of the adapter.', lower_bound=1
)


def main(_: Sequence[str]) -> None:
  from evojax_llm.recipes import extract
  from evojax_llm.runs import outputs
  from evojax_llm.runs import report

  out = pathlib.Path(os.path.expanduser(_OUT.value))
  outputs.prepare(out, [_MODEL.value, _BASE.value])
  found = extract.extract(
    _MODEL.value,
    _BASE.value,
    out,
    _RANK.value,
    command.Progress(),
  )
  worst = max(found.residuals, key=found.residuals.get)
  mean = sum(found.residuals.values()) / len(found.residuals)
  print(
    f'rank {found.rank}, {len(found.residuals)} matrices; residual '
    f'{found.total:.3g} of the change, mean {mean:.3g}, worst '
    f'{found.residuals[worst]:.3g} ({worst})'
  )
  rows = [
    (module, f'{sum(shares) / len(shares):.3g}', f'{max(shares):.3g}')
    for module, shares in found.by_module().items()
  ]
  print(report.aligned([('residual of', 'mean', 'worst'), *rows]))
  if found.left_out:
    worst = max(found.left_out, key=found.left_out.get)
    print(
      f'not in the adapter: {len(found.left_out)} other tensors that changed, '
      f'most {worst} by {found.left_out[worst]:.3g} of its norm'
    )
  print(f'adapter written to {_OUT.value}')
