"""What a search works with as shapes alone: no weights are read or made."""

from collections.abc import Callable
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.genomes import gates
from evojax_llm.genomes import seeded
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.seeded_options import SeededOptions
from evojax_llm.genomes.space import Model
from evojax_llm.models import adapter_config
from evojax_llm.models import config_json
from evojax_llm.models import names
from evojax_llm.models import published
from evojax_llm.models import quantize
from evojax_llm.models.config import ModelConfig
from evojax_llm.models.expression import Weights
from evojax_llm.models.folders import existing_folder
from evojax_llm.models.model_files import put
from evojax_llm.models.peft import AdapterSet
from evojax_llm.runs import errors
from evojax_llm.runs import inputs as inputs_lib
from evojax_llm.runs.run_config import RunConfig

# Of adapters that are not there.
_EXPERTS = 10
_SPACES = ('adapters', 'gates', 'seeded', 'weights')


@dataclasses.dataclass(frozen=True)
class PlannedSpace:
  """A space of which shapes are known; what strategies ask of one.

  Attributes:
    config: of the model.
    params: shapes of what members share, as it is placed on devices.
    genome: shapes of one genome.
    member: shapes of one expressed member.
    layers: as that of a space.
    names: of the experts.
    express: makes a member of a genome; for shapes alone.
    told: options of the space, or None.
    held, streams: as those of a space; none of these merges as it is scored.
  """

  config: ModelConfig
  params: Any
  genome: Any
  member: Any
  layers: str | None
  names: tuple[str, ...]
  express: Callable[[Any], Any]
  told: Any = None
  held: Any = None
  streams: bool = False

  def base(self) -> Any:
    """Returns zeros that take no memory."""
    return jax.tree.map(
      lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), self.genome
    )

  def bounds(self) -> tuple[Any, Any] | None:
    """Returns those of gates, which alone have some."""
    # Of their size; no program depends on the numbers.
    return (self.base(), self.base()) if gates.GATES in self.genome else None

  def sample(self, key: jax.Array, **_: Any) -> Any:
    """Returns a genome that no number is drawn for."""
    del key
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.genome)

  def deviation(self) -> float:
    """Returns a number, of which no size depends."""
    return 1.0

  def binary(self) -> None:
    """No genes are binary."""


def model_config(config: RunConfig) -> ModelConfig:
  """Returns the configuration of a model folder, or of a published model.

  Raises:
    UserError, ModelError: there is neither, or the folder is none of a model.
  """
  name = config.model or 'pocket'
  known = None if os.path.isdir(name) else published.known(name)
  if known:
    return published.published_config(known)
  if name != 'pocket' and not os.path.exists(name) and '/' not in name:
    raise errors.UserError(
      f'Got config.model={name}; expected a folder with config.json, or one of '
      f'{", ".join(published.NAMES)}.'
    )
  return config_json.load_config(name)[0]


def planned_space(config: RunConfig, rank: int) -> PlannedSpace:
  """Returns the space of a configuration as shapes.

  Args:
    config: names model, adapters and space. Of adapters adapter_config.json is
      read; without any there are ten of all linear maps.
    rank: of adapters that are not there.

  Raises:
    UserError, ModelError: a name stands for nothing, or the space is not known.
  """
  if config.space not in _SPACES:
    raise errors.UserError(
      f'Got config.space={config.space} for a dry run; expected one of '
      f'{", ".join(_SPACES)}.'
    )
  model, dtype = model_config(config), jnp.dtype(config.execution.dtype)
  params: dict[str, Any] = {}
  for leaf in names.leaves(model):
    shape = leaf.leaf_shape()
    put(params, leaf.path, jax.ShapeDtypeStruct(shape, dtype))
  told = inputs_lib.space_options(config)
  kind = SeededOptions(**told) if told else None
  if config.space == 'weights' or told.get('on') == 'weights':
    genome, express = params, Weights
    if kind is not None:
      genome = jax.eval_shape(_still, params)

      def express(genome):
        how = kind.rank, kind.relative, AdapterSpace.layers
        return Weights(seeded.formed(genome, *how))

    member = jax.eval_shape(express, genome)
    same = AdapterSpace.layers, (), express, kind
    return PlannedSpace(model, params, genome, member, *same)
  own = _adapters(config, model, rank)
  if config.execution.base_dtype:
    params = jax.eval_shape(quantize.quantize, params)

  def of(params, factors):
    plain = gates.GateSpace if config.space == 'gates' else AdapterSpace
    adapters = dataclasses.replace(own, factors=factors)
    space = plain(adapters, Model(model, params))
    return seeded.SeededSpace(space, **told) if told else space

  def express(genome):
    # Zeros in a program that no result depends on.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), own.factors)
    return of(None, zeros).express(genome)

  given = params, own.factors
  genome = jax.eval_shape(lambda *of_: of(*of_).base(), *given)
  return PlannedSpace(
    model,
    jax.eval_shape(lambda *of_: of(*of_).model().params, *given),
    genome,
    jax.eval_shape(express, genome),
    AdapterSpace.layers,
    own.names,
    express,
    kind,
  )


def _still(centre: Any) -> Any:
  leading = jax.tree.map(lambda leaf: leaf[None], centre)
  return jax.tree.map(lambda leaf: leaf[0], seeded.still(leading))


def _adapters(config: RunConfig, model: ModelConfig, rank: int) -> AdapterSet:
  """Returns the experts of a configuration, their factors as shapes."""
  folders = inputs_lib.names(config.adapters)
  if not folders and config.model in ('', 'pocket'):
    folders = ['pocket']
  folders = [
    existing_folder(name, 'a PEFT adapter folder')
    for name in inputs_lib.given_experts(','.join(folders), 'adapters')
  ]
  shapes, ranks = model.linear_shapes(inputs=bool(folders)), []
  modules = dict.fromkeys(shapes) if not folders else {}
  for folder in folders:
    peft = adapter_config.read_config(folder)
    paths = {
      f'model.layers.{i}.{".".join(model.within_layer(module))}': module
      for module in shapes
      for i in model.module_layers(module)
    }
    for path in sorted(peft.targets(paths) or paths):
      modules[paths[path]] = None
      ranks.append(peft.rank_and_alpha(path)[0])
  rank = max(ranks, default=rank)
  count = len(folders) or _EXPERTS
  factors: dict[str, Any] = {}
  scale: dict[str, Any] = {}
  for module, (d_in, d_out) in shapes.items():
    if module not in modules:
      continue
    lead = count, len(model.module_layers(module))
    pair = {'a': (*lead, d_in, rank), 'b': (*lead, rank, d_out)}
    at = 'layers', *module
    put(factors, at, {k: _f32(*shape) for k, shape in pair.items()})
    put(scale, at, np.ones(lead[1], np.float32))
  numbered = tuple(f'expert{i}' for i in range(count))
  return AdapterSet(numbered, factors, scale, rank)


def _f32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)
