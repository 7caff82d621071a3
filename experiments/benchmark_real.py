r"""How fast one model is read, beside transformers and beside its limit.

One member reads the options of multiple-choice items, their texts as they are
(`choice: text`), with real models and with random ones of every family:

  engine                   a pass of the evaluator, f32
  peer, bf16, batches of 8 transformers without an adapter, a row an option

The peer reads a few of the items, since rates are compared. Ways take turns and
the fastest repeat of each counts, so that the others' load on a machine counts
little. Tokens are counted once for all ways: an item's prompt, and its options.

The limit is the rate of a large f32 product that is measured in between; the
share of it counts two operations a weight of the layers and token that goes
through them, and a number of the output matrix and hidden state that is
unembedded. Beside it, the rate of the output matrix's own product, made whole.

  python -m experiments.benchmark_real --models=gemma-270m,smollm2 \
    --tasks=hellaswag.json,arc_challenge.json --out=/tmp/real

Without torch the peer is left out.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import pathlib
import tempfile
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from evojax_llm.commands import command
from evojax_llm.engine import batches
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.models.families import FAMILIES
from evojax_llm.runs import base_and_adapters
from evojax_llm.tasks import prompts
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from experiments.benchmarks import random_tokenizer
from experiments.benchmarks import shapes
from experiments.benchmarks import tables
from experiments.benchmarks import timing
from experiments.real import sources

_MODELS = flags.DEFINE_list(
  'models',
  [*sources.PACKAGES, *FAMILIES],
  'gemma-270m, smollm2, files or folders; and families, of which a random '
  'model of the size `small` is made.',
)
_TASKS = flags.DEFINE_list(
  'tasks', None, 'Multiple-choice task files.', required=True
)
_ITEMS = flags.DEFINE_integer('items', 120, 'Dev items of each task.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed repeats of each way.')
_PEER_ITEMS = flags.DEFINE_integer('peer_items', 16, 'Of each task, the peer.')
_PEER_ROWS = flags.DEFINE_list(
  'peer_rows', ['1', '4', '8', '16'], 'Batch sizes of the peer; none of it: ""'
)
_PEER_TYPES = flags.DEFINE_list(
  'peer_types', ['float32', 'bfloat16'], 'Types of its weights.'
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')

# Columns of the product that stands for the unembedding of a pass.
_READS = 256


def write_small(family: str, out: pathlib.Path, texts: Sequence[str]) -> None:
  """Writes a random model of a family, of the widths of the shape `small`.

  Args:
    family: a model type.
    out: new folder.
    texts: task files that its tokenizer is trained on.
  """
  import torch
  import transformers

  _, widths, layers = shapes.SHAPES['small']
  widths = dict(widths)
  if not FAMILIES[family].scalar:
    del widths['query_pre_attn_scalar']
  torch.manual_seed(0)
  config = transformers.AutoConfig.for_model(
    family, num_hidden_layers=layers, **widths
  )
  model = transformers.AutoModelForCausalLM.from_config(config)
  model.save_pretrained(out)
  random_tokenizer.train(texts, config.vocab_size, str(out))


def measure(
  model: pathlib.Path,
  tasks: Sequence[Task],
  *,
  repeats: int,
  peer_items: int,
  peer_sizes: Sequence[int],
  peer_types: Sequence[str],
) -> dict[str, Any]:
  """Times every way on one model.

  Args:
    model: folder or GGUF file.
    tasks: whose dev items are read.
    repeats: of each way.
    peer_items: of each task, that the peer reads.
    peer_sizes: batch sizes of the peer; none to leave it out.
    peer_types: of the peer's weights.

  Returns:
    What `markdown` takes as one model.
  """
  members = base_and_adapters.load(str(model))
  config = members.space.model().config
  evaluator = Evaluator(members.tokenizer, tasks)

  def encode(task: Task) -> tuple[prompts.EncodedItem, ...]:
    limit = config.max_position_embeddings
    items = task.dev
    return prompts.encode_items(
      task, items, members.tokenizer, max_length=limit
    )

  def tokens(items: Sequence[prompts.EncodedItem]) -> int:
    return sum(len(e.prompt) + sum(map(len, e.options)) for e in items)

  encoded = [encode(task) for task in tasks]
  ways = [
    timing.Way(
      'engine',
      lambda: evaluator.evaluate(members.space, members.population),
      sum(map(tokens, encoded)),
      evaluator.ledger,
    )
  ]
  few = [item for items in encoded for item in items[:peer_items]]
  pairs = [(e.prompt, option) for e in few for option in e.options]
  for dtype in peer_types if peer_sizes else ():
    from experiments.benchmarks.peer import Peer

    peer = Peer(model, (), dtype=dtype)
    for size in peer_sizes:
      rows = batches.pack_likelihood(
        pairs, lambda _, size=size: size, members.tokenizer.pad_id, share=False
      )

      def run(peer=peer, rows=rows):
        return peer.likelihood(rows, len(pairs))

      name = f'peer, {dtype}, batches of {size}'
      ways.append(timing.Way(name, run, tokens(few)))
  timed, rate = timing.time_ways(ways, repeats)
  shape = _READS, config.embed_dim, config.vocab_size
  result = {
    'model': model.name,
    'vocabulary': config.vocab_size,
    'numbers': config.num_params,
    'items': sum(map(len, encoded)),
    'matrix_rate': rate,
    'unembedding_rate': timing.matrix_rate(shape),
    'tokens': {way.name: way.tokens for way in ways},
    'seconds': {name: t.seconds for name, t in timed.items()},
  }
  unembedded = config.vocab_size * config.embed_dim
  layers = config.num_params - (1 if config.tied else 2) * unembedded
  operations = 2 * layers * timed['engine'].computed
  operations += (
    2
    * unembedded
    * _unembedded(
      [
        (e.prompt, option)
        for items in encoded
        for e in items
        for option in e.options
      ]
    )
  )
  result['rate_share'] = operations / min(timed['engine'].seconds) / rate
  if len(ways) > 1:
    found = evaluator.evaluate(members.space, members.population)
    ours = [
      value
      for task in found.tasks
      for item in task.loglikelihoods[0][:peer_items]
      for value in item.values()
    ]
    gap = np.abs(np.asarray(ours) - ways[1].run()[0]).max()
    result['difference'] = float(gap)
  return result


def _unembedded(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
  """Hidden states that are read of texts, each once."""
  return len(
    {
      (*prompt, *option[:end])
      for prompt, option in pairs
      for end in range(len(option))
    }
  )


def markdown(result: dict[str, Any]) -> str:
  """A table of all models, as `main` measures them."""
  lines = tables.heading(result, 'Reading one model')
  lines += [
    '| model | vocabulary | numbers | tokens/s | x best peer | which | peer '
    "tokens/s | of matrix rate | matrix GFLOP/s | the output matrix's | "
    'log-likelihoods differ by |',
    '|---|---|---|---|---|---|---|---|---|---|---|',
  ]
  for one in result['models']:
    speed = {
      name: one['tokens'][name] / min(seconds)
      for name, seconds in one['seconds'].items()
    }
    ours = speed.pop('engine')
    best = max(speed, key=speed.get, default=None)
    peer = ['', '', '']
    if best:
      name = best.removeprefix('peer, ')
      peer = [f'{ours / speed[best]:.1f}', name, f'{speed[best]:,.0f}']
    lines.append(
      '| '
      + ' | '.join(
        [
          one['model'],
          f'{one["vocabulary"]:,}',
          f'{one["numbers"] / 1e6:,.0f} M',
          f'{ours:,.0f}',
          *peer,
          f'{one["rate_share"]:.2f}',
          f'{one["matrix_rate"] / 1e9:,.0f}',
          f'{one["unembedding_rate"] / 1e9:,.0f}',
          f'{one["difference"]:.1e}' if 'difference' in one else '',
        ]
      )
      + ' |'
    )
  return '\n'.join([*lines, ''])


def main(_: Sequence[str]) -> None:
  files = _TASKS.value
  tasks = []
  for file in files:
    task = load_task(file, Rules(allow_overlap=True))
    if task.kind != 'multiple_choice':
      raise command.UserError(
        f'{file}: kind is {task.kind}; expected multiple_choice.'
      )
    how = dataclasses.replace(task.format, choice='text')
    dev = task.dev[: _ITEMS.value]
    tasks.append(dataclasses.replace(task, dev=dev, format=how))
  torch = importlib.util.find_spec('torch')
  sizes = [int(size) for size in _PEER_ROWS.value if size and torch]
  if not torch:
    logging.warning("Without torch no peer: pip install '.[parity]'")
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_real'),
    'models': [],
  }
  for name in _MODELS.value:
    with tempfile.TemporaryDirectory() as folder:
      if name in FAMILIES:
        model = pathlib.Path(folder) / name
        write_small(name, model, files)
      else:
        model = sources.find(name)
      found = measure(
        model,
        tasks,
        repeats=_REPEATS.value,
        peer_items=_PEER_ITEMS.value,
        peer_sizes=sizes,
        peer_types=_PEER_TYPES.value,
      )
    result['models'].append({**found, 'model': name})
    # Whatever becomes of the next, this one is kept.
    if _OUT.value:
      tables.write(result, markdown(result), _OUT.value)
  print(markdown(result))


if __name__ == '__main__':
  command.launch(main, quiet=False)
