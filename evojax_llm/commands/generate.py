r"""Lets a model, and adapters of it, continue prompts.

  evojax-llm generate --model=gemma-2-2b-it \
      --adapters=experts/code,experts/cot --prompts=prompts.json \
      --max_new_tokens=64 --out=texts.json

--prompts is a JSON list. A string is continued as it is; a list of messages,
[{"role": "user", "content": "Hello"}], goes through the model's chat template,
and the reply is generated. The base and all adapters generate together, as one
population; `base` is the model without an adapter. The likeliest token is taken
always, or with --temperature one is drawn; what is drawn depends on --seed and
on the places of member and prompt in their lists, and on nothing beside them.
--out takes

  {"members": [{"name": "base", "outputs": ["text of the first prompt", ...]}]}
"""

from collections.abc import Sequence

from absl import flags

from evojax_llm.commands import command
from evojax_llm.runs import prompt_file

_MODEL = flags.DEFINE_string(
  'model', None, 'Gemma folder in Hugging Face form.', required=True
)
_ADAPTERS = flags.DEFINE_list(
  'adapters', [], 'PEFT LoRA folders, separated by commas; none by default.'
)
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
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace --out if it exists.'
)


def main(_: Sequence[str]) -> None:
  out = command.check_out(_OUT.value, _OVERWRITE.value)
  prompts = prompt_file.read_prompts(_PROMPTS.value)
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
  from evojax_llm.runs import base_and_adapters as members_lib

  dtype = jnp.dtype(_DTYPE.value)
  try:
    how = Sampling(**sampling)
  except ValueError as error:
    raise command.UserError(str(error)) from error
  command.say(f'loading {_MODEL.value}')
  members = members_lib.load(_MODEL.value, _ADAPTERS.value, dtype)
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
  command.write_json(
    out,
    {
      'model': _MODEL.value,
      'adapters': _ADAPTERS.value,
      'max_new_tokens': _MAX_NEW_TOKENS.value,
      'stop': _STOP.value,
      'sampling': sampling,
      'members': results,
    },
  )
  for result in results:
    for index, text in enumerate(result['outputs'][:3]):
      print(f'{result["name"]}, prompt {index}: {text!r}')
  command.say(f'wrote {out}')


if __name__ == '__main__':
  command.launch(main)
