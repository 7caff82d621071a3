"""Runs mergekit on recipes; see the README beside this file.

Needs only what mergekit brings: it runs in mergekit's environment.
"""

import argparse
import json
import pathlib
import traceback

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions
from mergekit.merge import run_merge
import yaml


def main() -> None:
  """Makes FOLDER/NAME of each FOLDER/NAME.yaml."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  folder = parser.parse_args().folder
  options = MergeOptions(copy_tokenizer=False, quiet=True, random_seed=0)
  failed = {}
  for path in sorted(folder.glob('*.yaml')):
    out = path.with_suffix('')
    try:
      raw = yaml.safe_load(path.read_text())
      recipe = MergeConfiguration.model_validate(raw)
      run_merge(recipe, str(out), options)
    except Exception:
      # Weights are written first. Of stacked layers transformers then refuses
      # the configuration, if it has a list of their types.
      if not any(out.glob('*.safetensors')):
        failed[path.stem] = traceback.format_exc(limit=-1)
  (folder / 'failed.json').write_text(json.dumps(failed, indent=1) + '\n')


if __name__ == '__main__':
  main()
