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
and the reply is generated. --prompt=TEXT is one text. A multimodal model reads
images: a row {"prompt": "What is it?", "image": "a.png"} (or "images", a list)
as task files have them, the content of a message as in transformers,
[{"type": "image", "path": "a.png"}, {"type": "text", "text": "What is it?"}],
or an --image=FILE for each image of --prompt. Images stand in front of a text,
unless it has a <start_of_image> for each.

The base and all adapters generate together, as one population; `base` is the
model without an adapter. The likeliest token is taken always, or with
--temperature one is drawn; what is drawn depends on --seed and on the places of
member and prompt in their lists, and on nothing beside them.
--out=FILE takes all of them, and the screen the first three of a member:

  {"members": [{"name": "base", "outputs": ["text of the first prompt", ...]}]}
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

from absl import flags

from evojax_llm import files
from evojax_llm.commands import command
from evojax_llm.commands import source as source_lib

source_lib.define()
_PROMPTS = flags.DEFINE_string(
  'prompts', None, 'JSON list of texts, message lists, or rows with images.'
)
_PROMPT = flags.DEFINE_string('prompt', None, 'One text, in their place.')
_IMAGE = flags.DEFINE_multi_string(
  'image', [], 'An image of --prompt; may be repeated.'
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
  prompts = _read_prompts()
  reads = [image.path for prompt in prompts for image in prompt.images]
  reads += [_PROMPTS.value] if _PROMPTS.value else []
  out = command.check_out([*reads, *source.reads])
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


def _read_prompts() -> list[Any]:
  """The prompts that the flags give, as `GivenPrompt`."""
  from evojax_llm.tasks.given_prompts import read_prompt

  path, text, images = _PROMPTS.value, _PROMPT.value, _IMAGE.value
  if (path is None) == (text is None) or (images and text is None):
    raise command.UserError(
      'Expected --prompts=FILE, or --prompt=TEXT with an --image=FILE for each '
      f'image; got --prompts={path}, --prompt={text}, --image={images}.'
    )
  if path is None:
    row = {'prompt': text, 'images': images} if images else text
    return [read_prompt(row, f'--prompt={text}')]
  advice = 'Expected a JSON list of texts, such as ["Hello"].'
  value = files.read_json(path, command.UserError, advice)
  if not isinstance(value, list) or not value:
    raise command.UserError(
      f'--prompts={path}: expected a JSON list with at least one prompt.'
    )
  folder = os.path.dirname(os.path.expanduser(path))
  return [
    read_prompt(prompt, f'--prompts={path}, prompt {index}', folder)
    for index, prompt in enumerate(value)
  ]


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
