"""transformers and PEFT on torch: what the parity tests compare with.

Import after `pytest.importorskip('torch')`.
"""

import pathlib
from typing import Any

import numpy as np
import torch
import transformers

from tests.models import cases

transformers.utils.logging.disable_progress_bar()


def build(case: cases.Case, dtype: str = 'float32') -> Any:
  """The torch model of a case."""
  config = cases.hf_config(case, dtype)
  config._attn_implementation = 'eager'
  model = transformers.AutoModelForCausalLM.from_config(
    config, dtype=getattr(torch, dtype)
  ).eval()
  state = {
    cases.stored_name(case, n): torch.tensor(t)
    for n, t in cases.tensors(case).items()
  }
  if case.model_type == 'gemma3':
    state = {f'model.{n.replace(".model", "")}': t for n, t in state.items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  text = [n for n in missing if 'vision' not in n and 'multi_modal' not in n]
  tied = ['lm_head.weight'] * (not config.get_text_config().tie_word_embeddings)
  assert text == ['lm_head.weight'][len(tied) :], text
  assert not unexpected, unexpected
  model.tie_weights()
  model.generation_config.eos_token_id = None
  return model


def write(folder: pathlib.Path, case: cases.Case, **options) -> Any:
  """Builds a model and has transformers write its folder."""
  dtype = options.pop('dtype', 'float32')
  model = build(case, dtype)
  model.save_pretrained(folder, **options)
  return model


def load(folder: pathlib.Path, **options) -> Any:
  """Loads a model folder by transformers."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, attn_implementation='eager', local_files_only=True, **options
  ).eval()


def load_reporting(folder: pathlib.Path) -> tuple[Any, set[str], set[str]]:
  """A model folder, and the names that were missing and unexpected in it."""
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    attn_implementation='eager',
    local_files_only=True,
    output_loading_info=True,
  )
  return model.eval(), info['missing_keys'], info['unexpected_keys']


def with_adapter(base: Any, folder: pathlib.Path) -> Any:
  """Puts an adapter folder on a model, by PEFT."""
  import peft

  return peft.PeftModel.from_pretrained(base, folder).eval()


def logits(
  model: Any, tokens: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
  """(B, T, V) f32 logits."""
  valid = np.ones_like(tokens) if valid is None else valid
  mask = torch.tensor(np.asarray(valid)).long()
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=mask,
      position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
    )
  return out.logits.float().numpy()


def greedy(
  model: Any, tokens: np.ndarray, valid: np.ndarray | None = None, steps=64
) -> np.ndarray:
  """(B, steps) tokens of `generate`; padding must stand left."""
  valid = np.ones_like(tokens) if valid is None else valid
  with torch.no_grad():
    out = model.generate(
      input_ids=torch.tensor(tokens).long(),
      attention_mask=torch.tensor(np.asarray(valid)).long(),
      do_sample=False,
      max_new_tokens=steps,
      min_new_tokens=steps,
      eos_token_id=None,
      pad_token_id=0,
    )
  return out[:, tokens.shape[1] :].numpy().astype(np.int32)
