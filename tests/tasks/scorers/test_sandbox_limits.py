"""Code that has been sealed can calculate, and nothing else."""

import ctypes
import logging
import os
import platform
import re
import struct

import pytest

from evojax_llm.tasks.scorers import sandbox
from evojax_llm.tasks.scorers import sandbox_limits
from tests.tasks.scorers.judging import ON_LINUX

pytestmark = ON_LINUX

# Each is an expression in the answer's process. `c` calls a function of libc
# or, by the numbers on both machines, of the kernel; OWN is a file of the
# tests', PARENT their process. None does harm where it is not refused.
ATTACKS = """
open(OWN, 'w')
open(OWN, 'a')
open(OWN, 'r+')
open(OWN + '2', 'x')
os.open(OWN, os.O_RDONLY | os.O_TRUNC)
os.open(FOLDER, os.O_RDWR | os.O_TMPFILE)
os.open(OWN, os.O_PATH)
c((437, 437), -100, OWN.encode(), bytes(24), 24)
os.remove(OWN)
os.rename(OWN, OWN + '2')
os.link(OWN, OWN + '2')
os.symlink(OWN, OWN + '2')
os.mkdir(OWN + '2')
os.rmdir(FOLDER)
os.mkfifo(OWN + '2')
os.mknod(OWN + '2', 0o20666, 259)
os.truncate(OWN, 0)
os.chmod(OWN, 0o777)
c((452, 452), -100, OWN.encode(), 0o777, 0)
os.chown(OWN, 1, 1)
os.utime(OWN, (0, 0))
os.setxattr(OWN, 'user.a', b'1')
os.removexattr(OWN, 'user.a')
os.memfd_create('a')
c('name_to_handle_at', -100, OWN.encode(), bytes(136), bytes(8), 0)
c('open_by_handle_at', -100, bytes(136), 2)
os.sendfile(1, 0, None, 1)
os.splice(0, 1, 1)
os.chroot('/')
c('pivot_root', b'/', b'/')
c('mount', b'a', b'/nowhere', b'tmpfs', 0, None)
c('umount2', FOLDER.encode(), 0)
c('unshare', 0x20000)
c('setns', 0, 0)
c('swapoff', OWN.encode())
c('acct', None)
c('inotify_init1', 0)
c('fanotify_init', 0, 0)
os.fork()
os.forkpty()
os.posix_spawn('/bin/true', ['true'], {})
os.execv('/bin/true', ['true'])
c((435, 435), bytes(88), 88)
threading.Thread(target=print).start()
os.kill(PARENT, 0)
os.kill(-1, 0)
os.killpg(0, 0)
c('sigqueue', PARENT, 0, 0)
c((129, 138), PARENT, 0, bytes(128))
c('tgkill', PARENT, PARENT, 0)
c((424, 424), 0, 0, None, 0)
c((434, 434), PARENT, 0)
c('ptrace', 16, PARENT, 0, 0)
c('process_vm_readv', PARENT, None, 0, None, 0, 0)
c('process_vm_writev', PARENT, None, 0, None, 0, 0)
os.setpriority(os.PRIO_PROCESS, PARENT, 0)
os.sched_setaffinity(PARENT, range(os.cpu_count()))
os.sched_setscheduler(PARENT, os.SCHED_OTHER, os.sched_param(0))
resource.prlimit(PARENT, resource.RLIMIT_CORE, (0, 0))
resource.prlimit(PARENT, resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
c('prlimit', 0, 9, 1 << 32, None)
os.setpgid(0, 0)
os.setsid()
fcntl.fcntl(1, fcntl.F_SETOWN, PARENT)
fcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC)
fcntl.flock(1, fcntl.LOCK_EX)
fcntl.ioctl(0, 0x5412, b'a')
signal.setitimer(signal.ITIMER_REAL, 1)
socket.socket()
socket.socket(socket.AF_UNIX)
socket.socketpair()
os.pipe()
os.eventfd(0)
c('shmget', 0, 4096, 0o1666)
c('msgget', 0, 0o1666)
c('semget', 0, 1, 0o1666)
c('mq_open', b'/a', 66, 0o600, None)
c('shm_open', b'/evojax', 66, 0o600)
c((323, 282), 0)
c((425, 425), 1, bytes(120))
c((321, 280), 0, bytes(72), 72)
c((298, 241), bytes(120), 0, -1, -1, 0)
c((250, 219), 0, -3, 0)
c((175, 105), None, 0, b'')
c('sethostname', None, 1)
c('setdomainname', None, 1)
c('clock_settime', 99, bytes(16))
c('adjtimex', bytes(208))
c('klogctl', 10, None, 0)
c('personality', 0x40000)
os.setuid(0)
os.setgid(0)
os.setgroups([0])
c('capset', struct.pack('Ii', 0x20080522, 0), bytes(24))
c('prctl', 4, 1, 0, 0, 0)
c('prctl', 22, 2, None, 0, 0)
c('mlockall', 1)
os.chdir('/')
os.nice(1)
""".strip().splitlines()

# These are refused where the kernel has landlock.
READING = """
open(OWN)
open('/etc/passwd')
open('/etc/shadow')
open('/proc/self/environ')
open(f'/proc/{PARENT}/environ')
open(f'/proc/{PARENT}/maps')
os.listdir(FOLDER)
os.listdir('/proc')
os.listdir(os.path.expanduser('/root'))
""".strip().splitlines()

ATTACKER = """
import ctypes, fcntl, os, platform, resource, signal, socket, struct, threading
libc = ctypes.CDLL(None, use_errno=True)

def c(name, *arguments):
  if isinstance(name, tuple):
    arguments = name[platform.machine() == 'aarch64'], *arguments
    name = 'syscall'
  arguments = [
    ctypes.c_long(a) if isinstance(a, int) else a for a in arguments
  ]
  if getattr(libc, name)(*arguments) < 0:
    raise OSError(ctypes.get_errno(), name)

def attack(source, own, parent):
  names = {'OWN': own, 'PARENT': parent, 'FOLDER': os.path.dirname(own)}
  try:
    eval(source, globals(), names)
  except Exception as error:
    return repr(error)
  return 'done'
"""
REFUSED = re.compile(
  r"PermissionError|itimer_error\(1|.*(not allowed to raise|can't start new)"
)


@pytest.mark.parametrize('attacks', [ATTACKS, READING])
def test_all_but_calculating_is_refused(attacks, tmp_path):
  if attacks is READING and ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
    pytest.skip('the kernel has no landlock')
  own = tmp_path / 'own'
  own.write_text('mine')
  before = own.stat()
  tests = f"""
ends = [(a, attack(a, {str(own)!r}, {os.getpid()})) for a in {attacks!r}]
allowed = [end for end in ends if not re.match({REFUSED.pattern!r}, end[1])]
assert len(ends) == {len(attacks)} and not allowed, allowed
"""
  assert sandbox.run(ATTACKER, tests, 'import re').reason == 'passed'
  after = own.stat()
  for name in ('st_mode', 'st_mtime', 'st_nlink', 'st_uid'):
    assert getattr(before, name) == getattr(after, name)
  assert os.listdir(tmp_path) == ['own'] and own.read_text() == 'mine'


def allows(machine, number, *arguments):
  """What the filter of a machine says of a call: it is run, line by line."""
  column, audit = sandbox_limits._MACHINES[machine]
  arguments = (*arguments, *[0] * 6)[:6]
  call = struct.pack('iIQ6Q', number, audit, 0, *arguments)
  lines, at = sandbox_limits._program(column, audit), 0
  while True:
    code, true, false, value = lines[at]
    if code == sandbox_limits._RETURN:
      return value == sandbox_limits._ALLOW
    if code == sandbox_limits._LOAD:
      (loaded,) = struct.unpack_from('I', call, value)
      at += 1
    else:
      equal = code == sandbox_limits._EQUAL
      at += 1 + (
        true if (loaded == value if equal else loaded & value) else false
      )


@pytest.mark.parametrize(
  ('machine', 'opens', 'limits', 'fcntl', 'forks'),
  [('x86_64', 257, 302, 72, 57), ('aarch64', 56, 261, 25, 220)],
)
def test_the_filter_reads_arguments(machine, opens, limits, fcntl, forks):
  reading = os.O_CLOEXEC | os.O_DIRECTORY
  for right, call in (
    (True, (opens, 0, 0, reading)),
    (False, (opens, 0, 0, os.O_WRONLY)),
    (False, (opens, 0, 0, reading | os.O_CREAT)),
    (True, (limits, 0, 7, 0)),
    (False, (limits, 1, 7, 0)),
    (False, (limits, 0, 7, 1)),
    (False, (limits, 0, 7, 1 << 32)),
    (True, (fcntl, 1, 1)),
    (False, (fcntl, 1, 8)),
    (False, (forks,)),
    (False, (1 << 30 | opens,)),
  ):
    assert allows(machine, *call) == right, call


def test_other_machines_are_refused(monkeypatch):
  monkeypatch.setattr(platform, 'machine', lambda: 'riscv64')
  for step in (sandbox_limits.isolate, lambda: sandbox_limits.seal(512, 1)):
    with pytest.raises(OSError, match='no filter for linux on riscv64'):
      step()
  with pytest.raises(sandbox.SandboxError, match='cannot be run safely'):
    sandbox._outcome([{'refused': 'no filter'}], False, 0)


def test_what_the_kernel_lacks_is_said(caplog):
  with caplog.at_level(logging.WARNING):
    sandbox._outcome([{'missing': ['landlock']}, {'reason': ''}], False, 0)
  assert 'lacks for generated code: landlock' in caplog.text


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='its machine code')
def test_calls_by_another_table_end_the_answer():
  code = """
import ctypes, mmap
def f():
  page = mmap.mmap(-1, 4096, prot=7)
  page.write(bytes.fromhex('b814000000cd80c3'))  # int 0x80: getpid of i386
  address = ctypes.addressof(ctypes.c_char.from_buffer(page))
  return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
"""
  assert sandbox.run(code, 'f()').reason == 'exit code -31'
