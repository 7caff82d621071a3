"""Log-likelihoods of continuations by lm-evaluation-harness; see the README."""

import importlib.metadata
import json
import pathlib
import sys


def main(file: str) -> None:
  """Reads requests from a file and writes results to standard output."""
  from lm_eval.api.instance import Instance
  from lm_eval.models.huggingface import HFLM

  asked = json.loads(pathlib.Path(file).read_text(encoding='utf-8'))
  model = HFLM(
    pretrained=asked['model'],
    device='cpu',
    dtype='float32',
    batch_size=4,
    add_bos_token=True,
  )
  requests = [
    Instance('loglikelihood', {}, tuple(request), index)
    for index, request in enumerate(asked['requests'])
  ]
  found = model.loglikelihood(requests, disable_tqdm=True)
  result = {
    'version': importlib.metadata.version('lm_eval'),
    'loglikelihoods': [value for value, _ in found],
    'greedy': [bool(greedy) for _, greedy in found],
  }
  print(json.dumps(result))


if __name__ == '__main__':
  main(*sys.argv[1:])
