"""Makes a virtual environment with mergekit: python install.py FOLDER."""

import argparse
import pathlib
import subprocess
import sys
import venv

# torch first: in another order a build for another device may be taken.
PACKAGES = ('torch==2.13.0', 'mergekit==0.1.5')


def main() -> None:
  """Makes the environment and prints the path of its python."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  folder = parser.parse_args().folder.resolve()
  venv.create(folder, with_pip=True)
  scripts = 'Scripts' if sys.platform == 'win32' else 'bin'
  python = folder / scripts / 'python'
  for package in PACKAGES:
    subprocess.run([python, '-m', 'pip', 'install', package], check=True)
  print(python)


if __name__ == '__main__':
  main()
