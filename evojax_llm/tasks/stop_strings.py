"""Stop strings: where the text of generated tokens ends."""

import bisect
from collections.abc import Callable
from collections.abc import Sequence


def has_stop(text: str, stops: Sequence[str]) -> bool:
  """Returns whether a text contains any of the strings."""
  return any(stop and stop in text for stop in stops)


def cut_ids(
  ids: Sequence[int],
  stops: Sequence[str],
  decode: Callable[[Sequence[int]], str],
) -> tuple[int, ...]:
  """Returns the fewest tokens whose text holds a stop string, or all of them.

  Stop strings and characters may begin and end within tokens, so that only the
  text of all tokens up to one tells. What is kept does not depend on how many
  tokens were made behind it.
  """
  if not has_stop(decode(ids), stops):
    return tuple(ids)
  fewest = bisect.bisect_left(
    range(len(ids)), True, key=lambda n: has_stop(decode(ids[:n]), stops)
  )
  return tuple(ids[:fewest])


def recent(ids: Sequence[int], new: int, stops: Sequence[str]) -> Sequence[int]:
  """Returns the tokens that a stop string ending in the last `new` may touch.

  A token stands for a byte at least, but for special ones, whose text is left
  out; the full text is searched in the end, so that what is missed here only
  ends later.
  """
  longest = max(len(stop.encode()) for stop in stops)
  return ids[-(new + longest + 8) :]
