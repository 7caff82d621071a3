"""Runs mergekit on tensors of a folder; see the README beside this file.

Needs only what mergekit brings: it runs in mergekit's environment.
"""

import argparse
import contextlib
import json
import pathlib
import time

from mergekit.merge_methods.api import merge_tensors
import numpy as np
import torch


@contextlib.contextmanager
def _given_masks(masks):
  """Hands out the masks, in order, in place of Bernoulli draws."""
  drawn, waiting = torch.bernoulli, list(masks)

  def hand_out(chances):
    mask = waiting.pop(0).reshape(chances.shape).to(chances.dtype)
    # A mask that contradicts a certain draw is none of this draw.
    assert not torch.any((mask > 0) & (chances <= 0))
    assert not torch.any((mask == 0) & (chances >= 1))
    return mask

  if masks:
    torch.bernoulli = hand_out
  try:
    yield
  finally:
    torch.bernoulli = drawn
  assert not masks or not waiting, f'{len(waiting)} masks were not drawn'


def _parameters(case):
  """Lists become one value for each model, by its name."""
  return {
    name: dict(zip(case['models'], value, strict=True))
    if isinstance(value, list)
    else value
    for name, value in case['parameters'].items()
  }


def _merge(case, tensors):
  base = case.get('base')
  names = ([base] if base else []) + case['models']
  with _given_masks([tensors[name] for name in case.get('masks', ())]):
    return merge_tensors(
      [tensors[name] for name in names],
      case['method'],
      parameters=_parameters(case),
      ids=names,
      base_index=0 if base else None,
    )


def _random(shape, seed, dtype='float32'):
  generator = torch.Generator().manual_seed(seed)
  return torch.randn(shape, generator=generator).to(getattr(torch, dtype))


def main() -> None:
  """Reads the cases and writes what mergekit makes of them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument(
    '--enough', type=float, default=float('inf'), help='seconds of repeats'
  )
  parser.add_argument('--threads', type=int, default=None)
  parser.add_argument(
    '--discard', action='store_true', help='write the seconds only'
  )
  arguments = parser.parse_args()
  if arguments.threads:
    torch.set_num_threads(arguments.threads)
  folder = arguments.folder
  given = json.loads((folder / 'cases.json').read_text())
  tensors = {
    name: _random(**how) for name, how in given.get('random', {}).items()
  }
  if (folder / 'tensors.npz').is_file():
    with np.load(folder / 'tensors.npz') as file:
      tensors |= {name: torch.from_numpy(file[name]) for name in file}
  results, seconds = {}, {}
  print('ready', flush=True)
  with torch.no_grad():
    for case in given['cases']:
      taken = []
      while len(taken) < arguments.repeats and sum(taken) < arguments.enough:
        start = time.perf_counter()
        result = _merge(case, tensors)
        taken.append(time.perf_counter() - start)
      seconds[case['name']] = min(taken)
      print(f'taken {min(taken)} {case["name"]}', flush=True)
      if not arguments.discard:
        results[case['name']] = result.float().numpy()
  if not arguments.discard:
    np.savez_compressed(folder / 'results.npz', **results)
  (folder / 'seconds.json').write_text(json.dumps(seconds, indent=1) + '\n')


if __name__ == '__main__':
  main()
