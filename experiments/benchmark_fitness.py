"""How fast a population is scored, beside what one would do otherwise.

Every way below scores the same members on the same items:

  population, <form>   all members at once, in each form of the engine
  gates, <form>        as many linear merges of the adapters, which share them
  one by one, <form>   member after member through the engine, a call each
  peer                 transformers + PEFT, member by member, static batches
  peer, merged         the same with the adapter added into the weights first

and `one model` scores a single member on P times as many items, an even share
on each device: what the hardware can do where there is no population. Ways take
turns, repeat by repeat, and medians are reported: a machine that slows down
slows all of them.
Tokens are counted once for all ways: an item's prompt, and its options or the
tokens it makes. Compilation is not timed. Of the engine's ways the table also
has the share of the device's matrix rate, which is measured in between (two
operations a weight of the layers and token that goes through them), the share
of time in which nothing was asked of the device, and the programs compiled
after the first pass.

  python -m experiments.benchmark_fitness --out=/tmp/benchmark

Without torch and PEFT the peer is left out.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import statistics

from absl import flags
from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm import pocket
from evojax_llm.commands import command
from evojax_llm.engine import batches
from evojax_llm.engine.forms import FORMS
from evojax_llm.fitness.evaluator import Evaluation
from evojax_llm.fitness.evaluator import Evaluator
from evojax_llm.genomes.adapters import AdapterSpace
from evojax_llm.genomes.gates import GATES
from evojax_llm.genomes.gates import GateSpace
from evojax_llm.genomes.space import load_base
from evojax_llm.models import peft
from evojax_llm.models.tokenizer import Tokenizer
from evojax_llm.tasks import prompts
from evojax_llm.tasks.scorers.answers import cut_at_stop
from evojax_llm.tasks.scorers.base import Answer
from evojax_llm.tasks.scorers.registry import scorer_of
from evojax_llm.tasks.task import Task
from evojax_llm.tasks.task_files import Rules
from evojax_llm.tasks.task_files import load_task
from experiments.benchmarks import tables
from experiments.benchmarks.static import pack_static
from experiments.benchmarks.timing import Way
from experiments.benchmarks.timing import time_ways

# Three options of a few tokens each; about six letters to be written.
_POCKET_TASKS = ('max', 'rev')

_BASE = flags.DEFINE_string(
  'base', None, 'Model folder; the pocket model by default.'
)
_EXPERTS = flags.DEFINE_list(
  'experts', None, 'Adapter folders, the members; the pocket ones by default.'
)
_LIKELIHOOD = flags.DEFINE_string(
  'likelihood_task',
  None,
  'Multiple-choice task file; a pocket one if no task is given.',
)
_GENERATION = flags.DEFINE_string(
  'generation_task',
  None,
  'Generated task file; a pocket one if no task is given.',
)
_ITEMS = flags.DEFINE_integer(
  'items', 100, 'Items a member and task, taken from the test split.'
)
_MAX_NEW = flags.DEFINE_integer(
  'max_new_tokens', None, "Overrides the generated task's own."
)
_FORMS = flags.DEFINE_list('forms', list(FORMS), 'Forms of the engine.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed repeats of each way.')
_PEER = flags.DEFINE_bool('peer', True, 'Time transformers + PEFT as well.')
_PEER_ROWS = flags.DEFINE_list(
  'peer_rows', ['16', '64'], 'Batch sizes of the peer; its best one counts.'
)
_OUT = flags.DEFINE_string('out', None, 'Writes <out>.json and <out>.md.')
_NOTE = flags.DEFINE_string('note', '', 'A line for the table: what it is of.')


class Workload:
  """A task, the members, and the ways to score them.

  Args:
    base: model folder.
    experts: M adapter folders.
    task: items are taken from its test split.
    items: items of a member, at most.
  """

  def __init__(self, base: str, experts: list[str], task: Task, items: int):
    self._base, self._experts = base, experts
    self.members = len(experts)
    self.items = min(items, len(task.test) // self.members)
    if not self.items:
      raise command.UserError(
        f'Task {task.name} has {len(task.test)} test items for {self.members} '
        'members; expected at least one each, for the model that is alone.'
      )
    # The engine is asked for `dev` throughout; what stands there is chosen
    # here.
    self._task = dataclasses.replace(task, dev=task.test[: self.items])
    # One model alone reads P times the items: an even share on each device.
    share = self.items * self.members // len(jax.devices())
    self._share = dataclasses.replace(task, dev=task.test[:share])
    model = load_base(base)
    self._config = model.config
    self._tokenizer = Tokenizer.from_folder(base)
    adapters = peft.load_adapters(experts, self._config)
    self._space = AdapterSpace(adapters, model)
    self._population = jax.device_put(adapters.factors)
    self._gates = GateSpace(adapters, model)
    weights = np.random.default_rng(0).dirichlet(
      np.ones(self.members), self.members
    )
    self._weights = {GATES: jnp.asarray(weights, jnp.float32)}
    layers = self._config.num_params - (
      self._config.vocab_size * self._config.embed_dim
    )
    self.operations_per_token = 2 * layers
    self._scores: Evaluation | None = None
    self.compile_seconds: dict[str, float] = {}

  def engine_ways(self, forms: Sequence[str]) -> list[Way]:
    """At once, one by one, and one model alone, in each form."""
    ways, cores = [], len(jax.devices())
    for form in forms:
      engine = functools.partial(Evaluator, self._tokenizer, form=form)
      whole = engine([self._task], members_per_group=self.members)
      gated = engine([self._task], members_per_group=self.members)
      single = engine([self._task], members_per_group=1)
      alone = engine([self._share], members_per_group=cores)
      copies = jax.tree.map(
        lambda leaf: leaf[np.zeros(cores, int)], self._population
      )

      def at_once(evaluator=whole):
        return evaluator.evaluate(self._space, self._population)

      def gates(evaluator=gated):
        return evaluator.evaluate(self._gates, self._weights)

      def one_by_one(evaluator=single):
        for m in range(self.members):
          evaluator.evaluate(self._space, self._population, [m])

      def one_model(evaluator=alone, copies=copies):
        return evaluator.evaluate(self._space, copies)

      self._scores = at_once()
      gates()
      one_model()
      tokens = self._tokens(whole, self.members)
      name = f'population, {form}'
      self.compile_seconds[name] = whole.ledger.seconds['compile']
      ways += [
        Way(name, at_once, tokens, whole.ledger),
        Way(
          f'gates, {form}',
          gates,
          self._tokens(gated, self.members),
          gated.ledger,
        ),
        Way(f'one by one, {form}', one_by_one, tokens, single.ledger),
        Way(
          f'one model, {form}',
          one_model,
          self._tokens(alone, cores),
          alone.ledger,
        ),
      ]
    return ways

  def _tokens(self, evaluator: Evaluator, members: int) -> int:
    """Prompts with options, or prompts with what the first pass has made."""
    read = sum(
      len(encoded.prompt) + sum(map(len, encoded.options or ()))
      for encoded in self._encode(evaluator.tasks[0])
    )
    return read * members + evaluator.ledger.new_tokens

  def _encode(self, task: Task) -> tuple[prompts.EncodedItem, ...]:
    return prompts.encode_items(
      task,
      task.dev,
      self._tokenizer,
      max_length=self._config.max_position_embeddings,
    )

  def peer_ways(self, sizes: Sequence[int], tokens: int) -> list[Way]:
    """transformers + PEFT in static batches of these sizes."""
    from experiments.benchmarks.peer import Peer

    encoded = self._encode(self._task)
    return [
      Way(
        f'peer{", merged" if merged else ""}, batches of {size}',
        self._peer_run(peer, encoded, size),
        tokens,
      )
      for merged in (False, True)
      for peer in [Peer(self._base, self._experts, merged=merged)]
      for size in sizes
    ]

  def _peer_run(self, peer, encoded, size: int) -> Callable[[], object]:
    pad_id = self._tokenizer.pad_id
    if encoded[0].options is not None:
      pairs = [(e.prompt, option) for e in encoded for option in e.options]
      # transformers reads rows of one text each.
      read = batches.pack_likelihood(pairs, lambda _: size, pad_id, share=False)
      return lambda: peer.likelihood(read, len(pairs))
    limits = [e.max_new_tokens for e in encoded]
    packed = pack_static(
      [e.prompt for e in encoded], limits, lambda _: size, pad_id
    )
    stops = self._tokenizer.stop_ids
    return lambda: peer.generate(packed, len(encoded), stops, pad_id)

  def difference(self, found) -> str:
    """How far what a peer's way has returned is from the engine's answers."""
    ours = self._scores.tasks[0]
    if ours.loglikelihoods is not None:
      values = [
        [value for item in member for value in item.values()]
        for member in ours.loglikelihoods
      ]
      gap = np.abs(np.asarray(values) - found).max()
      return f'log-likelihoods differ by at most {gap:.1e}'
    scorer, stop = scorer_of(self._task), self._task.format.stop

    def predicted(item, ids):
      text = cut_at_stop(self._tokenizer.decode(ids), stop)
      return scorer.score(item, Answer((text,))).prediction

    same = [
      predicted(item, ids) == prediction
      for answers, predictions in zip(found, ours.predictions, strict=True)
      for item, ids, prediction in zip(
        self._task.dev, answers, predictions, strict=True
      )
    ]
    return f'{sum(same)} of {len(same)} answers are the same'


def measure(
  base: str,
  experts: list[str],
  task: Task,
  *,
  items: int,
  repeats: int,
  peer_sizes: Sequence[int],
  forms: Sequence[str] = FORMS,
) -> dict:
  """Times every way on one task.

  Returns:
    What `tables.markdown` takes as one workload: name, sizes, seconds of each
    repeat, tokens, compile seconds and agreement with the peer.
  """
  workload = Workload(base, experts, task, items)
  ways = workload.engine_ways(forms)
  agreement = {}
  if peer_sizes:
    peers = workload.peer_ways(peer_sizes, ways[0].tokens)
    agreement = {way.name: workload.difference(way.run()) for way in peers}
    ways += peers
  timed, rate = time_ways(ways, repeats)
  medians = {name: statistics.median(t.seconds) for name, t in timed.items()}
  computed = {n: t.computed for n, t in timed.items() if t.computed}
  return {
    'task': task.name,
    'kind': 'likelihood' if task.kind == 'multiple_choice' else 'generation',
    'members': workload.members,
    'items': workload.items,
    'matrix_rate': rate,
    'tokens': {way.name: way.tokens for way in ways},
    'seconds': {name: t.seconds for name, t in timed.items()},
    'tokens_per_second': {
      way.name: way.tokens / medians[way.name] for way in ways
    },
    'rate_share': {
      name: tokens * workload.operations_per_token / medians[name] / rate
      for name, tokens in computed.items()
    },
    'idle': {n: t.idle for n, t in timed.items() if t.idle is not None},
    'recompiled': {
      n: t.recompiled for n, t in timed.items() if t.recompiled is not None
    },
    'compile_seconds': workload.compile_seconds,
    'agreement': agreement,
  }


def _tasks() -> list[Task]:
  """The tasks of the flags, or a pocket task of each kind."""
  files = [f for f in (_LIKELIHOOD.value, _GENERATION.value) if f]
  files = files or [pocket.task_file(name) for name in _POCKET_TASKS]
  tasks = [load_task(file, Rules(allow_overlap=True)) for file in files]
  if _MAX_NEW.value:
    tasks = [
      dataclasses.replace(
        task,
        format=dataclasses.replace(task.format, max_new_tokens=_MAX_NEW.value),
      )
      for task in tasks
    ]
  return tasks


def main(_: Sequence[str]) -> None:
  sizes = [int(size) for size in _PEER_ROWS.value] if _PEER.value else []
  missing = [
    name for name in ('torch', 'peft') if not importlib.util.find_spec(name)
  ]
  if sizes and missing:
    logging.warning(
      'The peer is left out: %s not installed. To have it: '
      "pip install '.[parity]'",
      ' and '.join(missing),
    )
    sizes = []
  base = _BASE.value or str(pocket.base_folder())
  experts = _EXPERTS.value or [str(f) for f in pocket.expert_folders()]
  command.use_cores(base, len(experts))
  result = {
    'note': _NOTE.value,
    **tables.of_program('benchmark_fitness'),
    'workloads': [],
  }
  for task in _tasks():
    result['workloads'].append(
      measure(
        base,
        experts,
        task,
        items=_ITEMS.value,
        repeats=_REPEATS.value,
        peer_sizes=sizes,
        forms=_FORMS.value,
      )
    )
    # Whatever becomes of the next, this one is kept.
    if _OUT.value:
      tables.write(result, tables.markdown(result), _OUT.value)
  print(tables.markdown(result))


if __name__ == '__main__':
  command.launch(main, quiet=False)
