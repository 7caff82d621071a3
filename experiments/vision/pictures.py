"""Pictures of one thing, and questions about it."""

from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np

SIZE = 24  # pixels of a side
COLOURS = {
  'red': (220, 40, 40),
  'green': (40, 180, 60),
  'blue': (40, 70, 220),
  'yellow': (230, 210, 40),
  'white': (245, 245, 245),
  'black': (10, 10, 10),
}
SHAPES = ('square', 'disc', 'cross', 'frame')
_LEAST, _MOST = 9, 15  # pixels of a thing


@dataclasses.dataclass(frozen=True)
class Picture:
  """A thing on a noisy ground.

  Attributes:
    pixels: (SIZE, SIZE, 3) u8.
    colour: of COLOURS.
    shape: of SHAPES.
    side: 'left' or 'right', where it stands.
  """

  pixels: np.ndarray
  colour: str
  shape: str
  side: str

  def answer(self, question: str) -> str:
    """Returns the answer to one of QUESTIONS."""
    return QUESTIONS[question].format(**dataclasses.asdict(self))


# By the name of a question, its answer.
QUESTIONS = {
  'side': '{side}',
  'colour': '{colour}',
  'shape': '{shape}',
  'both': '{colour} {shape}',
}


def draw(rng: np.random.Generator) -> Picture:
  """Draws a picture."""
  colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
  size = int(rng.integers(_LEAST, _MOST + 1))
  top = int(rng.integers(0, SIZE - size + 1))
  # Never in the middle, where it would be on neither side.
  free = [x for x in range(SIZE - size + 1) if abs(2 * x + size - SIZE) > 2]
  left = int(rng.choice(free))
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  far = np.maximum(abs(x), abs(y))
  mask = {
    'square': far < size,
    'disc': x**2 + y**2 <= (size / 2) ** 2,
    'cross': np.minimum(abs(x), abs(y)) < size / 6,
    'frame': far > size / 4,
  }[shape]
  pixels = rng.integers(100, 156, (SIZE, SIZE, 3))
  part = pixels[top : top + size, left : left + size]
  shade = rng.integers(-20, 21, part.shape)
  part[mask] = np.clip(np.array(COLOURS[colour]) + shade, 0, 255)[mask]
  side = 'left' if 2 * left + size < SIZE else 'right'
  return Picture(pixels.astype(np.uint8), str(colour), str(shape), side)


def write(folder: pathlib.Path, pictures: Sequence[Picture]) -> list[str]:
  """Writes pictures as PNG files; returns their names."""
  from PIL import Image

  folder.mkdir(parents=True)
  names = [f'{i:04}.png' for i in range(len(pictures))]
  for name, picture in zip(names, pictures, strict=True):
    Image.fromarray(picture.pixels).save(folder / name)
  return names
