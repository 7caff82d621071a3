r"""Converts a GGUF file to a Hugging Face model folder.

  evojax-llm convert --gguf=gemma-3-270m-q4_k_m.gguf --out=gemma-3-270m

Gemma 1 to 3, Llama, Qwen 2 and 3, of any quantisation that the package gguf
reads, in one file or split. All commands also take the file itself as a model.
"""

from collections.abc import Sequence
import os
import pathlib

from absl import flags

from evojax_llm.commands import command

_GGUF = flags.DEFINE_string(
  'gguf', None, 'The file, or one of the files of a split model.', required=True
)
_OUT = flags.DEFINE_string(
  'out', None, 'New folder to be written.', required=True
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  ['float32', 'bfloat16', 'float16'],
  'Type of all tensors; float32 keeps every bit.',
)


def main(_: Sequence[str]) -> None:
  import jax.numpy as jnp

  from evojax_llm.models import gguf_files
  from evojax_llm.runs import outputs

  out = pathlib.Path(os.path.expanduser(_OUT.value))
  outputs.prepare(out, [_GGUF.value])
  folder = gguf_files.convert(
    _GGUF.value, out, jnp.dtype(_DTYPE.value), progress=command.Progress()
  )
  print(f'model written to {folder}')
