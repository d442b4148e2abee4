"""Programs that attack the sandbox or the grader, for ``test_sandbox.py``.

Each is the body of ``f(at)``, where ``at`` has what it may aim at: ``secret`` (a file to read), ``out`` and ``folder`` (to
write), ``port`` and ``unix`` (that listen), ``trainer`` and ``worker`` (process ids), ``src`` (the package). It returns
"ESCAPED" if it got what it wanted; an attack that only fails raises. Where the kernel would allow it, most do no harm: signal 0
asks for the same right as a kill.
"""

from __future__ import annotations

import textwrap

LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"

REACHING = {
    # ------------------------------------------------------------ the network
    "connect": "import socket; socket.create_connection(('127.0.0.1', at['port']), 5)",
    "connect through _socket": "import _socket; s = _socket.socket(2, 1); s.connect(('127.0.0.1', at['port']))",
    "send a datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', at['port']))",
    "listen": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
    "connect to a unix socket": "import socket; socket.socket(1, 1).connect(at['unix'])",
    "make a pair of sockets": "import socket; socket.socketpair()",
    "make a netlink socket": "import socket; socket.socket(16, 3, 0)",
    "make a raw packet socket": "import socket; socket.socket(17, 3, 0)",
    "make a socket by ctypes": LIBC + "assert libc.socket(2, 1, 0) >= 0",
    "make a socket by its number": LIBC + "assert libc.syscall(41, 2, 1, 0) >= 0",
    "set up io_uring": LIBC + "p = ctypes.create_string_buffer(120); assert libc.syscall(425, 4, p) >= 0",
    "ask for a web page": "import urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{at['port']}\", timeout=1)",
    # ------------------------------------------------------------ processes and threads
    "run a command": "import os; assert os.system(f\"echo x > {at['out']}\") == 0",
    "run a process": "import subprocess; subprocess.run(['true'], check=True)",
    "open a pipe to a command": "import os; assert os.popen('echo x').read() == 'x\\n'",
    "fork": "import os\npid = os.fork()\nif pid == 0:\n    os._exit(0)\nos.waitpid(pid, 0)",
    "fork by its number": LIBC + "import os\npid = libc.syscall(57)\nassert pid >= 0\nif pid == 0:\n    os._exit(0)",
    "vfork": LIBC + "assert libc.syscall(58) >= 0",
    "clone": LIBC + "import os\npid = libc.syscall(56, 17, 0, 0, 0, 0)\nassert pid >= 0\nif pid == 0:\n    os._exit(0)",
    "clone3": LIBC + "import os\nargs = ctypes.create_string_buffer(88); args[32] = 17\n"
    "pid = libc.syscall(435, args, 88)\nassert pid >= 0\nif pid == 0:\n    os._exit(0)",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "execute": "import os; os.execv('/bin/true', ['true'])",
    "start a process of multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join()",
    "start a thread": "import threading; t = threading.Thread(target=print); t.start(); t.join()",
    "start a thread by _thread": "import _thread; _thread.start_new_thread(print, ())",
    "begin a session": "import os; os.setsid()",
    "begin a process group": "import os; os.setpgid(0, 0)",
    "outlive the deadline as a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        time.sleep(30)\n    os._exit(0)",
    "open a terminal": "import os; os.openpty()",
    "fork again and again": "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        while True: pass",
    # ------------------------------------------------------------ signals and other processes
    "signal the trainer": "import os; os.kill(at['trainer'], 0)",
    "kill the worker": "import os; os.kill(at['worker'], 9)",
    "kill the worker by ctypes": LIBC + "assert libc.kill(at['worker'], 9) == 0",
    "signal everything": "import os; os.kill(-1, 0)",
    "kill the process group": "import os; os.killpg(0, 9)",
    "queue a signal for the trainer": LIBC + "assert libc.sigqueue(at['trainer'], 0, 0) == 0",
    "send a signal through a pidfd": "import os, signal; signal.pidfd_send_signal(os.pidfd_open(at['worker']), 9)",
    "ask who the parent is": "import os; assert os.getppid() > 0",
    "ignore the deadline": "import signal; signal.signal(signal.SIGPROF, signal.SIG_IGN)",
    "handle the deadline": "import signal; signal.signal(signal.SIGPROF, lambda *_: None)",
    "block the deadline": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})",
    "cancel the deadline": "import signal; signal.setitimer(signal.ITIMER_PROF, 0)",
    "raise the limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "raise the limits of another": "import resource; resource.prlimit(at['trainer'], resource.RLIMIT_CPU, (1, 1))",
    "trace the trainer": LIBC + "assert libc.ptrace(16, at['trainer'], 0, 0) == 0",
    "trace the worker": LIBC + "assert libc.ptrace(0x4206, at['worker'], 0, 0) == 0",
    "read another's memory": LIBC + "b = ctypes.create_string_buffer(64); io = (ctypes.c_ulong * 2)(ctypes.addressof(b), 8)\n"
    "assert libc.process_vm_readv(at['worker'], io, 1, io, 1, 0) > 0",
    "write another's memory": LIBC + "b = ctypes.create_string_buffer(64); io = (ctypes.c_ulong * 2)(ctypes.addressof(b), 8)\n"
    "assert libc.process_vm_writev(at['worker'], io, 1, io, 1, 0) > 0",
    "read another's memory through proc": "open(f\"/proc/{at['worker']}/mem\", 'rb')",
    "lower the trainer's priority": "import os; os.setpriority(os.PRIO_PROCESS, at['trainer'], 19)",
    # ------------------------------------------------------------ files
    "read a file": "assert open(at['secret']).read()",
    "read a file by os.open": "import os; os.read(os.open(at['secret'], 0), 10)",
    "read a file by ctypes": LIBC + "libc.fopen.restype = ctypes.c_void_p; assert libc.fopen(at['secret'].encode(), b'r')",
    "read a file by openat2": LIBC + "assert libc.syscall(437, -100, at['secret'].encode(), bytes(24), 24) >= 0",
    "read a file by creat": LIBC + "assert libc.syscall(85, at['out'].encode(), 0o600) >= 0",
    "read an open file": "import os\nfound = 0\nfor fd in range(1024):\n    try:\n        os.lseek(fd, 0, 0); found += fd > 2\n"
    "    except OSError: pass\nassert found",
    "read the environment of init": "assert open('/proc/1/environ', 'rb').read()",
    "read its own environment": "assert open('/proc/self/environ', 'rb').read() is not None",
    "read its own memory": "open('/proc/self/mem', 'rb')",
    "list a folder": "import os; assert os.listdir('/')",
    "ask about a file": "import os; os.stat(at['secret'])",
    "ask whether a file is there": "import os; assert os.access(at['secret'], os.R_OK)",
    "write a file": "open(at['out'], 'w').write('x')",
    "write over a file": "open(at['secret'], 'w').write('x')",
    "append to a file by pathlib": "import pathlib; pathlib.Path(at['out']).write_text('x')",
    "make a temporary file": "import tempfile; tempfile.TemporaryFile()",
    "make a symbolic link": "import os; os.symlink('/', at['out'])",
    "make a hard link": "import os; os.link(at['secret'], at['out'])",
    "rename a file": "import os; os.rename(at['secret'], at['out'])",
    "delete a file": "import os; os.remove(at['secret'])",
    "truncate a file": "import os; os.truncate(at['secret'], 0)",
    "change a file's mode": "import os; os.chmod(at['secret'], 0o777)",
    "change a file's owner": "import os; os.chown(at['secret'], -1, -1)",
    "change a file's time": "import os; os.utime(at['secret'], (1, 1))",
    "set an attribute": "import os; os.setxattr(at['secret'], 'user.x', b'x')",
    "make a folder": "import os; os.mkdir(at['out'])",
    "make a device": "import os; os.mknod(at['out'], 0o020666, os.makedev(1, 5))",
    "make a named pipe": "import os; os.mkfifo(at['out'])",
    "make a file in memory": "import os; os.memfd_create('x')",
    "change the folder": "import os; os.chdir('/')",
    "change the root": "import os; os.chroot('/')",
    "fill the disk": "f = open(at['out'], 'wb')\nfor _ in range(16):\n    f.write(bytes(1 << 20))",
    "import the task": "import sys; sys.path.insert(0, at['src']); import twofold.tasks.items",
    "load a library": "import ctypes; ctypes.CDLL('libutil.so.1')",
    "watch files": LIBC + "assert libc.inotify_init() >= 0",
    # ------------------------------------------------------------ the kernel
    "mount": LIBC + "assert libc.mount(b'none', at['folder'].encode(), b'tmpfs', 0, b'') == 0",
    "make a namespace": LIBC + "assert libc.unshare(0x10000000) == 0",
    "enter a namespace": LIBC + "assert libc.setns(0, 0) == 0",
    "become root": "import os; os.setuid(0)",
    "become another user": "import os; os.setresuid(1, 1, 1)",
    "set an option of the process": LIBC + "assert libc.prctl(15, b'x', 0, 0, 0) == 0",
    "install another filter": LIBC + "assert libc.syscall(317, 0, 0, 0) == 0",
    "load a BPF program": LIBC + "assert libc.syscall(321, 0, bytes(72), 72) >= 0",
    "handle page faults": LIBC + "assert libc.syscall(323, 1) >= 0",
    "watch performance": LIBC + "assert libc.syscall(298, bytes(120), 0, -1, -1, 0) >= 0",
    "use a keyring": LIBC + "assert libc.syscall(250, 0, -3, 1) >= 0",
    "map shared memory": LIBC + "assert libc.shmget(0, 4096, 0o1600) >= 0",
    "open a message queue": LIBC + "assert libc.syscall(240, b'x', 0o102, 0o600, 0) >= 0",
    "make an event fd": LIBC + "assert libc.eventfd(0, 0) >= 0",
    "make a pipe": "import os; os.pipe()",
    "duplicate a file descriptor": "import os; os.dup(1)",
    "ask for the host's name": "import os; assert os.uname().nodename",
    "pin itself to a processor": "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))",
    "take a page from the machine": LIBC + "assert libc.madvise(-4096, 0, 101) == 0",
    "wait": "import time; time.sleep(0.01)",
    "wait for a file descriptor": "import select; select.select([], [], [], 0.01)",
}  # fmt: skip
"""What would change something outside of the program, or let it see something there."""

DANGEROUS = {
    "fork again and again", "kill the worker", "kill the worker by ctypes", "kill the process group",
    "send a signal through a pidfd", "raise the limits of another", "trace the trainer", "trace the worker",
    "lower the trainer's priority", "outlive the deadline as a daemon", "execute", "vfork", "begin a session",
    "install another filter",
}  # fmt: skip
"""Not run without the filter, where they would do what they say."""
MAY_FAIL = {
    "ask for a web page", "become another user", "become root", "change the root", "enter a namespace", "handle page faults",
    "load a BPF program", "make a device", "make a namespace", "make a raw packet socket", "mount", "open a message queue",
    "read an open file", "read another's memory", "read another's memory through proc", "read the environment of init",
    "set an attribute", "set up io_uring", "take a page from the machine", "use a keyring", "watch performance",
    "write another's memory",
}  # fmt: skip
"""May fail without the filter too: for want of rights, by the rules of a container, or because nothing is there."""

FORGING = {
    "exit at the top": "TOP import sys; sys.exit(0)",
    "exit in the function": "import sys; sys.exit(0)",
    "end the process": "import os; os._exit(0)",
    "end the process at the top": "TOP import os; os._exit(0)",
    "equal to everything": "class Equal:\n    def __eq__(self, other): return True\n    __hash__ = None\nreturn Equal()",
    "a text equal to everything": "class E(str):\n    def __eq__(self, other): return True\n    __hash__ = None\nreturn E('x')",
    "a list equal to everything": "class E(list):\n    def __eq__(self, other): return True\n    __hash__ = None\nreturn E([1])",
    "a number equal to everything": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = None\nreturn E(1)",
    "print a result": "print('[[\"WANTED\"]]'); return None",
    "write a result": "import os; os.write(3, b'[[true]]'); os._exit(0)",
    "write results to every descriptor": "import os\nfor fd in range(64):\n    try: os.write(fd, b'+[[true]]')\n"
    "    except OSError: pass\nos._exit(0)",
    "say that the sandbox failed": "import os; os.write(3, b'!broken'); os._exit(1)",
    "write no JSON": "import os; os.write(3, b'\\xff\\x00{'); os._exit(0)",
    "write two results": "import os; os.write(3, b'[[1]]')",
    "write nested lists": "import os; os.write(3, b'[' * 100_000); os._exit(0)",
    "return nested lists": "x = []\nfor _ in range(100_000): x = [x]\nreturn x",
    "write a number of many digits": "import os; os.write(3, b'[[' + b'9' * 100_000 + b']]'); os._exit(0)",
    "return a number of many digits": "return 10 ** 5000",
    "return no number": "return float('nan')",
    "return infinity": "return float('inf')",
    "return a set": "return {1}",
    "return a generator": "yield 1",
    "return bytes": "return b'x'",
    "return itself": "x = []; x.append(x); return x",
    "look through the frames": "import sys\nfound, frame = [], sys._getframe()\nwhile frame:\n"
    "    found += [repr(v)[:2000] for v in frame.f_locals.values() if v is not at]; frame = frame.f_back\n"
    "hit = [w for text in found for w in text.split(\"'\") if w.startswith('WANTED-')]\nreturn hit[0]",
    "look through the garbage collector": "import gc\nfor o in gc.get_objects():\n    if isinstance(o, (dict, list, tuple)):\n"
    "        for v in (o.values() if isinstance(o, dict) else o):\n"
    "            if isinstance(v, str) and v.startswith('WANTED-'): return v",
    "look through the main module": "import sys\nfor v in vars(sys.modules['__main__']).values():\n"
    "    if 'WANTED-' in repr(v): return v",
    "look through the memory": "import ctypes\nat = id(object())\nfor a in range(at - (1 << 18), at + (1 << 18), 8):\n"
    "    if ctypes.string_at(a, 7) == b'WANT' + b'ED-': return ctypes.string_at(a, 23).decode()",
    "replace the encoder": "import json; json.dumps = lambda x: '[true]'; return None",
    "replace builtins": "import builtins\nbuiltins.len = lambda x: 0\nbuiltins.list = str\nbuiltins.BaseException = int\nreturn 1",
    "replace the harness": "import sys; m = sys.modules['__main__']; m.outputs = m.json = None; return True",
    "raise": "raise ValueError",
    "raise what is no Exception": "raise KeyboardInterrupt",
    "raise an error that raises": "class E(BaseException):\n    def __str__(self): raise self\nraise E",
    "return nothing": "return None",
    "return the name of the label": "return 'correct'",
    "shadow the function": "TOP f = None",
    "no function": "TOP pass",
    "no Python": "TOP def (",
    "a null character": "TOP x = '\0'",
    "a call that needs another argument": "TOP def f(a, b): return 1",
}  # fmt: skip
"""What would earn a reward without the right value, or make the grader fail."""

EXHAUSTING = {
    "loop": "while True: pass",
    "loop at the top": "TOP while True: pass",
    "loop and swallow what is raised": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "loop in a finaliser": "class Last:\n    def __del__(self):\n        while True: pass\nLast()",
    "loop in a regular expression": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    "compute a large power": "9 ** 9 ** 9",
    "sum without end": "import itertools; sum(itertools.count())",
    "fill the memory at once": "bytearray(1 << 40)",
    "fill the memory by and by": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "fill the memory with lists": "x = [0]\nwhile True: x += x",
    "map much memory": "import ctypes; libc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\nn = 0\n"
    "while libc.mmap(0, ctypes.c_ulong(1 << 26), 3, 0x22, -1, 0) != 2 ** 64 - 1 and n < 64: n += 1\n"
    "return 'ESCAPED' if n >= 64 else 1",
    "recurse": "import sys; sys.setrecursionlimit(1 << 30)\ndef g(): return g()\ng()",
    "recurse in C": "import sys; sys.setrecursionlimit(1 << 30)\nx = ()\nfor _ in range(1_000_000): x = (x,)\nrepr(x)",
    "lock itself": "import _thread; l = _thread.allocate_lock(); l.acquire(); l.acquire()",
    "read what never comes": "import sys; sys.stdin.read(); input()",
    "print without end": "while True: print('x' * 1_000_000)",
    "return much": "return 'x' * (1 << 26)",
    "write without end": "import os\nwhile True: os.write(3, bytes(1 << 16))",
    "crash": "import ctypes; ctypes.string_at(0)",
    "crash by bytecode": "c = f.__code__.replace(co_code=bytes([100, 255] * 4), co_consts=())\nexec(c)",
    "abort": "import os; os.abort()",
    "kill itself": "import os; os.kill(os.getpid(), 9)",
    "call the kernel by another ABI": "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
    "m.write(bytes.fromhex('b814000000cd80c3'))\n"
    "address = ctypes.addressof(ctypes.c_char.from_buffer(m))\nreturn 'ESCAPED' if ctypes.CFUNCTYPE(ctypes.c_int)(address)() else 1",
    "call the kernel by x32": LIBC + "return 'ESCAPED' if libc.syscall(0x40000000 + 39) >= 0 else 1",
    "a long program": "TOP x = '" + "x" * 30_000 + "'",
    "a deep program": "TOP x = " + "-" * 9_000 + "1",
    "brackets": "TOP x = " + "(" * 9_000 + ")" * 9_000,
}  # fmt: skip
"""What would take all of a machine's time or memory, or end processes."""


def program(body: str, after: str = "") -> str:
    """Return an attack as a program: the function, or, after "TOP ", what stands before one."""
    if body.startswith("TOP "):
        return f"{body[4:]}\n\ndef g(at): pass\n" if " f" in body else f"{body[4:]}\n"
    return f"def f(at):\n{textwrap.indent(body, '    ')}\n{textwrap.indent(after, '    ')}\n"


REACHING = {name: program(body, "return 'ESCAPED'") for name, body in REACHING.items()}
FORGING = {name: program(body) for name, body in FORGING.items()}
EXHAUSTING = {name: program(body) for name, body in EXHAUSTING.items()}
