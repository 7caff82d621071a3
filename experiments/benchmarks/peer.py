"""The same work in transformers and PEFT: member by member, static batches.

The peer is given every help that costs its user nothing: the rows that this
project's packer makes (sorted by length, options of one token sharing a row),
logits of the columns that some row is read in alone, inference mode, and all
adapters loaded beside the base once.
"""

from collections.abc import Sequence
import contextlib
import os
import pathlib

import numpy as np

from evojax_llm.engine import batches
from experiments.benchmarks.static import StaticBatch


class Peer:
  """transformers with one PEFT adapter a member.

  Args:
    base: model folder or GGUF file.
    adapters: M adapter folders; of none, the base is the one member.
    merged: add the adapter into the weights before a member's pass and take
      it out after, instead of computing it beside them.
    dtype: name of torch's type of the weights.
    threads: of torch; its default where None.
  """

  def __init__(
    self,
    base: str | os.PathLike,
    adapters: Sequence[str | os.PathLike],
    *,
    merged: bool = False,
    dtype: str = 'float32',
    threads: int | None = None,
  ):
    import torch
    import transformers

    if threads:
      torch.set_num_threads(threads)
    self._torch, self._merged = torch, merged
    base, file = pathlib.Path(base), {}
    if base.is_file():
      base, file = base.parent, {'gguf_file': base.name}
    self.model = transformers.AutoModelForCausalLM.from_pretrained(
      base, dtype=getattr(torch, dtype), local_files_only=True, **file
    ).eval()
    self.names = [f'member{m}' for m in range(len(adapters))] or ['base']
    self._adapted = bool(adapters)
    if not adapters:
      return
    import peft

    self.model = peft.PeftModel.from_pretrained(
      self.model, str(adapters[0]), adapter_name=self.names[0]
    )
    for name, folder in zip(self.names[1:], adapters[1:], strict=True):
      self.model.load_adapter(str(folder), adapter_name=name)
    self.model.eval()

  @contextlib.contextmanager
  def _member(self, name: str):
    with self._torch.inference_mode():
      if not self._adapted:
        yield
        return
      self.model.set_adapter(name)
      if self._merged:
        self.model.merge_adapter([name])
      yield
      if self._merged:
        self.model.unmerge_adapter()

  def likelihood(
    self, packed: Sequence[batches.LikelihoodBatch], count: int
  ) -> np.ndarray:
    """(M, count) f64 log-likelihoods of the continuations."""
    torch = self._torch
    values = np.zeros((len(self.names), count))
    inputs = [
      (
        {
          'input_ids': torch.from_numpy(tokens).long(),
          'attention_mask': torch.from_numpy(positions >= 0).long(),
        },
        *batch.reads(j),
      )
      for batch in packed
      for j, (tokens, positions) in enumerate(
        zip(batch.tokens, batch.positions, strict=True)
      )
    ]
    for m, name in enumerate(self.names):
      with self._member(name):
        for tensors, row, column, target, owner in inputs:
          kept, column = np.unique(column, return_inverse=True)
          logits = self.model(
            **tensors, use_cache=False, logits_to_keep=torch.from_numpy(kept)
          ).logits
          logprobs = torch.log_softmax(logits[row, column].float(), dim=-1)
          found = logprobs.gather(-1, torch.from_numpy(target).long()[:, None])
          np.add.at(values[m], owner, found[:, 0].double().numpy())
    return values

  def generate(
    self,
    packed: Sequence[StaticBatch],
    count: int,
    stop_ids: Sequence[int],
    pad_id: int,
  ) -> list[list[tuple[int, ...]]]:
    """M lists of the token ids that continue each of `count` prompts."""
    torch = self._torch
    made = [[()] * count for _ in self.names]
    for m, name in enumerate(self.names):
      with self._member(name):
        for batch in packed:
          tokens = self.model.generate(
            input_ids=torch.from_numpy(batch.tokens).long(),
            attention_mask=torch.from_numpy(batch.positions >= 0).long(),
            max_new_tokens=batch.max_new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
          )
          new = tokens[:, batch.tokens.shape[1] :].tolist()
          for owner, ids in zip(batch.owner, new, strict=True):
            end = next((i for i, t in enumerate(ids) if t in stop_ids), None)
            made[m][owner] = tuple(ids[:end])
    return made
