"""The process in which foreign code runs.

  python -I sandbox_child.py MEGABYTES SECONDS

Run as a script: it imports nothing of this package, takes away from itself what
foreign code must not have, and runs the code. Standard input has a word on its
first line and then the code. The word is written to standard output where the
code came to its end without an error; code that only ends the process does not
know it. Exits with 3 where the limits cannot be set, and nothing was run.

The limits are those of setrlimit (memory, processor time, size of files) and a
seccomp filter of the kernel: no sockets, no new processes, no signals to
others, no writing, renaming or removing of files.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

# Numbers of the system calls that are refused, by machine; `open` and `openat`
# are refused for writing only, `prlimit64` where it sets a limit: root could
# lift its own.
_CALLS = {
  'x86_64': {
    'audit': 0xC000003E,
    'open': (2, 1),
    'openat': (257, 2),
    'prlimit': 302,
    'refused': (
      41, 56, 57, 58, 59, 62, 76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92,
      93, 94, 101, 133, 160, 165, 200, 234, 258, 259, 260, 263, 264, 265, 266,
      268, 272, 308, 310, 311, 316, 317, 321, 322, 424, 425, 434, 435, 437,
    ),
  },
  'aarch64': {
    'audit': 0xC00000B7,
    'open': None,
    'openat': (56, 2),
    'prlimit': 261,
    'refused': (
      33, 34, 35, 36, 37, 38, 40, 45, 46, 52, 53, 54, 55, 97, 117, 129, 130,
      131, 164, 198, 220, 221, 268, 270, 271, 276, 277, 280, 281, 424, 425, 434,
      435, 437,
    ),
  },
}  # fmt: skip
_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000
_X32 = 0x40000000
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2


def _program(calls):
  """The filter: (code, jump if true, jump if false, value) an instruction."""
  lines = [
    (_LOAD, 0, 0, 4),  # the machine
    (_EQUAL, 1, 0, calls['audit']),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, 0),  # the number of the call
    (_BITS, 0, 1, _X32),  # the same calls by other numbers
    (_RETURN, 0, 0, _KILL),
  ]
  for number in calls['refused']:
    lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
  for call in (calls['open'], calls['openat']):
    if call is None:
      continue
    number, argument = call
    lines += [
      (_EQUAL, 0, 4, number),
      (_LOAD, 0, 0, 16 + 8 * argument),  # its flags
      (_BITS, 0, 1, writing),
      (_RETURN, 0, 0, _REFUSE),
      (_RETURN, 0, 0, _ALLOW),
    ]
  lines += [
    (_EQUAL, 0, 4, calls['prlimit']),
    (_LOAD, 0, 0, 16 + 8 * 2),  # where the new limit is, or nowhere
    (_EQUAL, 1, 0, 0),
    (_RETURN, 0, 0, _REFUSE),
    (_RETURN, 0, 0, _ALLOW),
  ]
  return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _filter_calls():
  """Installs the filter; there is no way to take it off again."""
  calls = _CALLS.get(platform.machine())
  if not sys.platform.startswith('linux') or calls is None:
    raise OSError(f'no filter for {sys.platform} on {platform.machine()}')
  lines = _program(calls)
  code = b''.join(struct.pack('HBBI', *line) for line in lines)
  buffer = ctypes.create_string_buffer(code, len(code))
  header = struct.pack('HL', len(lines), ctypes.addressof(buffer))
  libc = ctypes.CDLL(None, use_errno=True)
  libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
  program = ctypes.create_string_buffer(header, len(header))
  if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    _SET_SECCOMP, _FILTER, ctypes.addressof(program), 0, 0
  ):
    raise OSError(ctypes.get_errno(), 'seccomp is not there')


def main():
  """Reads the code, takes the limits on, and runs it."""
  megabytes, seconds = int(sys.argv[1]), float(sys.argv[2])
  word, code = sys.stdin.read().split('\n', 1)
  # What the code prints goes nowhere; these two it does not know.
  out, err, null = os.dup(1), os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.dup2(null, 2)
  try:
    for limit, value in (
      (resource.RLIMIT_AS, megabytes << 20),
      (resource.RLIMIT_CPU, int(seconds) + 1),
      (resource.RLIMIT_FSIZE, 1 << 20),
      (resource.RLIMIT_CORE, 0),
    ):
      resource.setrlimit(limit, (value, value))
    _filter_calls()
  except (OSError, ValueError) as error:
    os.write(err, f'the limits cannot be set: {error}'.encode())
    os._exit(3)
  try:
    exec(compile(code, 'answer.py', 'exec'), {'__name__': '__main__'})
  except BaseException as error:
    # Code that leaves by exit() has not been through its tests either.
    os.write(err, f'{type(error).__name__}: {str(error)[:300]}'.encode())
    os._exit(1)
  os.write(out, word.encode())
  os._exit(0)


if __name__ == '__main__':
  main()
