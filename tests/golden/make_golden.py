"""Writes models.npz: logits of small models by transformers and PEFT.

  python -m tests.golden.make_golden

Needs torch, transformers and peft. Machines without them check the forward
pass against what is stored.
"""

import pathlib
import tempfile

import numpy as np
import torch

from tests.models import cases
from tests.models import oracle

FILE = pathlib.Path(__file__).with_name('models.npz')


def main() -> None:
  """Writes the file."""
  torch.manual_seed(0)
  stored = {}
  for case in cases.CASES:
    tokens = cases.tokens(case)
    model = oracle.build(case)
    stored[f'{case}/logits'] = oracle.logits(model, tokens)
    stored[f'{case}/greedy'] = oracle.greedy(model, tokens)
    with tempfile.TemporaryDirectory() as folder:
      adapter = cases.write_adapter(pathlib.Path(folder), case)
      model = oracle.with_adapter(model, adapter)
      stored[f'{case}/adapted'] = oracle.logits(model, tokens)
  for case in cases.BF16:
    model = oracle.build(case, 'bfloat16')
    stored[f'{case}/bf16'] = oracle.logits(model, cases.tokens(case))
  np.savez_compressed(FILE, **stored)
  print(f'{FILE.name}: {FILE.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
  main()
