"""Installs lm-evaluation-harness into an environment of its own.

python third_party/lm_eval/install.py FOLDER
"""

import pathlib
import subprocess
import sys
import venv

# torch first, so that the harness does not bring another build of it.
PACKAGES = ('torch==2.13.0', 'lm-eval[hf]==0.4.13')


def main(folder: str) -> None:
  """Makes FOLDER/bin/python with the packages."""
  venv.create(folder, with_pip=True)
  python = pathlib.Path(folder) / 'bin' / 'python'
  for package in PACKAGES:
    subprocess.run([python, '-m', 'pip', 'install', package], check=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
