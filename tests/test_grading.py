"""Grading: right labels, on time, whatever the answer, and no process left behind."""

from __future__ import annotations

import asyncio
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
from random import Random
from typing import Any

import pytest

from twofold.tasks import grading
from twofold.tasks.grading import equal, equal_exactly, grade, grade_choice, grade_many, warm
from twofold.text.notation import for_parser
from twofold.types import Grade

CORPUS = [json.loads(line) for line in (Path(__file__).parent / "data/pathological.jsonl").read_text().splitlines()]
BUDGET = 20.0
"""Seconds on the clock for a deadline of 1. A quiet machine needs 1.25, any machine ``PATIENCE`` and a little, and a turn."""

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


def generated(n: int) -> list[dict[str, Any]]:
    """Return hostile answers: towers of powers, factorials, sums and the like, put into one another, none of them 5."""
    r = Random(0)

    def formula(depth: int) -> str:
        if depth == 0:
            return r.choice(["9", "10^9", "x", "7^{7^7}", "99999", "e", r"\pi", "1.0000001", "2^{9999}"])
        a, b = formula(depth - 1), formula(depth - 1)
        return r.choice([
            rf"{{{a}}}^{{{b}}}", rf"({a})!", rf"\binom{{{a}}}{{{b}}}", rf"\sum_{{k=1}}^{{{a}}} k^{{{b}}}", rf"\frac{{{a}}}{{{b}}}",
            rf"\sqrt[{a}]{{{b}}}", rf"\left({a}+{b}\right)^{{999}}", rf"\prod_{{k=1}}^{{{a}}} ({b}+k)", rf"\sin({a}){b}",
            rf"\int_0^{{{a}}} {b} dx", rf"\lim_{{x \to {a}}} {b}", rf"\log_{{{a}}}({b})",
            rf"\begin{{pmatrix}} {a} & {b} \end{{pmatrix}}^{{9999}}",
            rf"{a} = {b}", rf"\{{{a}, {b}\}}", rf"{a} \leq x < {b}", rf"{a} \approx {b}", rf"|{a}|^{{{b}}}", rf"{a}\%",
        ])  # fmt: skip

    answers: dict[str, None] = {}
    while len(answers) < n:
        answers[formula(r.randint(2, 4))] = None
    return [{"gold": "5", "answer": answer, "allowed": ["wrong", "timeout", "error"]} for answer in answers]


def from_asyncio(rows: list[dict[str, Any]], deadline: float) -> list[tuple[float, dict[str, Any], Grade]]:
    async def all_of_them() -> list[tuple[float, dict[str, Any], Grade]]:
        return await asyncio.gather(*(asyncio.to_thread(timed, row, deadline) for row in rows))

    return asyncio.run(all_of_them())


def test_hostile_answers_from_threads_asyncio_and_the_main_thread() -> None:
    warm()
    handlers = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGPROF)]
    rows = [*SOME, *generated(188)]
    assert len(rows) == 200
    with ThreadPoolExecutor(grading.WORKERS) as threads:
        check(list(threads.map(lambda row: timed(row, 0.2), rows[:120])))
    check(from_asyncio(rows[120:180], 0.2))
    check([timed(row, 0.2) for row in rows[180:]])
    assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGPROF)] == handlers


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["threads", "asyncio", "main thread"])
def test_hostile_answers_in_full(how: str) -> None:
    warm()
    rows = [*CORPUS, *generated(500 - len(CORPUS))]
    if how == "asyncio":
        check(from_asyncio(rows, 1.0))
    else:
        with ThreadPoolExecutor(grading.WORKERS if how == "threads" else 1) as threads:
            check(list(threads.map(timed, rows)) if how == "threads" else [timed(row) for row in rows])
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"\boxed{" * 140_000, "no_answer"),
        (r"\boxed{" + "9" * 10**6 + "}", "no_answer"),  # its start lies before the tail that is searched
        (r"\boxed{" + "9" * 10**5 + "}", "wrong"),
        ("5 " * 500_000 + r"\boxed{5}", "correct"),
        ("#### " + "5" * 10**6, "no_answer"),
        ("".join(f"\\boxed{{{k}}} " for k in range(10**5)), "wrong"),
    ],
    ids=["unterminated", "long box", "long answer", "long text", "long line", "many boxes"],
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
    ("5", "5=5"),
    ("5=5", "5"),
    ("x=5", "2+3=5"),
    (r"\sqrt{2}", r"\sqrt{2} \approx 1.414"),
    ("1.414", r"\sqrt{2} \approx 1.414"),
    ("7+27i", "7 + 27 i"),
    ("i^2", "-1"),
    (r"\sum_{i=1}^{3} i", "6"),
    (r"7\sqrt11+8", r"8+7\sqrt{11}"),
    ("x^5-x-1=0", "2x^5-2x-2=0"),
    (r"\cos\frac{2\pi}{7}+\cos\frac{4\pi}{7}+\cos\frac{6\pi}{7}", "-1/2"),
    (r"2\sin 30^\circ+x", "1+x"),
    ("|x-1|<2", "-1<x<3"),
]
WRONG = [
    ("5", r"5 \approx 6"),
    ("6", r"5 \approx 6"),
    ("5", "5=6"),
    ("6", "5=6"),
    ("5", "x=5=6"),
    ("6", "x=5=6"),
    (r"\pi/10^9", r"\pi/(10^9+1)"),
    ("1/2^{99}+x", "1/2^{98}+x"),
    (r"\sqrt{x^2}", "x"),
    ("15", r"7\sqrt11+8"),
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


def test_an_answer_whose_worker_stands_still_is_a_timeout_and_the_next_ones_are_not() -> None:
    """No kernel timer ends a stopped process. Its caller is told all the same, and what it says later is about nobody else's."""
    _, workers = processes()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as threads:
            labels = [*threads.map(lambda k: equal("x+1", f"{k}+x", deadline=0.05), range(4))]
        assert "timeout" in labels  # an answer that is tried again may meet a worker that was started since
        assert all(label in ("timeout", "correct" if k == 1 else "wrong") for k, label in enumerate(labels))
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert [equal(gold, answer, deadline=10.0) for gold, answer, _ in KNOWN * 5] == [label for *_, label in KNOWN * 5]


def test_an_answer_that_had_too_little_of_a_processor_is_tried_again() -> None:
    """A busy machine takes the processor away from the worker for the whole deadline: that decides nothing."""
    _, workers = processes()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        label = threads.submit(equal, "x+1", "1+x", deadline=10.0)
        time.sleep(0.3)
        assert not label.done()
        for pid in workers:  # the timer runs out while it is stopped: the worker dies as soon as it goes on
            os.kill(pid, signal.SIGALRM)
            os.kill(pid, signal.SIGCONT)
        assert label.result() == "correct"


def test_workers_that_were_killed_are_replaced() -> None:
    _, workers = processes()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert [equal(gold, answer, deadline=10.0) for gold, answer, _ in KNOWN] == [label for *_, label in KNOWN]
    nursery, workers = processes()
    for pid in [nursery, *workers]:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert (
        equal("x+2", "2+x", deadline=10.0) == "correct"
    )  # asked again of new workers: their end is not about this answer


AUDIT = r"""
import json, os, socket, sys
sys.path.insert(0, sys.argv[1])
import equality
equality.prepare()
events, on = [], False
harmless = ("builtins.id", "object.__getattr__", "sys._getframe")
sys.addaudithook(lambda event, args: on and event not in harmless and events.append(event))
rows = [json.loads(line) for line in sys.stdin]
on = True
labels = [equality.judge(gold, answer) for gold, answer in rows]
on = False
print(json.dumps([labels, events]))
sys.addaudithook(equality.refuse)
refused = 0
for attempt in (
    lambda: os.system("true"), lambda: open("pwned", "w"), lambda: open("script"), socket.socket, os.fork, lambda: os.remove("x"),
    lambda: eval("1"), lambda: exec("1"), lambda: __import__("this"), lambda: compile("1", "", "eval"),
):
    try:
        attempt()
    except PermissionError as error:
        refused += str(error).startswith("a grading worker tried")
print(refused, equality.judge("x+1", "2+x-1"))
"""
PAYLOADS = [
    "__import__('os').system('touch pwned')", r"\text{__import__('os').system('touch pwned')}", "open('pwned','w')", "exec('1')",
    "().__class__.__base__.__subclasses__()", "f'{open(1)}'", "x.__class__", r"\mathrm{eval}(1)", "lambda: 0", "1e9.__class__",
    "\uff45\uff56\uff41\uff4c(1)",
    r"\operatorname{exec}(x)", "import os", "[x for x in ()]", "x; import os", "#\nimport os", "sympify('1')", "os.system('x')+1",
]  # fmt: skip


def test_a_worker_opens_imports_and_runs_nothing_and_refuses_all_of_it(tmp_path: Path) -> None:
    pairs = [pair for pair in RIGHT + WRONG if equal_exactly(*pair) is None] + [("5", payload) for payload in PAYLOADS]
    pairs += [
        (row["gold"], row["answer"]) for row in CORPUS if len(row["answer"]) < 300 and "timeout" not in row["allowed"]
    ]
    lines = [json.dumps([for_parser(gold), for_parser(answer)]) for gold, answer in pairs]
    command = [sys.executable, "-P", "-c", AUDIT, str(Path(grading.__file__).parent)]
    run = subprocess.run(command, cwd=tmp_path, input="\n".join(lines), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    audited, attempts = run.stdout.splitlines()
    labels, events = json.loads(audited)
    assert events == []
    assert all(label != "correct" for label, (gold, answer) in zip(labels, pairs, strict=True) if answer in PAYLOADS)
    assert attempts == "10 correct"
    assert not list(tmp_path.iterdir())


SCRIPT = r"""
import os, sys, threading
from twofold.tasks import grading
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
