"""Grading: right labels, on time, whatever the answer, and no process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from twofold.tasks import grading
from twofold.tasks.grading import equal, equal_exactly, grade, grade_choice, grade_many, warm
from twofold.types import Grade

CORPUS = [json.loads(line) for line in (Path(__file__).parent / "data/pathological.jsonl").read_text().splitlines()]
BUDGET = 20.0
"""Seconds on the clock for a deadline of 1. A quiet machine needs 1.25; on a busy one the workers give way to other processes."""

SOME = [row for i, row in enumerate(CORPUS) if i in (0, 6, 17, 25, 28, 35, 36, 54, 68, 72, 78, 91)]
KNOWN = [("12", "12", "correct"), ("12", "13", "wrong"), (r"2\sqrt{3}", r"\sqrt{12}", "correct")]
KNOWN += [(r"2\sqrt{3}", r"\sqrt{13}", "wrong"), ("x+1", "1+x", "correct"), ("x+1", "x+2", "wrong")]


def timed(row: dict[str, Any], deadline: float = 1.0) -> tuple[float, dict[str, Any], Grade]:
    start = time.perf_counter()
    result = grade(row["gold"], "so\n#### " + row["answer"], deadline=deadline)
    return time.perf_counter() - start, row, result


def check(results: list[tuple[float, dict[str, Any], Grade]]) -> None:
    worst = max(seconds for seconds, _, _ in results)
    print(f"{len(results)} hostile answers, the slowest took {worst:.2f} s")
    for _, row, result in results:
        assert result.label in row["allowed"], (row["gold"], row["answer"][:60], result)
        assert (result.reward is None) == (result.label in ("timeout", "error"))
    assert worst < BUDGET
    for gold, answer, label in KNOWN:  # nothing forged, nothing broken
        assert equal(gold, answer, deadline=10.0) == label


def test_hostile_answers_from_two_threads() -> None:
    warm()
    handler = signal.getsignal(signal.SIGPROF)
    with ThreadPoolExecutor(2) as threads:  # no more than workers, so that nobody waits in a queue
        check(list(threads.map(timed, SOME)))
    assert signal.getsignal(signal.SIGPROF) is handler


def test_hostile_answers_from_the_main_thread() -> None:
    warm()
    check([timed(row) for row in SOME[:4]])


@pytest.mark.slow
def test_the_whole_corpus_from_the_main_thread() -> None:
    warm()
    check([timed(row) for row in CORPUS])


@pytest.mark.slow
def test_the_whole_corpus_from_two_threads() -> None:
    warm()
    with ThreadPoolExecutor(2) as threads:
        check(list(threads.map(timed, CORPUS)))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"\boxed{" * 140_000, "no_answer"),
        (r"\boxed{" + "9" * 10**6 + "}", "no_answer"),  # its start lies before the tail that is searched
        (r"\boxed{" + "9" * 10**5 + "}", "wrong"),
        ("5 " * 500_000 + r"\boxed{5}", "correct"),
        ("#### " + "5" * 10**6, "no_answer"),
    ],
    ids=["unterminated", "long box", "long answer", "long text", "long line"],
)
def test_a_megabyte_of_output(text: str, label: str) -> None:
    start = time.perf_counter()
    assert grade("5", text).label == label
    assert time.perf_counter() - start < BUDGET


RIGHT = [
    ("1/2", "0.5"),
    ("1/3", "0.333333"),
    ("1/3", "0.3333333"),
    ("2/3", "0.666667"),
    ("1{,}000", "1000"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"(-\infty,5)", "x<5"),
    ("x<5", r"(-\infty,5)"),
    ("5", "x=5"),
    ("x=5", "5"),
    (r"\{1,2\}", "2,1"),
    ("y=2x+1", "2x-y+1=0"),
    ("3x-y+13=0", "6x-2y+26=0"),
    (r"1-1/\mathrm{e}", r"1-\frac{1}{e}"),
    (r"10^{-8}\pi", r"\pi/10^8"),
    ("42_5", "22"),
    (r"8\%", "8"),
    (r"10 \text{ cm}", "10"),
    (r"$(-6,6)$, $(2,6)$", "(2,6),(-6,6)"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"2\frac{1}{2}", "2.5"),
    ("1/2^{99}", r"\frac{1}{2^{99}}"),
]
WRONG = [
    ("1/3", "0.333"),  # too short for a fraction
    ("1/2", "0.500001"),
    ("1.24e-8", "1.25e-8"),
    (r"10^{-8}\pi", r"2\cdot 10^{-8}\pi"),
    ("1/2^{99}", "1/2^{98}"),
    ("1/2004!", "1/2006!"),
    (r"1-1/\mathrm{e}", r"1+1/\mathrm{e}"),
    ("1,2,\\ldots,n", "1,3,\\ldots,2n-1"),
    ("42_5", "42"),
    ("3x-y+13=0", "3x+4y+14=0"),
    ("(1,2)", "(2,1)"),
    ("1,2,3", "1,2"),
    ("5", "5 or 6 or 7"),
    ("C", "A or B or C"),
    ("12", "1 2"),
    ("x+1", "x-1"),
    (r"2\sqrt{3}", r"2\sqrt{5}"),
    (r"\pi", "3.14"),
    ("-5", "5"),
    ("Evelyn", "Bob"),
    ("7", "7x"),
    ("x=5", "x=6"),
]


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_right(gold: str, answer: str) -> None:
    assert equal(gold, answer, deadline=10.0) == "correct"


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_wrong(gold: str, answer: str) -> None:
    assert equal(gold, answer, deadline=10.0) == "wrong"


@pytest.mark.parametrize("answer", sorted({answer for pair in RIGHT for answer in pair}))
def test_every_answer_equals_itself(answer: str) -> None:
    assert equal_exactly(answer, f" ${answer}$ ") == "correct"


def test_a_changed_digit_or_sign_is_never_accepted() -> None:
    for n in (7, 10, 99, 1234, 10**6, 10**12 + 1, 10**40):
        for gold in (str(n), f"{n}/7", f"1/{n}", f"0.{n}", f"1e-{n % 90}", f"2^{{{n % 500}}}"):
            for other in (
                f"{n + 1}",
                f"-{n}",
                f"{n + 1}/7",
                f"1/{n + 1}",
                f"0.{n}1",
                f"1e-{n % 90 + 1}",
                f"2^{{{n % 500 + 1}}}",
            ):
                label = equal_exactly(gold, other)
                assert label is not None, "numbers need no worker"
                assert (label == "correct") == (value(gold) == value(other)), (gold, other)


def value(text: str) -> Fraction:
    """Return the value of one of the numbers above, read by other code than the grader's."""
    base, _, power = text.partition("^")
    return Fraction(int(base) ** int(power.strip("{}"))) if power else Fraction(text)


def test_most_answers_need_no_worker() -> None:
    for answer in ("17", "-3", "0.25", "3/4", r"\frac{3}{4}", "1,000", "$12$", "2^{10}", "1e5", r"\$5"):
        assert equal_exactly(answer, "999") == "wrong"


def test_labels_and_rewards() -> None:
    assert grade("5", "I think it is 5.") == Grade(0.0, "no_answer")
    assert grade("5", r"\boxed{5}") == Grade(1.0, "correct")
    assert grade(r"\frac{", r"\boxed{5}") == Grade(None, "error")  # an unreadable reference is not a wrong answer
    assert grade("5", r"\boxed{9^{9^{9^{9}}}}", deadline=0.2) == Grade(None, "timeout")
    assert grade_choice("B", r"\boxed{B}") == Grade(1.0, "correct")
    assert grade_choice("B", r"\boxed{C}") == Grade(0.0, "wrong")
    assert grade_choice("B", "it could be B") == Grade(0.0, "no_answer")
    with pytest.raises(ValueError, match="positive"):
        grade("x", r"\boxed{y+1}", deadline=0)


def test_many_keep_their_order_and_slow_ones_delay_nobody() -> None:
    pairs = [(gold, rf"\boxed{{{answer}}}") for gold, answer, _ in KNOWN for _ in range(3)]
    pairs[2:2] = [("5", r"\boxed{9^{9^{9^{9}}}}")] * 4  # equal questions are asked once
    start = time.perf_counter()
    grades = grade_many(pairs)
    assert time.perf_counter() - start < BUDGET
    labels = [label for *_, label in KNOWN for _ in range(3)]
    labels[2:2] = ["timeout"] * 4
    assert [grade.label for grade in grades] == labels
    assert grade_many([]) == []


def test_fast_answers_behind_slow_ones_do_not_time_out() -> None:
    warm()
    slow = [threading.Thread(target=grade, args=("5", rf"\boxed{{9^{{9^{{9^{{{k}}}}}}}}}")) for k in range(9, 13)]
    for thread in slow:
        thread.start()
    assert equal("x+1", "1+x") == "correct"
    for thread in slow:
        thread.join()


def processes() -> tuple[int, list[int]]:
    """The process that starts workers, and the workers."""
    warm()
    assert grading._workers is not None
    nursery = grading._workers.process.pid
    return nursery, [int(pid) for pid in Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()]


def test_a_deadline_counts_the_workers_own_time() -> None:
    """A worker that has to stand still for longer than the deadline is not late."""
    _, workers = processes()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        label = threads.submit(equal, "x+1", "1+x", deadline=0.2)
        time.sleep(0.5)
        assert not label.done()
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        assert label.result() == "correct"


def test_workers_that_were_killed_are_replaced() -> None:
    nursery, workers = processes()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert [equal(gold, answer, deadline=10.0) for gold, answer, _ in KNOWN] == [label for *_, label in KNOWN]
    nursery, workers = processes()
    for pid in [nursery, *workers]:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert equal("x+2", "2+x") == "error"  # reported, not guessed; the next one has new workers
    assert equal("x+2", "2+x", deadline=10.0) == "correct"


ATTEMPTS = r"""
import os, socket, sys
sys.path.insert(0, sys.argv[1])
import equality
equality.judge("x+1", "1+x")
sys.addaudithook(equality.refuse_effects)
for attempt in (lambda: os.system("true"), lambda: open("pwned", "w"), socket.socket, os.fork, lambda: os.remove("x")):
    try:
        attempt()
    except PermissionError as e:
        print(e)
print(equality.judge("x+1", "2+x-1"))
"""


def test_a_worker_can_neither_write_nor_start_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", ATTEMPTS, str(Path(grading.__file__).parent)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    lines = run.stdout.splitlines()
    assert len(lines) == 6, run.stderr
    assert all(line.startswith("a grading worker tried") for line in lines[:5])
    assert lines[5] == "correct"


SCRIPT = r"""
import os, sys, threading
from twofold.tasks import grading
grading.NICE = 0
print(grading.equal("x+1", "1+x"), flush=True)
if "fork" in sys.argv:  # a forked child starts its own
    if os.fork() == 0:
        print(grading.equal("x+1", "x+2"), flush=True)
        sys.exit()
    os.wait()
print(grading.equal("x+3", "x+4"), "torch" in sys.modules, flush=True)
if "kill" in sys.argv:
    threading.Thread(target=grading.equal, args=("5", "9^{9^{9^{9}}}")).start()
    import time; time.sleep(0.3)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("how", ["kill", pytest.param("fork", marks=pytest.mark.slow)])
def test_a_plain_script_leaves_no_orphans(how: str, tmp_path: Path) -> None:
    """A script needs no ``if __name__`` guard and imports no torch, and its workers end with it, however it ends."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    mark = f"TWOFOLD_TEST_MARK={tmp_path}"
    environment = os.environ | {
        "PYTHONPATH": str(Path(grading.__file__).parents[2]),
        "TWOFOLD_TEST_MARK": str(tmp_path),
    }
    with subprocess.Popen(["sleep", "60"], env=environment) as sleeper:
        deadline = time.monotonic() + 30  # the environment of a new process appears a moment after its start
        while not marked(mark) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(marked(mark)) == 1
        sleeper.kill()
    run = subprocess.run([sys.executable, str(path), how], env=environment, capture_output=True, text=True, timeout=90)
    assert run.stdout.split() == ["correct", *["wrong"] * (1 + (how == "fork")), "False"], run.stderr
    assert run.stderr == ""
    deadline = time.monotonic() + 5  # a busy worker may run to its deadline
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []


def marked(mark: str) -> list[str]:
    """Return the processes that inherited ``mark``: a script and whatever it started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or another user's
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
    return found
