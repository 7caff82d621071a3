"""Greedy text of every member of a population for every prompt."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evojax_llm.fitness import forms
from evojax_llm.fitness import plan as planning
from evojax_llm.fitness import programs
from evojax_llm.fitness import splits
from evojax_llm.fitness.items import Item
from evojax_llm.fitness.items import TaskError
from evojax_llm.fitness.prompts import EncodedItem
from evojax_llm.fitness.prompts import encode_prompt
from evojax_llm.fitness.scores import Answers
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
    dtype: type of activations and cache.
    devices: devices to spread the members over; all by default.
    progress: called with the share of the work that is done.
    **plan_options: form, members_per_group, prompts_per_batch and budget of
      `plan.make_plan`.

  Returns:
    P lists of a text a prompt, or None for a member whose logits were not
    finite.

  Raises:
    TaskError: a prompt does not fit in the context with its new tokens.
    MemoryPlanError: not even one prompt of one member fits in the memory.
  """
  encoded = _encode(prompts, tokenizer, max_new_tokens, config)
  mesh = sharding.population_mesh(devices)
  members = stack.size(population)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(population))
  plan = planning.make_plan(
    config,
    members=members,
    base_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    member_bytes=size // members,
    lengths=splits.longest_rows([encoded]),
    dtype=dtype,
    device=mesh.devices.flat[0],
    **plan_options,
  )
  whole = sharding.replicated(mesh)
  data = splits.pack([encoded], plan.rows, whole, tokenizer.pad_id)
  params = jax.device_put(params, whole)
  run = jax.jit(
    forms.group_program(
      programs.generate,
      plan.form,
      Gemma(config, dtype),
      mesh,
      max_new_tokens=max_new_tokens,
      stop_ids=tuple(tokenizer.stop_ids),
    )
  )
  # Whole devices: members that only fill the last group up are not active.
  group = -(-min(plan.members_per_group, members) // mesh.size) * mesh.size
  answers = Answers(data, members)
  starts = range(0, members, group)
  for start in starts:
    chosen = np.arange(start, start + group)
    active = chosen < members
    lora = stack.take(population, np.where(active, chosen, start))
    lora = jax.device_put(
      forms.arrange(plan.form, lora),
      sharding.population_sharding(mesh, forms.member_axis(plan.form)),
    )
    mask = jax.device_put(active, sharding.population_sharding(mesh))
    for done, job in enumerate(data.jobs, start=1):
      result = jax.device_get(run(params, lora, mask, job.inputs))
      result = {name: value[active] for name, value in result.items()}
      answers.add(job.kind, job.batch, start, result)
      if progress:
        calls = start // group * len(data.jobs) + done
        progress(calls / (len(starts) * len(data.jobs)))
  decode = functools.cache(tokenizer.decode)
  return [
    [decode(ids) for ids in texts] if finite else None
    for texts, finite in zip(answers.generated, answers.finite, strict=True)
  ]


def _encode(
  prompts: Sequence[Any],
  tokenizer: Any,
  max_new_tokens: int,
  config: GemmaConfig,
) -> list[EncodedItem]:
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
    if len(ids) > room:
      raise TaskError(
        f'Prompt {index} has {len(ids)} tokens; with {max_new_tokens} new ones '
        f'that is more than the {config.max_position_embeddings} that the '
        'model was made for. Shorten it, or generate fewer tokens.'
      )
    item = Item(str(index), '', '')
    encoded.append(EncodedItem(item, ids, None, max_new_tokens, ()))
  return encoded
