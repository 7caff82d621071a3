"""Where the tokens and the seconds of a run went."""

from collections.abc import Iterator
import contextlib
import dataclasses
import time


@dataclasses.dataclass
class Ledger:
  """Counters that grow while members are scored.

  Attributes:
    members: members scored.
    prompt_tokens: tokens read, padding not counted.
    new_tokens: tokens generated.
    truncated: prompts that were cut from the left to fit, of all splits that
      were encoded.
    programs: programs compiled.
    seconds: wall time by purpose: 'compile', 'score' (device work, waited
      for), 'host' (matching answers).
  """

  members: int = 0
  prompt_tokens: int = 0
  new_tokens: int = 0
  truncated: int = 0
  programs: int = 0
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def time(self, purpose: str) -> Iterator[None]:
    """Adds the wall time of a block to a purpose."""
    start = time.perf_counter()
    try:
      yield
    finally:
      spent = time.perf_counter() - start
      self.seconds[purpose] = self.seconds.get(purpose, 0.0) + spent

  def as_dict(self) -> dict:
    """A copy, for records."""
    return dataclasses.asdict(self)
