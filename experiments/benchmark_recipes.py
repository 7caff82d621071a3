"""Seconds of a thousand candidates of ten rank-8 experts of Gemma-2-2B.

What is timed is what makes a candidate ready to be scored: gates, of which the
model's pass has the rest of the work; factors that are merged; the exact change
brought to a rank; and merged weights. It is done for one layer, of the merge of
weights for one projection, and multiplied by what there is of them.

Beside it stands mergekit, whole processes, on random folders of as many models
with few layers: its seconds at two sizes, and from these those at all numbers
of the linear maps of Gemma-2-2B.

  python -m experiments.benchmark_recipes \\
    --peer_python=.mergekit/bin/python --out=/tmp/recipes
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import subprocess
import tempfile
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.commands import command
from evojax_llm.genomes import gates
from evojax_llm.genomes import merged
from evojax_llm.genomes import merged_weights
from evojax_llm.genomes import weights
from evojax_llm.genomes.space import Model
from evojax_llm.models import peft
from evojax_llm.runs.errors import say
from experiments.benchmarks import operator_sizes
from experiments.benchmarks import random_llama
from experiments.benchmarks import tables

# Options of the space `merged`; none for gates of the experts.
WAYS: Mapping[str, Mapping[str, Any]] = {
  'gates': {},
  'gates by projection': {
    'on': 'exact',
    'method': 'task_arithmetic',
    'evolve': 'weights',
    'groups': 'class',
  },
  'factors, linear': {'method': 'linear', 'evolve': 'weights'},
  'factors, ties': {'method': 'ties'},
  'factors, dare_ties': {'method': 'dare_ties'},
  'exact, rank 8': {
    'on': 'exact',
    'method': 'task_arithmetic',
    'evolve': 'weights',
    'rank': 8,
  },
  'weights, dare_ties': {'on': 'weights', 'method': 'dare_ties'},
}
EXPERTS, RANK, LAYERS, CANDIDATES = 10, 8, 26, 1000

_WAYS = flags.DEFINE_multi_enum('way', list(WAYS), list(WAYS), 'What to time.')
_MEMBERS = flags.DEFINE_integer('members', 4, 'Candidates of a program.', 1)
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed repeats.', 1)
_SMOKE = flags.DEFINE_bool('smoke', False, 'Tiny matrices: does it run?')
_PEER_PYTHON = flags.DEFINE_string(
  'peer_python', None, 'Python with mergekit (third_party/mergekit).'
)
_PEER_LAYERS = flags.DEFINE_list('peer_layers', ['1', '4'], 'Two sizes.')
_PEER_WIDTH = flags.DEFINE_integer('peer_width', 1024, 'Of its models.', 64)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')


def projections() -> dict[str, tuple[int, int]]:
  """Returns (in, out) of the linear maps of a layer, by name."""
  found = operator_sizes.GEMMA_2_2B
  if _SMOKE.value:
    return {name: (i // 128, o // 128) for name, (i, o) in found.items()}
  return dict(found)


def make_space(given: Mapping[str, Any]) -> tuple[Any, float]:
  """Returns a space of one layer, and how many of it are in the model."""
  shapes, copies = projections(), float(LAYERS)
  if given.get('on') == 'weights':
    every = sum(i * o for i, o in shapes.values())
    shapes = {name: shapes[name] for name in list(shapes)[:1]}
    copies *= every / sum(i * o for i, o in shapes.values())
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.standard_normal((EXPERTS, 1, *shape), np.float32)

  factors = {
    name: {'a': normal(i, RANK), 'b': normal(RANK, o)}
    for name, (i, o) in shapes.items()
  }
  kernels = {
    name: {'kernel': jnp.zeros((1, *shape))} for name, shape in shapes.items()
  }
  adapters = peft.AdapterSet(
    names=tuple(f'expert{n}' for n in range(EXPERTS)),
    factors={'layers': {'block': factors}},
    scale={'layers': {'block': {name: np.ones(1, 'f4') for name in shapes}}},
    rank=RANK,
  )
  model = Model(None, {'layers': {'block': kernels}})
  if not given:
    return gates.GateSpace(adapters, model), copies
  kind = merged.MergedSpace.configured(**given)
  if kind is merged_weights.MergedWeightSpace:
    return kind(
      weights.WeightSpace.of_adapters(adapters, model), **given
    ), copies
  return kind(adapters, model, **given), copies


def measure(way: str) -> dict[str, Any]:
  """Times one way; `seconds` are of all candidates at the whole model."""
  space, copies = make_space(WAYS[way])
  drawn = jax.vmap(space.sample)(
    jax.random.split(jax.random.key(0), _MEMBERS.value)
  )

  def express(population, held):
    own = () if held is None else (held,)
    return jax.vmap(lambda genome: space.express(genome, *own))(population)

  program, taken = jax.jit(express), []
  for _ in range(1 + _REPEATS.value):  # The first one compiles.
    start = time.perf_counter()
    jax.block_until_ready(program(drawn, space.held))
    taken.append(time.perf_counter() - start)
  one = min(taken[1:]) / _MEMBERS.value
  return {
    'way': way,
    'measured': one,
    'copies': copies,
    'seconds': CANDIDATES * one * copies,
  }


def measure_mergekit(python: str, folder: pathlib.Path) -> dict[str, Any]:
  """Times mergekit's DARE-TIES of as many dense models at two sizes.

  Raises:
    UserError: it failed.
  """
  program = str(pathlib.Path(python).with_name('mergekit-yaml'))
  numbers, seconds = [], []
  for layers in map(int, _PEER_LAYERS.value):
    models = [str(folder / f'{layers}_{n}') for n in range(EXPERTS + 1)]
    for seed, path in enumerate(models):
      random_llama.write(
        pathlib.Path(path),
        seed,
        layers=layers,
        width=_PEER_WIDTH.value,
        dtype='bfloat16',
        shards=1,
      )
    recipe = {
      'merge_method': 'dare_ties',
      'base_model': models[0],
      'models': [{'model': path} for path in models[1:]],
      'parameters': {'weight': 0.5, 'density': 0.5},
      'dtype': 'bfloat16',
    }
    path = folder / 'recipe.yaml'
    path.write_text(json.dumps(recipe))
    start = time.perf_counter()
    done = subprocess.run(
      [program, str(path), str(folder / f'{layers}_merged')],
      capture_output=True,
      text=True,
    )
    seconds.append(time.perf_counter() - start)
    if done.returncode:
      raise command.UserError(f'{program} failed:\n{done.stderr[-2000:]}')
    shapes = random_llama.shapes(layers, _PEER_WIDTH.value).values()
    numbers.append(sum(int(np.prod(shape)) for shape in shapes))
    say(f'mergekit, {layers} layers: {seconds[-1]:.1f} s')
  slope, start = np.polyfit(numbers, seconds, 1)
  whole = LAYERS * sum(i * o for i, o in projections().values())
  return {
    'way': 'mergekit, dare_ties',
    'numbers': numbers,
    'measured': seconds,
    'seconds': CANDIDATES * float(max(start, 0.0) + slope * whole),
  }


def markdown(result: dict) -> str:
  """Returns the table of a result as Markdown."""
  lines = tables.heading(result, f'{CANDIDATES} candidates')
  lines += [
    f'{EXPERTS} experts of rank {RANK}, one layer of Gemma-2-2B times '
    f'{LAYERS}, times {CANDIDATES} candidates; of the merge of weights one '
    "projection. Gates leave their products to the model's pass.",
    '',
    '| way | measured ms a candidate | in the model | s of all candidates |',
    '|---|---|---|---|',
  ]
  peer = []
  for row in result['rows']:
    if 'numbers' in row:
      taken = ' and '.join(f'{s:.1f}' for s in row['measured'])
      sizes = ' and '.join(f'{n / 1e6:.0f}' for n in row['numbers'])
      peer = [
        '',
        f'mergekit: {taken} s for a candidate of {sizes} million numbers, '
        'extrapolated to all linear maps.',
      ]
      cells = ['', '']
    else:
      cells = [f'{1e3 * row["measured"]:,.3f}', f'{row["copies"]:,.0f}']
    cells = [row['way'], *cells, f'{row["seconds"]:,.1f}']
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join([*lines, *peer, ''])


def main(_: Sequence[str]) -> None:
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_recipes'),
    'rows': [],
  }
  for row in _measured():
    say(f'{row["way"]}: {row["seconds"]:,.1f} s')
    result['rows'].append(row)
    text = markdown(result)
    if _OUT.value:  # Each time: a run that is stopped leaves what it has.
      tables.write(result, text, _OUT.value)
  print(text)


def _measured() -> Iterator[dict[str, Any]]:
  """Yields the rows of the table."""
  yield from map(measure, _WAYS.value)
  if _PEER_PYTHON.value:
    with tempfile.TemporaryDirectory() as folder:
      python = os.path.expanduser(_PEER_PYTHON.value)
      yield measure_mergekit(python, pathlib.Path(folder))


if __name__ == '__main__':
  command.launch(main, quiet=False)
