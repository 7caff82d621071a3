"""transformers and PEFT on the work of `benchmark_accelerator`.

A process of its own, which ends before jax takes the device:

  python -m experiments.benchmarks.accelerator_peer '{"shape": "tiny", ...}'

One member does the work of one, a JSON line for each measurement. The base is
drawn at random on the device. Of multiple choice a row is read for every item,
as options of one letter allow, and the logits of its last token alone are made;
`a row an option` reads every option apart.
"""

from collections.abc import Callable
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

from experiments.benchmarks.accelerator_clock import Clock

_BATCH = {'likelihood': 25, 'generation': 100}


def missing() -> list[str]:
  """Returns the packages of the peer that are not installed."""
  wanted = ('torch', 'transformers', 'peft')
  return [name for name in wanted if not importlib.util.find_spec(name)]


def run(settings: dict[str, Any], clock: Clock, found: dict[str, Any]) -> None:
  """Times the peer in a process of its own, as long as the part may take.

  Args:
    settings: of `measure`.
    clock: of the part.
    found: is given a row a measurement.
  """
  if absent := missing():
    clock.skip('peer', f'{" and ".join(absent)}: not installed')
    return
  command = [sys.executable, '-m', __spec__.name, json.dumps(settings)]
  # Of jax it needs no more than what encodes prompts.
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=environment
  ) as process:
    timer = threading.Timer(max(1.0, clock.left), process.kill)
    timer.start()
    try:
      for line in process.stdout:
        if not line.startswith('{'):
          continue
        row = json.loads(line)
        if 'skipped' in row:
          clock.skip('peer', row['skipped'])
          continue
        found[row.pop('name')] = row
        clock.say(f'peer: {line.strip()}')
        clock.keep()
    finally:
      timer.cancel()
  if not clock.fits(0):
    clock.skip('the rest of the peer', 'it took all of its time')
  elif process.returncode:
    raise RuntimeError(f'ended with {process.returncode}; see what it printed.')


def measure(settings: dict[str, Any]) -> None:
  """Prints a JSON line a measurement.

  Args:
    settings: shape, layers, rank, items, new_tokens, data, small.
  """
  import torch

  if not torch.cuda.is_available() and not settings['small']:
    say({'skipped': 'torch finds no CUDA device'})
    return
  import peft
  import transformers

  from evojax_llm.tasks import prompts
  from experiments.benchmarks import accelerator_model
  from experiments.benchmarks import shapes

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  dtype = torch.bfloat16 if device == 'cuda' else torch.float32
  config = shapes.hf_config(settings['shape'], settings['layers'])
  torch.manual_seed(0)
  with torch.device(device):
    torch.set_default_dtype(dtype)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    lora = peft.LoraConfig(
      r=settings['rank'],
      lora_alpha=2 * settings['rank'],
      target_modules='all-linear',
      task_type='CAUSAL_LM',
      init_lora_weights=False,
    )
    model = peft.get_peft_model(model, lora).eval()
    torch.set_default_dtype(torch.float32)
  # Answers are as long as they may be.
  model.generation_config.eos_token_id = None
  tokenizer = accelerator_model.Pieces(config.vocab_size)

  def encoded(kind: str):
    task = accelerator_model.task(
      kind, settings['items'], settings['new_tokens'], settings['data']
    )
    limit = config.max_position_embeddings
    found = prompts.encode_items(task, task.dev, tokenizer, max_length=limit)
    return sorted(found, key=lambda item: len(item.prompt))

  def batches(rows: list[tuple[int, ...]], size: int):
    for start in range(0, len(rows), size):
      part = rows[start : start + size]
      width = max(map(len, part))
      ids = torch.zeros((len(part), width), dtype=torch.long)
      mask = torch.zeros_like(ids)
      for i, row in enumerate(part):  # padded left
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
      yield {'input_ids': ids.to(device), 'attention_mask': mask.to(device)}

  def wait() -> None:
    if device == 'cuda':
      torch.cuda.synchronize()

  def timed(name: str, work: Callable[[], int], repeats: int) -> None:
    seconds = []
    for _ in range(repeats):
      wait()
      start = time.perf_counter()
      tokens = work()
      wait()
      seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == 'cuda' else 0
    steady = min(seconds[1:] or seconds)
    say(
      {
        'name': name,
        'first': seconds[0],
        'steady': steady,
        'tokens': tokens,
        'tokens_per_second': tokens / steady,
        'peak_gib': peak,
      }
    )

  def read(rows: list[tuple[int, ...]], size: int) -> int:
    for batch in batches(rows, size):
      logits = model(**batch, use_cache=False, logits_to_keep=1).logits
      torch.log_softmax(logits[:, -1].float(), dim=-1).cpu()
    return sum(map(len, rows))

  def read_apart(items, size: int) -> int:
    rows = [e.prompt + option for e in items for option in e.options]
    for batch in batches(rows, 4 * size):
      kept = max(len(option) for e in items for option in e.options) + 1
      logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
      torch.log_softmax(logits.float(), dim=-1).sum().cpu()
    return sum(len(e.prompt) + sum(map(len, e.options)) for e in items)

  def write(rows: list[tuple[int, ...]], size: int) -> int:
    new = settings['new_tokens']
    for batch in batches(rows, size):
      model.generate(
        **batch,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
      )
    return new * len(rows)

  with torch.inference_mode():
    choice = encoded('multiple_choice')
    rows = [e.prompt for e in choice]
    size = _BATCH['likelihood']
    timed('likelihood, a row an item', lambda: read(rows, size), 3)
    open_ended = [e.prompt for e in encoded('numeric_match')]
    timed('generation', lambda: write(open_ended, _BATCH['generation']), 1)
    timed('likelihood, a row an option', lambda: read_apart(choice, size), 2)


def say(row: dict[str, Any]) -> None:
  """Prints a measurement."""
  print(json.dumps(row), flush=True)


if __name__ == '__main__':
  measure(json.loads(sys.argv[1]))
