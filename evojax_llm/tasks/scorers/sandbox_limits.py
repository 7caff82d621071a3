"""What a process gives up before it runs foreign code (Linux).

In this order: namespaces of its own (network, IPC, host name, processes); where
it is root, its user; all capabilities; reading outside of Python's and the
system's libraries (landlock); memory, processor time and files (setrlimit); all
system calls but those of `_CALLS` (seccomp). Nothing of it can be taken back.
"""

import ctypes
import errno
import os
import pathlib
import platform
import resource
import stat
import struct
import sys

# What it takes to calculate, to read a module and to end: the number on x86_64
# and on aarch64, None where there is no such call. All others fail with EPERM,
# x32's numbers for these calls among them.
# fmt: off
_CALLS = {
  'access': (21, None), 'brk': (12, 214), 'clock_getres': (229, 114),
  'clock_gettime': (228, 113), 'clock_nanosleep': (230, 115), 'close': (3, 57),
  'exit': (60, 93), 'exit_group': (231, 94), 'faccessat': (269, 48),
  'faccessat2': (439, 439), 'fstat': (5, 80), 'futex': (202, 98),
  'getcwd': (79, 17), 'getdents64': (217, 61), 'getegid': (108, 177),
  'geteuid': (107, 175), 'getgid': (104, 176), 'getpid': (39, 172),
  'getppid': (110, 173), 'getrandom': (318, 278), 'getrlimit': (97, 163),
  'getrusage': (98, 165), 'gettid': (186, 178), 'gettimeofday': (96, 169),
  'getuid': (102, 174), 'lseek': (8, 62), 'lstat': (6, None),
  'madvise': (28, 233), 'mmap': (9, 222), 'mprotect': (10, 226),
  'mremap': (25, 216), 'munmap': (11, 215), 'nanosleep': (35, 101),
  'newfstatat': (262, 79), 'pread64': (17, 67), 'read': (0, 63),
  'readlink': (89, None), 'readlinkat': (267, 78), 'readv': (19, 65),
  'restart_syscall': (219, 128), 'rseq': (334, 293), 'rt_sigaction': (13, 134),
  'rt_sigprocmask': (14, 135), 'rt_sigreturn': (15, 139),
  'sched_getaffinity': (204, 123), 'sched_yield': (24, 124),
  'set_robust_list': (273, 99), 'sigaltstack': (131, 132), 'stat': (4, None),
  'statx': (332, 291), 'sysinfo': (99, 179), 'time': (201, None),
  'times': (100, 153), 'uname': (63, 160), 'wait4': (61, 260), 'write': (1, 64),
  'writev': (20, 66),
}
# fmt: on
_OPEN, _OPENAT, _FCNTL, _PRLIMIT = (2, None), (257, 56), (72, 25), (302, 261)
_MACHINES = {'x86_64': (0, 0xC000003E), 'aarch64': (1, 0xC00000B7)}

# Flags that open for reading only, and what of fcntl tells but changes nothing.
_READING = (
  os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
  if sys.platform == 'linux'
  else 0
)
_F_GETFD, _F_SETFD, _F_GETFL = 1, 2, 3

# Of linux/seccomp.h, linux/bpf_common.h, linux/prctl.h and linux/sched.h.
_LOAD, _EQUAL, _BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38
_NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
  0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_LANDLOCK = (444, 445, 446)  # create, add rule, restrict: on all machines
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_NOBODY = 65534


def _libc():
  return ctypes.CDLL(None, use_errno=True)


def _call(function, *arguments):
  """Calls a function of libc, raises OSError where it fails."""
  result = function(
    *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
  )
  if result < 0:
    code = ctypes.get_errno()
    raise OSError(code, f'{function.__name__}: {os.strerror(code)}')
  return result


def _machine():
  machine = _MACHINES.get(platform.machine())
  if sys.platform != 'linux' or machine is None:
    raise OSError(f'no filter for {sys.platform} on {platform.machine()}')
  return machine


def isolate() -> list[str]:
  """Enters namespaces of its own; its children are in them, too.

  Returns:
    What the kernel does not grant, for a warning.

  Raises:
    OSError: there are no limits for this machine.
  """
  _machine()
  flags = _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
  if os.geteuid():  # A user of its own gives the right to the others.
    flags |= _NEW_USER
  try:
    _call(_libc().unshare, flags)
  except OSError:
    return ['namespaces of its own']
  return []


def keep_readable() -> None:
  """Keeps modules within reach of the user that root becomes.

  Python may live in a folder that others cannot enter, such as root's home:
  a folder that is open, or the current one, is reached without its path.
  """
  if os.geteuid():
    return
  standard = os.path.dirname(os.__file__)
  os.chdir(standard)
  paths = []
  for path in filter(os.path.isdir, sys.path):
    if pathlib.Path(path).is_relative_to(standard):
      paths.append(path.replace(standard, '/proc/self/cwd', 1))
    else:
      paths.append(f'/proc/self/fd/{os.open(path, os.O_PATH)}')
  sys.path[:] = paths


def seal(megabytes: int, seconds: float, traced: bool = False) -> list[str]:
  """Gives up everything but what calculating needs.

  Args:
    megabytes: address space to keep.
    seconds: processor time to keep.
    traced: whether other processes of its user may look into it, and so it
      itself through /proc/self/fd.

  Returns:
    What the kernel does not grant, for a warning.

  Raises:
    OSError: a limit without which nothing may be run cannot be set.
  """
  machine, libc, missing = _machine(), _libc(), []
  rules = [os.open(path, os.O_PATH) for path in _readable()]
  if not os.geteuid():
    try:
      os.setgroups([])
      os.setresgid(_NOBODY, _NOBODY, _NOBODY)
      os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except OSError:
      missing.append('another user than root')
  for option, value in (
    (_NO_NEW_PRIVS, 1),
    (_SET_DUMPABLE, int(traced)),
    (_PDEATHSIG, 9),  # It ends with the process that made it.
  ):
    _call(libc.prctl, option, value, 0, 0, 0)
  if not _restrict_reading(libc, rules):
    missing.append('landlock')
  for rule in rules:
    os.close(rule)
  header = struct.pack('Ii', 0x20080522, 0)
  _call(libc.capset, header, bytes(24))
  for limit, value in (
    (resource.RLIMIT_AS, megabytes << 20),
    (resource.RLIMIT_CPU, int(seconds) + 1),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NPROC, 0),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_MSGQUEUE, 0),
  ):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
  _filter_calls(libc, *machine)
  return missing


def _readable():
  paths = {
    *(path for path in sys.path if path),
    os.path.join(sys.base_prefix, 'lib'),
    *('/lib', '/lib64', '/usr/lib', '/usr/lib64', '/usr/local/lib'),
    '/etc/ld.so.cache',
  }
  return [path for path in paths if os.path.exists(path)]


def _restrict_reading(libc, rules):
  """Forbids all that landlock knows but reading below `rules`."""
  create, add, restrict = _LANDLOCK
  version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
  if version < 1:
    return False
  files = (1 << 13) - 1
  for since, right in ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15)):
    files |= right if version >= since else 0
  # Files; from 4 on TCP; from 6 on abstract sockets and signals.
  rights = struct.pack('QQQ', files, 3, 3)
  rights = rights[: 8 if version < 4 else 16 if version < 6 else 24]
  rule_set = _call(libc.syscall, create, rights, len(rights), 0)
  for rule in rules:
    folder = stat.S_ISDIR(os.fstat(rule).st_mode)
    allowed = _READ_FILE | (_READ_DIR if folder else 0)
    _call(libc.syscall, add, rule_set, 1, struct.pack('=Qi', allowed, rule), 0)
  _call(libc.syscall, restrict, rule_set, 0)
  os.close(rule_set)
  return True


def _argument_is(index, values, high=False):
  """Goes on where an argument, 32 bits of it, is one of values."""
  lines = [(_LOAD, 0, 0, 16 + 8 * index + 4 * high)]
  for after, value in zip(range(len(values))[::-1], values, strict=True):
    lines.append((_EQUAL, after + 1, 0, value))
  return [*lines, (_RETURN, 0, 0, _REFUSE)]


def _no_other_flags(index):
  return [
    (_LOAD, 0, 0, 16 + 8 * index),
    (_BITS, 0, 1, ~_READING & 0xFFFFFFFF),
    (_RETURN, 0, 0, _REFUSE),
  ]


def _program(column, audit):
  """The filter: (code, jump if true, jump if false, value) an instruction."""
  lines = [
    (_LOAD, 0, 0, 4),  # the machine
    (_EQUAL, 1, 0, audit),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, 0),  # the number of the call
  ]
  # Its own limits may be read, so there is no new value.
  own_limits = _argument_is(0, (0,)) + _argument_is(2, (0,))
  own_limits += _argument_is(2, (0,), high=True)
  for numbers, body in (
    *((numbers, []) for numbers in _CALLS.values()),
    (_OPEN, _no_other_flags(1)),
    (_OPENAT, _no_other_flags(2)),
    (_FCNTL, _argument_is(1, (_F_GETFD, _F_SETFD, _F_GETFL))),
    (_PRLIMIT, own_limits),
  ):
    if numbers[column] is not None:
      body = [*body, (_RETURN, 0, 0, _ALLOW)]
      lines += [(_EQUAL, 0, len(body), numbers[column]), *body]
  return [*lines, (_RETURN, 0, 0, _REFUSE)]


def _filter_calls(libc, column, audit):
  lines = _program(column, audit)
  code = b''.join(struct.pack('HBBI', *line) for line in lines)
  buffer = ctypes.create_string_buffer(code, len(code))
  header = struct.pack('HL', len(lines), ctypes.addressof(buffer))
  _call(libc.prctl, _SET_SECCOMP, 2, header, 0, 0)
