"""Text of every member of a population for every prompt."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from evojax_llm import options
from evojax_llm.engine import groups
from evojax_llm.engine import packed_split
from evojax_llm.engine.answers import Answers
from evojax_llm.engine.engine import Engine
from evojax_llm.engine.image_table import ImageTables
from evojax_llm.engine.runtime import Runtime
from evojax_llm.engine.sampling import Sampling
from evojax_llm.genomes.space import Expressing
from evojax_llm.models.errors import ModelError
from evojax_llm.models.image_tokens import reader
from evojax_llm.population import sharding
from evojax_llm.tasks.given_prompts import GivenPrompt
from evojax_llm.tasks.given_prompts import read_prompt
from evojax_llm.tasks.prompts import EncodedItem
from evojax_llm.tasks.scorers.answers import cut_at_stop
from evojax_llm.tasks.task import Item
from evojax_llm.tasks.task import TaskError
from evojax_llm.tasks.tokens import encode_prompt

_PLAN_OPTIONS = (
  'form',
  'members_per_group',
  'prompts_per_batch',
  'budget',
  'walk',
  'attention',
)


def generate_texts(
  space: Expressing,
  population: Any,
  tokenizer: Any,
  prompts: Sequence[Any],
  max_new_tokens: int,
  *,
  members: Sequence[int] | None = None,
  stop: Sequence[str] = (),
  sampling: Sampling | None = None,
  dtype: Any = jnp.float32,
  devices: Sequence[jax.Device] | None = None,
  runtime: Runtime | None = None,
  progress: Callable[[float], None] | None = None,
  **plan_options: Any,
) -> list[list[str] | None]:
  """Continues prompts, each member in its own way.

  Args:
    space: of the population; `space.Expressed` for expressed members.
    population: genomes, leaves (P, ...).
    tokenizer: of the model.
    prompts: texts, which are read as they are; lists of chat messages, which go
      through the chat template; rows with images; see `read_prompt`.
    max_new_tokens: at most; an end token ends a text before.
    members: indices of the M members that are asked; all P by default.
    stop: strings that end a text and are not part of it.
    sampling: how tokens are chosen; greedy by default. A draw is addressed by
      seed, member, prompt and step.
    dtype: type of activations and cache.
    devices: devices to spread the members over; all by default.
    runtime: in place of sampling, dtype and devices; given to several calls,
      what has been compiled for one is used again by the next.
    progress: called with the share of the work that is done.
    **plan_options: form, members_per_group, prompts_per_batch, budget, walk and
      attention of `plan.make_plan`.

  Returns:
    M lists of a text a prompt, or None for a member whose logits were not
      finite.

  Raises:
    ValueError: an index is of no member, the population is not of the space,
      or a text is given for a list of them.
    TaskError: a prompt does not fit in the context with its new tokens, or has
      no tokens; an empty text is the token that begins one. Or it has an image,
      which cannot be read, or which the model cannot.
    MemoryPlanError: not even one prompt of one member fits in the memory.
  """
  for name in plan_options:
    options.find(name, dict.fromkeys(_PLAN_OPTIONS), 'generate_texts')
  indices = groups.check_members(space, population, members)
  context = space.model().config.max_position_embeddings
  items = _encode(prompts, tokenizer, max_new_tokens, context, stop)
  if runtime is None:
    runtime = Runtime(devices=devices, dtype=dtype, sampling=sampling)
  (items,), soft = ImageTables(runtime, tokenizer).take([items])
  engine = Engine(runtime, tokenizer)
  lengths = packed_split.longest_rows([items])
  plan = engine.prepare(space, population, lengths, **plan_options)
  work = packed_split.pack(
    [items],
    plan,
    sharding.replicated(runtime.mesh),
    tokenizer.pad_id,
    soft,
  )
  answers = Answers(work, len(indices))
  engine.answer(space, population, indices, work, answers, progress)
  decode = functools.cache(tokenizer.decode)
  return [
    [cut_at_stop(decode(ids), stop) for ids in made] if finite else None
    for made, finite in zip(answers.generated, answers.finite, strict=True)
  ]


def _encode(prompts, tokenizer, max_new_tokens, context, stop):
  """Prompts as items to be continued; refuses those that are too long."""
  options.check_list('prompts', prompts)
  options.check_list('stop', stop)
  if not prompts or max_new_tokens < 1:
    raise TaskError(
      f'Got {len(prompts)} prompts and max_new_tokens={max_new_tokens}; '
      'expected at least one of each.'
    )
  room = context - max_new_tokens
  encoded = []
  for index, prompt in enumerate(prompts):
    where = f'Prompt {index}'
    if not isinstance(prompt, GivenPrompt):
      prompt = read_prompt(prompt, where)
    try:
      ids = encode_prompt(prompt.text, reader(tokenizer, prompt.images))
    except ModelError as error:
      raise TaskError(f'{where}: {error}') from error
    if not ids:
      raise TaskError(
        f'{where} has no tokens, and the tokenizer has none that begins '
        'a text. Write something.'
      )
    if len(ids) > room:
      raise TaskError(
        f'{where} has {len(ids)} tokens; with {max_new_tokens} new ones '
        f'that is more than the {context} that the '
        'model was made for. Shorten it, or generate fewer tokens.'
      )
    item = Item(id=str(index), question='', answer='')
    encoded.append(
      EncodedItem(item, tuple(ids), None, max_new_tokens, tuple(stop))
    )
  return encoded
