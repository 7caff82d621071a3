"""A pseudo-terminal, and what a screen would show of what is written to it."""

import contextlib
import fcntl
import os
import re
import select
import struct
import termios
import threading
import time

_PARTS = re.compile(r'\x1b\[[0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]|\x1b')


class Screen:
  """Lines of some width after a stream of text and control codes."""

  def __init__(self, columns: int):
    self.columns, self.lines, self.at = columns, [''], 0

  def feed(self, text: str) -> None:
    """Shows more text."""
    for part in _PARTS.findall(text):
      if part == '\n':
        self.lines.append('')
      elif part == '\r':
        self.at = 0
      elif part == '\x1b[K':
        self.lines[-1] = self.lines[-1][: self.at]
      else:
        assert not part.startswith('\x1b'), f'unknown control code {part!r}'
        if self.at == self.columns:
          self.lines.append('')
          self.at = 0
        line = self.lines[-1].ljust(self.at)
        self.lines[-1] = line[: self.at] + part + line[self.at + 1 :]
        self.at += 1


@contextlib.contextmanager
def terminal(columns: int):
  """A stream that is a terminal, and a function that returns its screen."""
  leader, follower = os.openpty()
  size = struct.pack('HHHH', 24, columns, 0, 0)
  fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
  screen, reading = Screen(columns), threading.Lock()

  def read():
    # Whoever writes to a terminal that is not read waits.
    with contextlib.suppress(OSError):
      while True:
        select.select([leader], [], [])
        with reading:
          screen.feed(os.read(leader, 1 << 16).decode())

  def shown():
    while True:
      with reading:
        if not select.select([leader], [], [], 0)[0]:
          return list(screen.lines)
      time.sleep(0.001)

  thread = threading.Thread(target=read, daemon=True)
  thread.start()
  with os.fdopen(follower, 'w', encoding='ascii') as stream:
    yield stream, shown
  thread.join()
  os.close(leader)
