"""Rotary embeddings, and how longer contexts scale them."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from evojax_llm.models.errors import ModelError

KINDS = ('linear', 'proportional', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary embedding of one layer type.

  Attributes:
    base: wavelength base (`rope_theta`).
    factor: divides frequencies; 1 for none.
    kind: one of KINDS, which frequencies the factor divides: all of them
      ('linear', and 'proportional' of Gemma 4, where the low ones are 0), or
      the low ones (Llama 3; YaRN, arXiv 2309.00071).
    bounds: number of turns within the original context below which frequencies
      are low, and above which they are high; see `kind`.
    original: context that the model was made for before it was scaled.
    magnitude: multiplies cosines and sines.
    whole: of YaRN, whether the bounds are at whole dimensions.
    share: of a head that turns, where the kind is 'proportional'.
  """

  base: float = 10_000.0
  factor: float = 1.0
  kind: str = 'linear'
  bounds: tuple[float, float] = (1.0, 4.0)
  original: int = 8192
  magnitude: float = 1.0
  whole: bool = True
  share: float = 1.0


def from_parameters(parameters: Mapping[str, Any], context: int) -> Rope:
  """Reads `rope_parameters` of transformers 5.

  Args:
    parameters: of one type of layers.
    context: max_position_embeddings of the model.

  Raises:
    ModelError: a kind or a share of a head that is not known.
  """
  kind = parameters.get('rope_type', 'default')
  known = 'default', *KINDS
  if kind not in known:
    raise ModelError(f'rope_type is {kind!r}; expected one of {known}.')
  base = float(parameters['rope_theta'])
  share = float(parameters.get('partial_rotary_factor') or 1.0)
  if kind == 'proportional':
    factor = float(parameters.get('factor') or 1.0)
    return Rope(base, factor, kind, share=share)
  if share != 1.0:
    raise ModelError(
      'partial_rotary_factor is not 1; expected heads that rotate whole.'
    )
  if kind == 'default':
    return Rope(base)
  factor = float(parameters['factor'])
  if kind == 'linear':
    return Rope(base, factor, kind)
  original = parameters.get('original_max_position_embeddings') or context
  if kind == 'llama3':
    bounds = parameters['low_freq_factor'], parameters['high_freq_factor']
    return Rope(base, factor, kind, bounds, original)
  bounds = (
    parameters.get('beta_slow') or 1.0,
    parameters.get('beta_fast') or 32.0,
  )
  return Rope(
    base,
    factor,
    kind,
    bounds,
    original,
    _magnitude(parameters, factor),
    parameters.get('truncate', True),
  )


def _magnitude(parameters: Mapping[str, Any], factor: float) -> float:
  """What YaRN multiplies cosines and sines by."""
  given = parameters.get('attention_factor')
  if given is not None:
    return float(given)

  def of(scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

  scale, all_dims = (parameters.get(k) for k in ('mscale', 'mscale_all_dim'))
  if scale and all_dims:
    return of(scale) / of(all_dims)
  return of(1.0)
