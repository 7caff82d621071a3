"""Writes a random Gemma with PEFT adapters, for benchmarks and rehearsals.

The widths are those of a published model and the layers as few as one likes;
transformers and PEFT write the files, so that what is read is what users have.
The tokenizer is trained on the task files, so that prompts are about as long as
they would be; its ids are a part of the model's vocabulary. Needs the extra
`parity`.

  python -m experiments.benchmarks.random_gemma --shape=gemma-2-2b --layers=2 \\
    --texts=mmlu.json,gsm8k.json --out=/tmp/gemma2
"""

from collections.abc import Sequence
import pathlib

from absl import flags

from evojax_llm.commands import command
from experiments.benchmarks import random_tokenizer
from experiments.benchmarks import shapes

_MODULES = (
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
)

_SHAPE = flags.DEFINE_enum(
  'shape', 'gemma-2-2b', sorted(shapes.SHAPES), 'Widths.'
)
_LAYERS = flags.DEFINE_integer('layers', 2, 'Layers.')
_EXPERTS = flags.DEFINE_integer('num_experts', 10, 'Adapters.')
_RANK = flags.DEFINE_integer('rank', 16, 'Of the adapters.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['bfloat16', 'float32'], 'Stored.'
)
_TEXTS = flags.DEFINE_list(
  'texts', None, 'Task files to train the tokenizer on.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'New folder.', required=True)


def write(
  out: pathlib.Path,
  texts: Sequence[str],
  *,
  shape: str,
  layers: int,
  experts: int,
  rank: int,
  dtype: str = 'bfloat16',
) -> list[pathlib.Path]:
  """Writes <out>/base and <out>/experts/<i>; returns these folders.

  Raises:
    FileExistsError: `out` is there.
  """
  import peft
  import torch
  import transformers

  torch.manual_seed(0)
  config = shapes.hf_config(shape, layers)
  model = transformers.AutoModelForCausalLM.from_config(config)
  model = model.to(getattr(torch, dtype))
  out.mkdir(parents=True)
  base = out / 'base'
  model.save_pretrained(base)
  random_tokenizer.train(texts, min(4096, config.vocab_size), str(base))
  folders = []
  lora = peft.LoraConfig(
    r=rank,
    lora_alpha=2 * rank,
    target_modules=list(_MODULES),
    task_type='CAUSAL_LM',
    init_lora_weights=False,  # as if trained: B is not zero.
  )
  for i in range(experts):
    torch.manual_seed(1 + i)
    adapted = peft.get_peft_model(model, lora)
    folders.append(out / 'experts' / f'{i}')
    adapted.save_pretrained(folders[-1])
    model = adapted.unload()
  return [base, *folders]


def main(_: Sequence[str]) -> None:
  folders = write(
    pathlib.Path(_OUT.value),
    _TEXTS.value,
    shape=_SHAPE.value,
    layers=_LAYERS.value,
    experts=_EXPERTS.value,
    rank=_RANK.value,
    dtype=_DTYPE.value,
  )
  print(*folders, sep='\n')


if __name__ == '__main__':
  command.launch(main)
