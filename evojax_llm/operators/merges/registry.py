"""All merges in one table; `lift` applies them to genomes and populations."""

from collections.abc import Mapping

from evojax_llm import lookup
from evojax_llm.operators.merges import consensus
from evojax_llm.operators.merges import linear
from evojax_llm.operators.merges import pairs
from evojax_llm.operators.merges import recombination
from evojax_llm.operators.merges import spherical
from evojax_llm.operators.merges import split
from evojax_llm.operators.merges import task_vectors
from evojax_llm.operators.operator import Merge

MERGES: Mapping[str, Merge] = {
  merge.name: merge
  for merge in (
    linear.LINEAR,
    spherical.SLERP,
    spherical.NUSLERP,
    spherical.MULTISLERP,
    spherical.KARCHER,
    split.SPLIT_SLERP,
    *task_vectors.MERGES,
    consensus.SCE,
    consensus.RAM,
    consensus.RAMPLUS,
    consensus.MODEL_STOCK,
    pairs.NEARSWAP,
    pairs.ARCEE_FUSION,
    linear.PASSTHROUGH,
    linear.EXTRAPOLATE,
    recombination.BLX,
    recombination.SBX,
    recombination.UNIFORM_ELEMENT,
    recombination.UNIFORM_MATRIX,
    recombination.UNIFORM_LAYER,
  )
}


def find(merge: str | Merge) -> Merge:
  """Returns the merge of a name of MERGES, or a user's own.

  That is a `Merge`, or 'package.module:Object' or 'file.py:Object' of one.

  Raises:
    ValueError: there is none.
  """
  if getattr(merge, 'name', merge) == 'exact_linear':
    raise ValueError(
      "Got merge 'exact_linear', which merges whole adapters at once; expected "
      'a merge of single tensors. Call evojax_llm.operators.exact_linear('
      'parents, weights=...) with adapters instead.'
    )
  found = merge
  if not isinstance(merge, Merge):
    found = lookup.find(merge, MERGES, 'merge')
  if not isinstance(found, Merge):
    raise ValueError(
      f'Got merge {merge!r}, which is a {type(found).__name__}; expected a '
      'Merge. Declare one as evojax_llm.operators.Merge(name, function, '
      'source, takes).'
    )
  return found
