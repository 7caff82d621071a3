"""Singular: a genome is the singular values of the experts' changes.

The change of each matrix by an expert is U S V'; U and V are shared by all
members, and the genes are the values S of every matrix, layer and expert (after
ESSA, arXiv 2507.04453). Thousands of numbers where an adapter has a million.
"""

import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import gates as gate_genomes
from evojax_llm.genomes import initial
from evojax_llm.genomes import space
from evojax_llm.models import expression
from evojax_llm.models import peft
from evojax_llm.population import leaves
from evojax_llm.population import stack

_HIGHEST = 4.0


class SingularSpace(gate_genomes.GateSpace):
  """Singular values of N LoRA experts over one base.

  A genome is {'layers': {block: {projection: (L, N R) f32}}}, the values of
  expert n at n R to (n + 1) R. It stands for the change sum_n U_n S_n V_n'.
  Expressed, it is gates of shared factors, as in the space `gates`.
  """

  def __init__(
    self,
    adapters: peft.AdapterSet,
    model: space.Model,
    dtype: Any = jnp.float32,
  ):
    """Makes the space; `dtype` is of the shared factors, genes are f32."""
    parts = jax.tree.map(
      _decomposed, adapters.factors, is_leaf=leaves.is_factors
    )
    is_part = functools.partial(_is, tuple)
    factors = jax.tree.map(lambda part: part[0], parts, is_leaf=is_part)
    self._values = jax.tree.map(lambda part: part[1], parts, is_leaf=is_part)
    super().__init__(
      peft.AdapterSet(**{**vars(adapters), 'factors': factors}), model, dtype
    )
    self._plain = type(self._plain)(adapters, model, dtype)

  def experts(self) -> stack.Population:
    def one_block(values):
      n, rank = len(self.names), values.shape[-1]
      blocks = np.zeros((n, values.shape[1], n, rank), np.float32)
      blocks[np.arange(n), :, np.arange(n)] = values
      return jnp.asarray(blocks.reshape(n, values.shape[1], -1))

    return jax.tree.map(one_block, self._values)

  def base(self) -> stack.Genome:
    return jax.tree.map(
      lambda values: jnp.zeros(
        (values.shape[1], len(self.names) * values.shape[-1]), jnp.float32
      ),
      self._values,
    )

  def mix(self, weights: np.ndarray, factors: np.ndarray) -> stack.Population:
    weights = np.asarray(weights) * np.asarray(factors)[:, None]
    return initial.combine(self.experts(), weights, weights)

  def sample(self, key: jax.Array, **options: float) -> stack.Genome:
    mix, mass = initial.random_mix(key, len(self.names), **options)
    return initial.sum_experts(self.experts(), mix * mass, mix * mass)

  def bounds(self) -> tuple[stack.Genome, stack.Genome]:
    """Returns values of zero, and four times those of the experts."""
    experts = self.experts()
    high = jax.tree.map(lambda leaf: leaf.max(axis=0) * _HIGHEST, experts)
    return self.base(), high

  def express(self, genome: stack.Genome) -> expression.Gates:
    """Returns gates (L, N R) f32 of every linear map that has factors."""
    return expression.Gates(
      jax.tree.map(lambda leaf: leaf.astype(jnp.float32), genome)
    )

  def deviation(self) -> float:
    return space.Space.deviation(self)

  def recipe(self, genome: stack.Genome) -> dict[str, Any]:
    """Returns how much of each expert's values there is, by name.

    The weight of an expert is the share of its own values, by least squares.
    """
    own = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(genome)]
    experts = [np.asarray(leaf) for leaf in jax.tree.leaves(self.experts())]
    weights = {}
    for n, name in enumerate(self.names):
      along = sum(np.vdot(x, y[n]) for x, y in zip(own, experts, strict=True))
      square = sum(np.vdot(y[n], y[n]) for y in experts)
      weight = along / square if square else 0.0
      weights[name] = float(weight) if np.isfinite(weight) else None
    return {'weights': weights}

  def export(
    self, genome: stack.Genome, folder: str | os.PathLike
  ) -> pathlib.Path:
    """Writes one member as a PEFT adapter of rank N R."""
    space.check_genome(self, genome)
    return self.write(self.express(genome), folder)


def _is(kind: type, node: Any) -> bool:
  return isinstance(node, kind)


def _decomposed(pair: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
  """Returns {'a': U, 'b': V'} (N, L, ...) and S (N, L, R) of factors' products.

  By way of the R by R core of two QR decompositions; no product is formed.
  """
  a, b = (np.asarray(pair[name], np.float64) for name in 'ab')
  rank = a.shape[-1]
  qa, ra = np.linalg.qr(a)
  qb, rb = np.linalg.qr(np.swapaxes(b, -1, -2))
  u, s, vt = np.linalg.svd(ra @ np.swapaxes(rb, -1, -2))
  u, vt = qa @ u[..., :rank], vt[..., :rank, :] @ np.swapaxes(qb, -1, -2)
  return (
    {'a': u.astype(np.float32), 'b': vt.astype(np.float32)},
    s.astype(np.float32),
  )
