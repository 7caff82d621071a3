"""Where the random masks of a tensor come from.

By default they depend on a seed, the name of the tensor and the position of the
model. A recipe that a search has written says in a comment which seed its
member was scored with, and then they are that member's, bit for bit: the keys
are those of `operators.merges.lift`, and a matrix is (in, out), as there.
"""

import hashlib
import re

import jax
import numpy as np

from evojax_llm.population import keys
from evojax_llm.recipes.plan import Plan

_COMMENT = re.compile(r'^# masks of evojax_llm: seed (\d{1,10})$', re.MULTILINE)


def comment(seed: int) -> str:
  """Returns the line of a recipe that says a member's seed."""
  return f'# masks of evojax_llm: seed {seed}\n'


class Masks:
  """The masks of one merge."""

  def __init__(self, plan: Plan, seed: int | None = None):
    """Takes a seed, or without one that of the recipe's comment, or 0."""
    found = _COMMENT.search(plan.recipe.text) if seed is None else None
    self._seed = int(found[1]) if found else seed or 0
    self._leaves = _leaves(plan) if found else {}

  def of(self, name: str) -> tuple[np.ndarray, bool]:
    """Returns the key of a tensor, two words, and whether it is (in, out)."""
    if not self._leaves:
      text = f'{self._seed} {name}'.encode()
      digest = hashlib.blake2b(text, digest_size=8).digest()
      return np.frombuffer(digest, np.uint32), False
    leaf, layer, transposed = self._leaves[name]
    key = jax.random.key(self._seed, impl='threefry2x32')
    key = jax.random.fold_in(key, keys.purpose_code(leaf))
    if layer is not None:
      key = jax.random.fold_in(key, layer)
    return np.asarray(jax.random.key_data(key)), transposed


def _leaves(plan: Plan) -> dict[str, tuple[str, int | None, bool]]:
  """Of every tensor its leaf, the layer in it, and whether that is (in, out).

  Raises:
    ModelError: the engine does not know the model.
    RecipeError: the recipe makes another model of it.
  """
  # Other merges do without: they know no architecture.
  from evojax_llm.models import hub
  from evojax_llm.models import names

  config, _ = hub.load_config(plan.like.path)
  known = {
    stored: ('/'.join(leaf.path), layer if leaf.layers else None, leaf)
    for leaf in names.leaves(config)
    for layer, stored in enumerate(leaf.names())
  }
  found = {}
  for output in plan.outputs:
    own = known.get(names.text_name(output.name) or output.name)
    if own is None and output.options is not None:
      raise plan.recipe.fail(
        output.name,
        'is in no member of a search; give the recipe as it was written, or '
        'choose other masks with --random_seed.',
      )
    if own is not None:
      leaf, layer, kind = own
      found[output.name] = leaf, layer, kind.transposed
  return found
