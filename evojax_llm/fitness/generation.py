"""Text of every member of a population for every prompt."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import forms
from evojax_llm.fitness import plan as planning
from evojax_llm.fitness.decoder import Decoder
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.ledger import Ledger
from evojax_llm.fitness.queues import Prompt
from evojax_llm.fitness.queues import pack_queues
from evojax_llm.fitness.sampling import Sampling
from evojax_llm.fitness.scorers.answers import cut_at_stop
from evojax_llm.fitness.tokens import encode_prompt
from evojax_llm.gemma.config import GemmaConfig
from evojax_llm.gemma.transformer import Gemma
from evojax_llm.population import sharding
from evojax_llm.population import stack


def generate_texts(
  config: GemmaConfig,
  params: Any,
  tokenizer: Any,
  population: Any,
  prompts: Sequence[str | Sequence[dict[str, str]]],
  max_new_tokens: int,
  *,
  stop: Sequence[str] = (),
  sampling: Sampling | None = None,
  dtype: Any = jnp.float32,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable[[float], None] | None = None,
  **plan_options: Any,
) -> list[list[str] | None]:
  """Continues prompts, each member in its own way.

  Args:
    config: the model.
    params: its parameters, shared by all members.
    tokenizer: of the model.
    population: adapter trees with a leading P, b scaled.
    prompts: texts, which are read as they are, or lists of chat messages,
      which go through the chat template.
    max_new_tokens: tokens to generate at most; an end token ends a text
      before.
    stop: strings that end a text and are not part of it.
    sampling: how tokens are chosen; greedy by default. A draw is addressed by
      seed, member, prompt and step.
    dtype: type of activations and cache.
    devices: devices to spread the members over; all by default.
    progress: called with the share of the work that is done.
    **plan_options: form, members_per_group, prompts_per_batch and budget of
      `plan.make_plan`.

  Returns:
    P lists of a text a prompt, or None for a member whose logits were not
    finite.

  Raises:
    TaskError: a prompt does not fit in the context with its new tokens, or has
      no tokens; an empty text is the token that begins one.
    MemoryPlanError: not even one prompt of one member fits in the memory.
  """
  encoded = _encode(prompts, tokenizer, max_new_tokens, config, stop)
  mesh = sharding.population_mesh(devices)
  members = stack.size(population)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(population))
  plan = planning.make_plan(
    config,
    members=members,
    base_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    member_bytes=size // members,
    lengths=[(max(len(prompt.ids) for prompt in encoded), max_new_tokens)],
    dtype=dtype,
    device=mesh.devices.flat[0],
    **plan_options,
  )
  whole = sharding.replicated(mesh)
  queues = pack_queues(encoded, plan.slots, plan.rows, whole, tokenizer.pad_id)
  decoder = Decoder(
    Gemma(config, dtype),
    jax.device_put(params, whole),
    mesh,
    plan.form,
    tokenizer,
    Ledger(),
    sampling,
  )
  # Whole devices: members that only fill the last group up are not active.
  group = -(-min(plan.members_per_group, members) // mesh.size) * mesh.size
  decode = functools.cache(tokenizer.decode)
  texts: list[list[str] | None] = []
  for start in range(0, members, group):
    chosen = np.arange(start, start + group)
    active = chosen < members
    lora = stack.take(population, np.where(active, chosen, start))
    lora = jax.device_put(
      forms.arrange(plan.form, lora),
      sharding.population_sharding(mesh, forms.member_axis(plan.form)),
    )
    results = decoder.start(queues, lora, active, chosen).finish()
    for m in np.flatnonzero(active):
      made = [''] * len(encoded)
      for queue, result in zip(queues, results, strict=True):
        for owner, row in zip(queue.owner, result.tokens[m], strict=True):
          text = decode(tuple(row[row >= 0].tolist()))
          made[owner] = cut_at_stop(text, stop)
      finite = all(result.finite[m] for result in results)
      texts.append(made if finite else None)
    if progress:
      progress(min(start + group, members) / members)
  return texts


def _encode(
  prompts: Sequence[Any],
  tokenizer: Any,
  max_new_tokens: int,
  config: GemmaConfig,
  stop: Sequence[str],
) -> list[Prompt]:
  """Prompts as items to be continued; refuses those that are too long."""
  if not prompts or max_new_tokens < 1:
    raise TaskError(
      f'Got {len(prompts)} prompts and max_new_tokens={max_new_tokens}; '
      'expected at least one of each.'
    )
  room = config.max_position_embeddings - max_new_tokens
  encoded = []
  for index, prompt in enumerate(prompts):
    ids = tuple(encode_prompt(prompt, tokenizer))
    if not ids:
      raise TaskError(
        f'Prompt {index} has no tokens, and the tokenizer has none that begins '
        'a text. Write something.'
      )
    if len(ids) > room:
      raise TaskError(
        f'Prompt {index} has {len(ids)} tokens; with {max_new_tokens} new ones '
        f'that is more than the {config.max_position_embeddings} that the '
        'model was made for. Shorten it, or generate fewer tokens.'
      )
    encoded.append(Prompt(ids, max_new_tokens, tuple(stop), str(index)))
  return encoded
