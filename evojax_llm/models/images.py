"""Image files, read with Pillow as a vision tower takes them."""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
import pathlib
from typing import Any
import warnings

import numpy as np

from evojax_llm import files

# Those that Pillow reads itself; no other program is started.
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')
_MAX_BYTES = 1 << 28


class ImageError(ValueError):
  """An image file cannot be used."""


@dataclasses.dataclass(frozen=True)
class Image:
  """An image file that has been read once.

  Attributes:
    path: of the file.
    digest: of its bytes; images of one digest are the same.
  """

  path: str
  digest: str

  @classmethod
  def from_file(cls, path: str | os.PathLike) -> 'Image':
    """Reads a file whole; raises ImageError where it is no image."""
    _decoded(path)
    data = pathlib.Path(path).read_bytes()
    return cls(str(path), hashlib.sha256(data).hexdigest()[:32])


def pixels(image: Image, how: Mapping[str, Any]) -> np.ndarray:
  """Returns an image as a tower takes it, (height, width, 3) f32.

  It is what transformers' `Gemma3ImageProcessorPil` makes of it.

  Args:
    image: the file.
    how: fields of a preprocessor_config.json: size, resample, rescale_factor,
      image_mean and image_std.

  Raises:
    ImageError: the file has gone, or is another one by now.
  """
  picture = _decoded(image.path)
  size = how['size']['width'], how['size']['height']
  array = np.asarray(picture.resize(size, how['resample']), np.float32)
  array = array * np.float32(how['rescale_factor'])
  mean, std = (
    np.asarray(how[name], np.float32) for name in ('image_mean', 'image_std')
  )
  return (array - mean) / std


def _decoded(path: str | os.PathLike) -> Any:
  """Returns the Pillow image (RGB, upright) in a file."""
  from PIL import Image as pillow
  from PIL import ImageOps

  files.check_regular(path, ImageError)
  if os.path.getsize(path) > _MAX_BYTES:
    raise ImageError(f'{path}: has more than {_MAX_BYTES} bytes, the most.')
  try:
    with open(path, 'rb') as f:
      files.check_lfs(pathlib.Path(path), f.read(64), ImageError)
    with warnings.catch_warnings():
      # Of an image that would fill the memory.
      warnings.simplefilter('error', pillow.DecompressionBombWarning)
      with pillow.open(path, formats=_FORMATS) as picture:
        return ImageOps.exif_transpose(picture).convert('RGB')
  except ImageError:
    raise
  except Exception as error:  # A damaged file makes Pillow raise anything.
    raise ImageError(
      f'{path}: cannot be read as an image: {error}. Expected a whole '
      f'{", ".join(_FORMATS)} file.'
    ) from error
