r"""Lets a model, and adapters of it, continue prompts.

  evojax-llm generate --model=/models/gemma-2-2b-it \
      --adapters=/experts/code,/experts/cot --prompts=prompts.json \
      --max_new_tokens=64 --out=texts.json

  evojax-llm generate --run=runs/pocket_genome_plus --row=vote \
      --prompts=prompts.json --out=texts.json

--run takes a run folder, or what `export --row=vote` wrote, in place of --model
and --adapters: then the members of a row of the run's table generate, and of a
vote the text that stands is one member more.

--prompts is a JSON list. A string is continued as it is; a list of messages,
[{"role": "user", "content": "Hello"}], goes through the model's chat template,
and the reply is generated. The base and all adapters generate together, as one
population; `base` is the model without an adapter. The likeliest token is taken
always, or with --temperature one is drawn; what is drawn depends on --seed and
on the places of member and prompt in their lists, and on nothing beside them.
--out=FILE takes all of them, and the screen the first three of a member:

  {"members": [{"name": "base", "outputs": ["text of the first prompt", ...]}]}
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

from absl import flags

from evojax_llm import files
from evojax_llm.commands import command
from evojax_llm.commands import source as source_lib

source_lib.define()
_PROMPTS = flags.DEFINE_string(
  'prompts', None, 'JSON list of texts or of message lists.', required=True
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  'max_new_tokens', 64, 'Tokens to generate at most.', lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.0, 'Of the tokens that are drawn; 0 takes the likeliest.'
)
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Draw from the likeliest tokens of this probability in all.'
)
_TOP_K = flags.DEFINE_integer(
  'top_k', 0, 'Draw from so many of the likeliest tokens; 0 for all.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the tokens that are drawn.')
_STOP = flags.DEFINE_multi_string(
  'stop', [], 'A string that ends a text and is left out; may be repeated.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Type of the computation.'
)
command.define_out()


def main(_: Sequence[str]) -> None:
  source = source_lib.read()
  prompts = _read_prompts(_PROMPTS.value)
  out = command.check_out([_PROMPTS.value, *source.reads])
  sampling = {
    'temperature': _TEMPERATURE.value,
    'top_p': _TOP_P.value,
    'top_k': _TOP_K.value,
    'seed': _SEED.value,
  }

  # Only now, so that --help and a wrong file are answered at once.
  import jax.numpy as jnp

  from evojax_llm.engine.generation import generate_texts
  from evojax_llm.engine.sampling import Sampling

  dtype = jnp.dtype(_DTYPE.value)
  try:
    how = Sampling(**sampling)
  except ValueError as error:
    raise command.UserError(str(error)) from error
  members, vote = source.load(dtype)
  command.say(
    f'generating: {len(members.names)} members, {len(prompts)} prompts'
  )
  texts = generate_texts(
    members.space,
    members.population,
    members.tokenizer,
    prompts,
    _MAX_NEW_TOKENS.value,
    stop=_STOP.value,
    sampling=how,
    dtype=dtype,
    progress=command.Progress(),
  )
  results = []
  for name, outputs in zip(members.names, texts, strict=True):
    if outputs is None:
      reason = 'logits are not finite'
      command.say(f'{name} failed: {reason}')
      results.append({'name': name, 'failed': reason, 'outputs': []})
    else:
      results.append({'name': name, 'outputs': outputs})
  if vote:
    results.append(_decided(results[1:], *vote))
  command.write_json(
    out,
    {
      **source.record(members),
      'max_new_tokens': _MAX_NEW_TOKENS.value,
      'stop': _STOP.value,
      'sampling': sampling,
      'members': results,
    },
  )
  for result in results:
    for index, text in enumerate(result['outputs'][:3]):
      print(f'{result["name"]}, prompt {index}: {text!r}')


def _read_prompts(path: str) -> list[str | list[dict[str, str]]]:
  """A JSON list of texts and of lists of chat messages."""
  advice = 'Expected a JSON list of texts, such as ["Hello"].'
  value = files.read_json(path, command.UserError, advice)
  if not isinstance(value, list) or not value:
    raise command.UserError(
      f'--prompts={path}: expected a JSON list with at least one prompt.'
    )
  for index, prompt in enumerate(value):
    is_chat = (
      prompt and isinstance(prompt, list) and all(map(_is_message, prompt))
    )
    if not is_chat and not isinstance(prompt, str):
      raise command.UserError(
        f'--prompts={path}, prompt {index}: expected a text, or a list of '
        'messages {"role": "user" or "assistant", "content": text}, got '
        f'{json.dumps(prompt)[:80]}.'
      )
  return value


def _is_message(value: Any) -> bool:
  return (
    isinstance(value, dict)
    and set(value) == {'role', 'content'}
    and value['role'] in ('user', 'assistant', 'system')
    and isinstance(value['content'], str)
  )


def _decided(
  members: Sequence[Mapping[str, Any]], rule: str, fitness: Any
) -> dict[str, Any]:
  """The texts that stand: of free texts those that are most like the others."""
  from evojax_llm.fitness import ensembles

  name = f'vote of {len(members)}'
  alive = [i for i, member in enumerate(members) if 'failed' not in member]
  if not alive:
    return {'name': name, 'failed': 'its members failed', 'outputs': []}
  texts = [members[i]['outputs'] for i in alive]
  rule = 'medoid' if rule == ensembles.AUTO else rule
  stands = ensembles.RULES[rule](texts, fitness[alive])
  return {
    'name': name,
    'rule': rule,
    'outputs': [texts[m][i] for i, m in enumerate(stands)],
    'of': [members[alive[m]]['name'] for m in stands],
  }
