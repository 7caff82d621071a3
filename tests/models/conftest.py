"""Folders of models that a test may damage."""

import pathlib
import shutil

import pytest


@pytest.fixture
def folder(tiny_gemma_folder, tmp_path):
  """A copy of a tiny Gemma 2."""
  return _copy(tiny_gemma_folder('gemma2'), tmp_path)


@pytest.fixture
def shards(tiny_gemma_folder, tmp_path):
  """The same in three shards."""
  return _copy(tiny_gemma_folder('gemma2', shards=3), tmp_path)


def _copy(source, tmp_path):
  return pathlib.Path(shutil.copytree(source, tmp_path / 'model'))
