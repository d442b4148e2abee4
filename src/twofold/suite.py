"""Run a paper's evaluation: every set of a suite, each saved like an ordinary evaluation, and one page about all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from twofold import run, toml
from twofold.compute.plan import Plan
from twofold.compute.probe import thought_length
from twofold.compute.rollout import forced
from twofold.compute.room import check_room
from twofold.evals.beside import Found, SuiteReport, beside, print_suite, write
from twofold.evals.critic import Critic, check_cases, saved_score
from twofold.evals.report import report
from twofold.evals.run import RENAMED, Eval
from twofold.evals.suites import CRITIC, SUITES, Part, Suite
from twofold.progress import Progress
from twofold.tasks.datasets import Dataset, load
from twofold.tasks.processbench import Case, load_cases
from twofold.tasks.reading import READERS

ALL = 10**9
"""As many problems as a set has."""


@dataclass(frozen=True, slots=True)
class Solving:
    """A set to solve: its options, with the changes that were asked for, and its problems."""

    name: str
    how: Eval
    task: Dataset


@dataclass(frozen=True, slots=True)
class Checking:
    """Solutions in which to find the first wrong step."""

    name: str
    how: Critic
    cases: list[Case]


Job = Solving | Checking


def run_suite(
    model: run.Model,
    suite: Suite | str,
    settings: Sequence[str] = (),
    *,
    out: Path,
    data: Path | None = None,
    sets: Sequence[str] = (),
    name: str | None = None,
    verifier: run.Model | None = None,
    plans: Sequence[Plan | str] = (),
    progress: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> SuiteReport:
    """Run the ``sets`` of a suite (default: all) into ``out/SET``, write ``out/suite.html`` and ``out/suite.json``; return them.

    ``settings`` change options of ``Eval`` in every set ("n=4", "problems=10"). A critic takes ``problems``, ``max_tokens``,
    ``batch`` and ``seed``. A file of the folder ``data`` that is named like a set is read in place of the hub. ``verifier``
    judges in the model's place, and is the critic of ProcessBench.

    Raises ValueError, before anything is sampled, for a set that is not in the suite, cannot be loaded or has fewer than two
    problems, for problems and solutions that do not fit a model's context, and for a model whose thoughts cannot be probed.
    """
    suite = SUITES[suite] if isinstance(suite, str) else suite
    jobs = _load(suite, _chosen(suite, sets), settings, data)
    _check_room(model, verifier, jobs)
    _check_thoughts(model, jobs)
    found: dict[str, Found] = {}
    for job in jobs:
        folder, tell = out / job.name, partial(progress, job.name)
        if isinstance(job, Solving):
            run.evaluate(model, job.task, job.how, out=folder, name=name, verifier=verifier, plans=plans, progress=tell)
            caps = _caps(suite, job.name, job.how.max_tokens)
            found[job.name] = report([folder], folder, caps=caps).tasks[0].evaluations[0]
        else:
            who = verifier or model
            found[job.name] = saved_score(
                who.engine, who.chat, job.cases, job.how, folder, model=who.name, progress=tell
            )
    page = beside(suite, name or model.name, {job.name: job.how for job in jobs}, found)
    write(page, out)
    return page


def run_and_print(model: run.Model, suite: str, settings: Sequence[str], *, out: Path, **options: Any) -> None:
    """Run a suite as ``run_suite`` does, with a bar for each set, and print its tables."""
    with Progress("problem") as progress:
        page = run_suite(model, suite, settings, out=out, progress=progress.update, **options)
    print_suite(page)
    print(f"page: {out / 'suite.html'}")


def _chosen(suite: Suite, sets: Sequence[str]) -> list[Part]:
    names = [part.name for part in suite.parts]
    if "" in sets:
        raise ValueError(f"an empty name in --sets {','.join(sets)}: name sets as in --sets {','.join(names[:2])}")
    if unknown := [name for name in sets if name not in names]:
        raise ValueError(f"the suite {suite.name} has no set {', '.join(unknown)}; it has {', '.join(names)}")
    return [part for part in suite.parts if not sets or part.name in sets]


def _load(suite: Suite, parts: Sequence[Part], settings: Sequence[str], data: Path | None) -> list[Job]:
    """Return the parts with their problems. Raises ValueError that lists all sets that cannot be loaded or are too small."""
    jobs: list[Job] = []
    missing: list[str] = []
    for part in parts:
        how, most = _changed(part, settings)
        source = _file(part.name, data) or part.name
        try:
            jobs.append(_job(part.name, how, source, most))
        except (OSError, ValueError) as error:
            missing.append(f"{part.name}: {error}")
    if missing:
        others = [part.name for part in parts if part.name in {job.name for job in jobs}]
        leave = f", or leave them out with --sets {','.join(others)}" if others else ""
        lines = "\n  ".join(missing)
        raise ValueError(
            f"{len(missing)} of {len(parts)} sets of the suite {suite.name} cannot be loaded; nothing was sampled:\n  {lines}\n"
            f"Put files named SET{', SET'.join(READERS)} into a folder and give it with --data{leave}."
        )
    return jobs


def _job(name: str, how: Eval | Critic, source: Path | str, most: int) -> Job:
    """Return a part with at most ``most`` problems. Raises ValueError if there are fewer than two."""
    if isinstance(how, Critic):
        cases = load_cases(_split(source), most)
        _check_size(len(cases))
        return Checking(name, how, cases)
    task = load(source, limit=most)
    _check_size(len(task))
    return Solving(name, replace(how, problems=len(task)), task)


def _check_size(problems: int, option: str = "") -> None:
    if problems < 2:
        raise ValueError(f"an interval over problems needs at least 2 of each set, got {option}{problems}")


def _changed(part: Part, settings: Sequence[str]) -> tuple[Eval | Critic, int]:
    """Return the part's options with the changes that were asked for, and the most problems to take."""
    own = part.how
    usual = own if isinstance(own, Eval) else Eval(max_tokens=own.max_tokens, batch=own.batch, seed=own.seed)
    changed = toml.override(replace(usual, problems=ALL), settings, RENAMED)
    _check_size(changed.problems, "problems=")
    if isinstance(own, Critic):
        changed_critic = replace(own, max_tokens=changed.max_tokens, batch=changed.batch, seed=changed.seed)
        return changed_critic, changed.problems
    return changed, changed.problems


def _file(name: str, data: Path | None) -> Path | None:
    """Return the set's file in the folder, if there is one. Raises FileNotFoundError if there is no such folder."""
    if data is None:
        return None
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder of sets")
    return next((path for suffix in READERS if (path := data / f"{name}{suffix}").is_file()), None)


def _split(source: Path | str) -> Path | str:
    return source if isinstance(source, Path) else source.removeprefix(CRITIC)


def _caps(suite: Suite, name: str, limit: int) -> list[int]:
    """Return the token caps that the suite's tables have for a set's accuracy, up to the limit of its samples."""
    rows = [row for table in suite.tables for row in table.rows if row.part == name and row.metric != "regret"]
    return sorted({row.cap for row in rows if row.cap is not None and row.cap <= limit})


def _check_room(model: run.Model, verifier: run.Model | None, jobs: Sequence[Job]) -> None:
    """Raise ValueError that lists the sets whose prompts, answers and verdicts do not fit the context of who reads them."""
    bad = []
    for job in jobs:
        for who in _readers(model, verifier, job):
            try:
                if isinstance(job, Solving):
                    questions = ((problem.id, problem.question) for problem in job.task.problems)
                    check_room(who.engine.context, model.chat, questions, job.how.max_tokens, job.how.judge)
                else:
                    check_cases(who.engine.context, who.chat, job.cases, job.how)
            except ValueError as error:
                bad.append(f"{job.name}, read by {who.name}: {error}")
    if bad:
        lines = "\n  ".join(bad)
        raise ValueError(f"these sets do not fit; nothing was sampled:\n  {lines}\nOr leave sets out with --sets.")


def _readers(model: run.Model, verifier: run.Model | None, job: Job) -> list[run.Model]:
    """Return the models that read a set: the verifier alone is the critic, and it also reads what the model has solved."""
    if verifier is None:
        return [model]
    return [model, verifier] if isinstance(job, Solving) else [verifier]


def _check_thoughts(model: run.Model, jobs: Sequence[Job]) -> None:
    """Raise ValueError if a set's thoughts are to be probed and the model has no single token that ends one."""
    for job in jobs:
        if isinstance(job, Solving) and job.how.probe.thoughts:
            try:
                thought_length(model.chat, forced([]), job.how.probe.prover)
            except ValueError as error:
                raise ValueError(
                    f"{job.name}: {error}. Name the model's own with --probe.prover.end, or leave the regret out with "
                    "--probe.thoughts 0"
                ) from error
