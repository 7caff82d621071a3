"""Counts of tokens, programs and seconds of a run."""

from collections.abc import Iterator
import contextlib
import dataclasses
import time


@dataclasses.dataclass
class Ledger:
  """Counters that grow while members are scored.

  Attributes:
    members: members scored.
    items_saved: items that members were not asked, in a race or as fitness is
      estimated.
    prompt_tokens: tokens read, padding not counted.
    new_tokens: tokens generated.
    gradient_tokens: three times the tokens that gradient steps have read: a
      step back through the model costs two passes forward. What is read without
      one, such as the reference of DPO, counts once.
    truncated: prompts that were cut from the left to fit.
    programs: programs compiled.
    refills: times that prompts were read into slots.
    steps: times that a token was made in every slot.
    slot_steps: slots of all steps, and busy_slot_steps those at work.
    seconds: wall time by purpose: 'compile', 'score' (device work, waited for),
      'host' (scoring answers); and, partly among these, 'prefill' (refills
      times the seconds of one, measured at the first), 'decode' (the rest of
      the device's time) and 'idle' (the device had no call to work on).
  """

  members: int = 0
  items_saved: int = 0
  prompt_tokens: int = 0
  new_tokens: int = 0
  gradient_tokens: int = 0
  truncated: int = 0
  programs: int = 0
  refills: int = 0
  steps: int = 0
  slot_steps: int = 0
  busy_slot_steps: int = 0
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def tokens(self) -> int:
    """Tokens read and generated, those of gradient steps three times."""
    return self.prompt_tokens + self.new_tokens + self.gradient_tokens

  @contextlib.contextmanager
  def time(self, purpose: str) -> Iterator[None]:
    """Adds the wall time of a block to a purpose."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.add(purpose, time.perf_counter() - start)

  def add(self, purpose: str, seconds: float) -> None:
    """Adds wall time to a purpose."""
    self.seconds[purpose] = self.seconds.get(purpose, 0.0) + seconds

  @property
  def occupancy(self) -> float:
    """Share of the slots that worked, NaN where none was there."""
    if not self.slot_steps:
      return float('nan')
    return self.busy_slot_steps / self.slot_steps

  def as_dict(self) -> dict:
    """A copy, for records."""
    return dataclasses.asdict(self)
