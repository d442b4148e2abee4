"""The sandbox: what programs can do in it, what attacks gain, and that it refuses to run where it cannot isolate."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attacks
import pytest

from twofold import cli
from twofold.tasks import sandbox
from twofold.tasks.code import judged

ROOT = Path(__file__).parents[1]
WANTED = "WANTED-" + os.urandom(8).hex()
ENV = os.environ | {"PYTHONPATH": str(ROOT / "src")}
WORKER = sandbox.WORKER
HONEST = "def f(at):\n    return sorted(at)[0]\n"

linux = pytest.mark.skipif(sys.platform != "linux", reason="programs are isolated on Linux only")
pytestmark = linux


class Target:
    """What attacks aim at: a secret, a place to write, sockets that listen, the trainer and a worker."""

    def __init__(self, folder: Path) -> None:
        self.secret, self.out = folder / "secret", folder / "out"
        self.folder = folder
        self.tcp, self.unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "unix"))
        self.unix.listen()
        for listening in (self.tcp, self.unix):
            listening.setblocking(False)
        self.reset()

    def reset(self) -> None:
        self.secret.write_text(WANTED)
        for left in self.folder.glob("out*"):
            left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()

    def at(self) -> dict[str, Any]:
        return {
            "secret": str(self.secret), "out": str(self.out), "folder": str(self.folder), "src": str(ROOT / "src"),
            "port": self.tcp.getsockname()[1], "unix": str(self.folder / "unix"),
            "trainer": os.getpid(), "worker": worker().process.pid,
        }  # fmt: skip

    def reached(self) -> list[str]:
        """Return what happened outside of the program."""
        found = []
        if self.secret.read_text() != WANTED or self.secret.stat().st_mode & 0o777 == 0o777:
            found.append("the secret changed")
        if os.path.lexists(self.out):
            found.append("something was written")
        for listening in (self.tcp, self.unix):
            try:
                listening.accept()[0].close()
                found.append("a connection came")
            except BlockingIOError:
                pass
        return found


def worker() -> sandbox._Process:
    """Return the idle worker that is asked next."""
    idle = sandbox._idle(os.getpid())
    idle.queue[0] = idle.queue[0] or sandbox._Process()
    return idle.queue[0]


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let one process run all programs of a test, so that it is the one which an attack would have harmed."""
    sandbox._idle.cache_clear()
    monkeypatch.setattr(sandbox.grading, "WORKERS", 1)
    worker()
    yield
    worker().end()
    sandbox._idle.cache_clear()


@pytest.fixture
def target(tmp_path: Path, one_worker: None) -> Iterator[Target]:
    found = Target(tmp_path)
    yield found
    found.tcp.close()
    found.unix.close()


def children(pid: int) -> list[int]:
    """Return the processes whose parent is ``pid``, by /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def test_there_are_enough_attacks() -> None:
    assert len(attacks.REACHING) >= 90
    assert len(attacks.REACHING) + len(attacks.FORGING) + len(attacks.EXHAUSTING) >= 150


def test_no_attack_reaches_anything_outside(target: Target) -> None:
    before = worker().process.pid
    escaped = {}
    for name, program in attacks.REACHING.items():
        found = sandbox.call(program, "f", [[target.at()]])
        if found not in ([[]], []) or target.reached():
            escaped[name] = [found, target.reached()]
            target.reset()
    assert escaped == {}
    assert worker().process.pid == before and children(before) == []
    assert sandbox.call(HONEST, "f", [[[3, 1, 2]]]) == [[1]]


def test_without_the_filter_the_same_attacks_succeed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack that cannot succeed anywhere shows nothing."""
    weaken(monkeypatch, tmp_path, f"{NO_FILTER}\n{NO_NAMESPACES}")
    tried = attacks.REACHING.keys() - attacks.DANGEROUS - attacks.MAY_FAIL
    failed = []
    for name in sorted(tried):
        if sandbox.call(attacks.REACHING[name], "f", [[target.at()]]) != [["ESCAPED"]]:
            failed.append(name)
        target.reset()
    assert failed == []
    assert len(tried) >= 60


@pytest.mark.parametrize("value", [WANTED, "", []], ids=["a text", "an empty text", "an empty list"])
def test_no_forged_result_earns_anything(one_worker: None, value: Any) -> None:
    labels = {name: judged(program, "f", [[[{}], value]]) for name, program in attacks.FORGING.items()}
    assert {name: label for name, label in labels.items() if label != "wrong"} == {}
    assert judged(HONEST, "f", [[[[3, 1]], 1]]) == "correct"


@pytest.mark.parametrize(
    "name", [name for name in attacks.FORGING if re.match("exit|end|raise|no function|shadow", name)]
)
def test_a_call_without_a_value_is_not_a_call_that_returns_none(name: str) -> None:
    assert judged(attacks.FORGING[name], "f", [[[{}], None]]) == "wrong"
    assert judged("def f(at): pass", "f", [[[{}], None]]) == "correct"


def test_one_right_value_of_two_is_not_enough() -> None:
    program = "def f(x):\n    if x == 2: raise ValueError\n    return x\n"
    assert judged(program, "f", [[[1], 1], [[3], 3]]) == "correct"
    assert judged(program, "f", [[[1], 1], [[2], 2]]) == "wrong"
    assert sandbox.call(program, "f", [[1], [2], [3]]) == [[1], [], [3]]


def test_no_program_takes_all_of_the_machine(one_worker: None) -> None:
    before = worker().process.pid
    ended = {}
    for name, program in attacks.EXHAUSTING.items():
        try:
            ended[name] = sandbox.call(program, "f", [[{}]], seconds=0.2)
        except TimeoutError:
            ended[name] = "timeout"
    assert {name for name, found in ended.items() if found not in ([], [[]], [[None]], [[1]], "timeout")} == set()
    assert {name for name in ended if "loop" in name.split()} <= {
        name for name, found in ended.items() if found == "timeout"
    }
    assert worker().process.pid == before and children(before) == []
    assert judged(HONEST, "f", [[[[3, 1]], 1]]) == "correct"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
def test_every_system_call_but_a_few_is_refused() -> None:
    """By number, those that do not exist yet included: arguments are -1, with which no allowed call does anything."""
    program = attacks.LIBC + (
        "def f(skip):\n    def got(n):\n        ctypes.set_errno(0)\n"
        "        return libc.syscall(n, -1, -1, -1, -1, -1, -1) != -1 or ctypes.get_errno() != 1\n"
        "    return [n for n in range(1024) if n not in skip and got(n)]\n"
    )
    memory = {"mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25}
    clocks = {"gettimeofday": 96, "time": 201, "clock_gettime": 228, "clock_getres": 229}
    ends = {"exit": 60, "exit_group": 231}
    probes = [335, 336]  # uretprobe and uprobe: the kernel lets them pass, and answers its own probes only
    answered = sandbox.call(program, "f", [[[*ends.values(), *probes]]])[0][0]
    harmless = {"write": 1, "getrandom": 318} | memory | clocks
    assert {1, 9} <= set(answered) <= set(harmless.values())
    assert sandbox_worker().CALLS["x86_64"][1] == harmless | ends


def test_programs_leave_nothing_for_later_ones(one_worker: None) -> None:
    first = "import math, json, builtins\ndef f(x):\n    math.sqrt = json.dumps = builtins.len = None\n    raise ValueError(x)\n"
    second = "import math\ndef f(x): return [math.sqrt(4), len(x)]\n"
    assert sandbox.call(first, "f", [[WANTED]]) == [[]]
    assert sandbox.call(second, "f", [["ab"]]) == [[[2.0, 2]]]


def test_calls_do_not_share_their_arguments_with_one_another() -> None:
    program = "def f(x):\n    x.append(1)\n    return x\n"
    same: list[int] = []
    assert sandbox.call(program, "f", [[same], [same]]) == [[[1]], [[1]]]


def test_programs_have_the_modules_that_are_named_and_draw_alike(one_worker: None) -> None:
    for module in sandbox_worker().MODULES.split():
        assert sandbox.call(f"import {module}\ndef f(): return 1", "f", [[]]) == [[1]], module
    draws = "import random\ndef f(): return [random.random(), *{'a', 'b', 'c', 'd'}]"
    first = sandbox.call(draws, "f", [[]])
    worker().end()
    sandbox._idle(os.getpid()).queue[0] = None
    assert sandbox.call(draws, "f", [[]]) == first != [[]]


def test_many_threads_get_their_own_results() -> None:
    program = "def f(x): return x * x"
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: sandbox.call(program, "f", [[n]]), range(64)))
    assert found == [[[n * n]] for n in range(64)]


def test_a_worker_that_is_killed_is_replaced_and_its_program_is_an_error(one_worker: None) -> None:
    worker().process.kill()
    assert judged(HONEST, "f", [[[[3, 1]], 1]]) == "error"
    assert judged(HONEST, "f", [[[[3, 1]], 1]]) == "correct"


def test_a_fork_of_the_trainer_has_workers_of_its_own() -> None:
    assert sandbox.call("def f(): return 1", "f", [[]]) == [[1]]
    pid = os.fork()
    if pid == 0:
        os._exit(sandbox.call("def f(): return 2", "f", [[]]) != [[2]])
    assert os.waitpid(pid, 0)[1] == 0
    assert sandbox.call("def f(): return 3", "f", [[]]) == [[3]]


def test_nothing_is_left_when_the_trainer_is_killed() -> None:
    code = (
        "import os\nfrom twofold.tasks import sandbox\nsandbox.call('def f(): pass', 'f', [[]])\n"
        "print(*[p.process.pid for p in sandbox._idle(os.getpid()).queue if p], flush=True)\n"
        "sandbox.call('def f():\\n  while True: pass', 'f', [[]], seconds=0.5)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=ENV)
    assert run.stdout is not None
    pids = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
    run.wait()
    run.stdout.close()
    assert pids
    for pid in pids:
        while Path(f"/proc/{pid}/exe").exists():  # the test's own timeout says if it stays
            time.sleep(0.01)


# ---------------------------------------------------------------- where programs cannot be isolated


def sandbox_worker() -> Any:
    spec = importlib.util.spec_from_file_location("sandbox_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weaken(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> None:
    """Let the next workers begin with this line of Python, which changes ``worker``, the module of their script."""
    script = folder / "weak.py"
    script.write_text(
        "import importlib.util, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('worker', {str(WORKER)!r})\n"
        "worker = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(worker)\n"
        f"{line}\nworker.main(int(sys.argv[1]))\n"
    )
    worker().end()
    sandbox._idle.cache_clear()
    sandbox.check.cache_clear()
    monkeypatch.setattr(sandbox, "WORKER", script)


NO_FILTER = "worker.isolate = lambda seconds: None"
NO_NAMESPACES = "worker.UNSHARE = 0"
NO_SECCOMP = "worker.libc.prctl = lambda option, *rest: -(option == 22)"
NO_LIMIT = "worker.signal.setitimer = lambda *_: None"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (NO_FILTER, "a program could read files, make a socket, start a process, send a signal, wait"),
        (NO_SECCOMP, "the kernel refuses PR_SET_SECCOMP"),
        ("worker.platform.machine = lambda: 'sparc'", "system calls of sparc are not known"),
        ("worker.resource.setrlimit = lambda *_: os.open('/no/such/file', 0)", "No such file"),
        (NO_LIMIT, "its process does not answer as it should .*-9"),
        ("sys.exit(1)", "its process does not answer as it should"),
    ],
)
def test_it_refuses_where_programs_cannot_be_isolated(
    one_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    weaken(monkeypatch, tmp_path, line)
    with pytest.raises(sandbox.Unsafe, match=f"run only where they can be isolated.*{says}"):
        sandbox.check()


def test_it_refuses_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.check.cache_clear()
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(sandbox.Unsafe, match="this is darwin"):
        sandbox.check()


def test_where_namespaces_are_allowed_they_keep_programs_from_the_network_without_the_filter(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not allowed here")
    weaken(monkeypatch, tmp_path, NO_FILTER)
    assert sandbox.call(attacks.REACHING["make a pair of sockets"], "f", [[target.at()]]) == [["ESCAPED"]]
    assert sandbox.call(attacks.REACHING["connect"], "f", [[target.at()]]) == [[]]
    assert target.reached() == []


def test_behind_the_filter_stand_limits_and_a_process_without_rights(
    one_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = "prctl = worker.libc.prctl\nworker.libc.prctl = lambda option, *rest: 0 if option == 22 else prctl(option, *rest)"
    weaken(monkeypatch, tmp_path, silent)
    limits = "import resource\ndef f(kinds): return [resource.getrlimit(kind)[1] for kind in kinds]"
    kinds = [
        resource.RLIMIT_AS,
        resource.RLIMIT_CPU,
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_NPROC,
    ]
    assert sandbox.call(limits, "f", [[kinds]]) == [[[512 << 20, 2, 0, 0, 0]]]
    assert sandbox.call(attacks.REACHING["read a file"], "f", [[{"secret": str(tmp_path / "weak.py")}]]) == [[]]
    weaken(monkeypatch, tmp_path, f"{silent}\nworker.resource.setrlimit = lambda *_: None")
    status = "def f(): return dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())"
    found = {key: value.strip() for key, value in sandbox.call(status, "f", [[]])[0][0].items()}
    assert {found["CapEff"], found["CapPrm"], found["CapInh"]} == {"0" * 16} and found["NoNewPrivs"] == "1"


def test_a_program_is_never_run_when_its_process_is_not_isolated(
    one_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weaken(monkeypatch, tmp_path, NO_SECCOMP)
    with pytest.raises(sandbox.Unsafe):
        sandbox.call(f"open({str(tmp_path / 'out')!r}, 'w')", "f", [[]])
    assert not (tmp_path / "out").exists()


def test_a_command_refuses_at_its_start(
    one_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weaken(monkeypatch, tmp_path, NO_SECCOMP)
    for words in (
        ["train", str(ROOT / "configs" / "rlv-sums.toml"), "task.name=code"],
        ["eval", "tiny", "--task", "code"],
    ):
        assert cli.main([*words, "--out", str(tmp_path / "run")]) == 2
        assert "run only where they can be isolated" in capsys.readouterr().err
        assert not (tmp_path / "run" / "config.toml").exists()
