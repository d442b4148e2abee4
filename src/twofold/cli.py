"""The command line: ``twofold train | plan | show | watch | eval | audit | critic | report | calibrate | solve | serve | ...``."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofold import arguments, packaged
from twofold.runtime import keep_memory, leads
from twofold.terminal import visible
from twofold.types import Stopped

if TYPE_CHECKING:
    from twofold.run import Model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. An error that the user can mend is one line on stderr, status 2."""
    keep_memory()
    parser = arguments.parser(COMMANDS)
    try:
        args, rest = parser.parse_known_args(argv)
        if not hasattr(args, "run"):
            parser.print_help()
            return 2
        if rest and not args.takes_options:
            args.error(f"unknown arguments: {' '.join(rest)}")
        status = args.run(args, rest)
        sys.stdout.flush()
        return status
    except Stopped as stopped:
        if leads():
            print(f"twofold: {stopped}. The same command continues from there (train: with --resume)", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("twofold: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 141  # as a shell reports a program that ended so
        # a system error's own text begins with "[Errno 2]"
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"twofold: {visible(text)}", file=sys.stderr)
        return 2


def _prompts(args: argparse.Namespace) -> dict[str, Any]:
    thinking = {"true": True, "false": False}.get(args.enable_thinking)
    return {"system": args.system, "enable_thinking": thinking, "think_end": args.think_end, "opening": args.opening}


def _model(args: argparse.Namespace) -> Model:
    from twofold import run

    if args.upstream and getattr(args, "fleet", None):
        raise ValueError("--fleet and --upstream are two places to sample: give one")
    if args.upstream:
        return run.connect(args.upstream, args.model, serves=args.upstream_model, **_prompts(args))
    if args.upstream_model:
        raise ValueError("--upstream-model names a model of the server at --upstream URL: give both")
    if getattr(args, "fleet", None):
        from twofold import toml
        from twofold.engine_options import Fleet

        return run.load(
            args.model, **_prompts(args), fleet=toml.override(Fleet(), args.fleet.split(","), where="--fleet")
        )
    return run.load(args.model, **_prompts(args))


OF_DATA = ("prompt_column", "answer_column", "extract", "skip_bad", "skip_long")
"""Arguments that are about a data set."""


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name))}


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import toml
    from twofold.config import ALIASES, Config

    path = packaged.config(args.config)
    config = toml.override(toml.load(Config, path, ALIASES), rest, ALIASES)
    if args.dry_run:
        print(toml.to_toml(config), end="")
        return 0
    from twofold import training

    out = args.out or Path("runs") / path.stem
    last = training.train(config, out, resume=args.resume, accept_changed=args.accept_changed)
    if leads():
        print(f"saved {last}")
    return 0


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import planning, toml
    from twofold.config import ALIASES, Config

    path = packaged.config(args.config)
    config = toml.override(toml.load(Config, path, ALIASES), rest, ALIASES)
    machine = planning.machine_of(
        args.machine, {"tflops": args.tflops, "bandwidth": args.tbytes, "memory": args.memory, "price": args.price}
    )
    layout = planning.Layout(args.devices, args.tensor_parallel)
    lengths = planning.Lengths(args.prompt, args.completion, args.parts)
    found = planning.plan(path.stem, config, args.model, machine, layout, lengths)
    print(planning.as_json(found) if args.json else "\n".join(planning.lines(found)))
    return 0


def _eval(args: argparse.Namespace, rest: list[str]) -> int:
    if args.suite:
        return _suite(args, rest)
    if args.sets or args.data:
        raise ValueError("--sets and --data belong to --suite")
    from dataclasses import replace

    from twofold import run, toml
    from twofold.config import Data, task_named
    from twofold.evals.grid import check_caps
    from twofold.evals.optimal import check_problems
    from twofold.evals.run import RENAMED
    from twofold.evaluating import evaluate_and_print
    from twofold.tasks.stream import length

    chosen = task_named(args.task)
    of_data = _given(args, OF_DATA)
    if isinstance(chosen, Data):
        chosen = replace(chosen, **of_data)
    elif of_data:
        raise ValueError(f"{_flags(of_data)}: for a data set, and {args.task} is none")
    config = toml.override(run.Eval(), rest, RENAMED)
    if args.caps:
        check_caps(args.caps, config.max_tokens)
    task = run.make_task(chosen)
    if args.optimal:
        check_problems(min(config.problems, length(task) or config.problems))
    evaluate_and_print(
        _model(args),
        task,
        config,
        out=args.out or Path("runs") / f"eval-{_named_after(args.model, args.task)}",
        title=args.task,
        rewards=args.reward,
        name=args.name,
        verifier=run.load(args.verifier) if args.verifier else None,
        plans=args.plan,
        caps=args.caps,
        optimal=args.optimal,
        skip_long=args.skip_long,
    )
    return 0


def _named_after(model: str, task: str) -> str:
    return f"{Path(model).name}-{Path(task).stem}".replace(":", "-").replace("=", "-")


def _suite(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import run, suite

    if given := _given(args, ("reward", "caps", "optimal", *OF_DATA)):
        raise ValueError(f"a suite has its own: leave out {_flags(given)}")
    suite.run_and_print(
        _model(args),
        args.suite,
        rest,
        out=args.out or Path("runs") / f"{args.suite}-{Path(args.model).name}",
        data=args.data,
        sets=() if args.sets is None else args.sets.split(","),
        name=args.name,
        verifier=run.load(args.verifier, **_prompts(args)) if args.verifier else None,
        plans=args.plan,
    )
    return 0


def _audit(args: argparse.Namespace, rest: list[str]) -> int:
    from dataclasses import replace

    from twofold import run, toml
    from twofold.config import task_named
    from twofold.evals.render import print_audit
    from twofold.progress import Progress
    from twofold.tasks.stream import length

    config = toml.override(run.Audit(), rest)
    task = run.make_task(task_named(args.task))
    config = replace(config, problems=min(config.problems, length(task) or config.problems))
    out = args.out or Path("runs") / f"audit-{_named_after(args.model, args.task)}"
    with Progress("problem") as progress:
        found = run.audit(_model(args), task, config, out=out, progress=partial(progress.update, "auditing"))
    print_audit(found)
    print(f"saved {out / 'audit.json'}")
    return 0


def _critic(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import run, toml
    from twofold.config import Data, Gym, PythonTask, task_named
    from twofold.evals.critic import Critic, score, tuned
    from twofold.progress import Progress
    from twofold.tasks.code import Code
    from twofold.tasks.items import Split
    from twofold.tasks.processbench import Case, some_cases

    def cases_of(name: str, split: Split) -> list[Case]:
        task = task_named(name)
        if isinstance(task, Code):
            raise ValueError("code has no solutions with planted errors; sums, countdown and letters have")
        return some_cases(name if isinstance(task, Data | Gym | PythonTask) else task, args.number, split)

    critic = toml.override(Critic(), rest)
    cases = cases_of(args.cases, "test")
    others = cases_of(args.tune_on, "train") if args.tune_on else []
    model = run.load(args.model, **_prompts(args))
    if others:
        critic = tuned(model.engine, model.chat, others, critic)
    with Progress("case") as progress:
        found = score(model.engine, model.chat, cases, critic, partial(progress.update, "criticising"))
    print(f"F1 {found.f1:.1%} [{found.low:.1%}, {found.high:.1%}] on {found.cases} cases")
    print(f"cases with an error, its step found: {found.on_wrong:.1%}; without one, none found: {found.on_right:.1%}")
    print(f"replies that could not be read: {found.unreadable:.1%}")
    return 0


def _show(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.trainer.show import show

    for line in show(args.run_directory, args.step, args.full):
        print(visible(line))
    return 0


def _reader_left() -> bool:
    """Return whether nobody reads the output any more, as after ``| head``. What is still to be printed is then thrown away."""
    output, pipe = sys.stdout.fileno(), select.poll()
    pipe.register(output, 0)
    left = any(event & select.POLLERR for _, event in pipe.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # or Python complains when it ends
    return left


def _watch(args: argparse.Namespace, rest: list[str]) -> int:
    try:
        from twofold.watch.app import watch
    except ImportError as error:
        raise ImportError(f"the page needs an extra: pip install -e '.[serve]' ({error})") from error
    from twofold.watch.read import Run

    watch(Run(args.run_directory), args.port)
    return 0


def _report(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.evals.report import print_table, report

    out = args.out or args.runs[0]
    print_table(report(args.runs, out, args.baseline, args.caps, args.optimal))
    print(f"report: {out / 'report.html'}")
    return 0


def _calibrate(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.evals.pools import POOLS, read_pools
    from twofold.evals.saved import evaluations_in
    from twofold.maths.posterior import fit

    pools = [pool for run in args.runs for found in evaluations_in(run) for pool in read_pools(found / POOLS)]
    found = fit([(p.answers, [g.label == "correct" for g in p.grades], p.scores) for p in pools])
    print(",".join(f"{name}={value:.3g}" for name, value in asdict(found).items()))
    return 0


def _solve(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import run, toml
    from twofold.compute.plan import RENAMED
    from twofold.solving import questions, solve_and_print

    plan = toml.override(run.parse(args.plan) if args.plan else run.Plan(), rest, RENAMED)
    is_file = os.path.isfile(args.problem) or args.problem.endswith((".jsonl", ".txt"))
    problems = questions(Path(args.problem)) if is_file else [args.problem]
    solve_and_print(_model(args), problems, plan, args.abstain, args.json)
    return 0


def _serve(args: argparse.Namespace, rest: list[str]) -> int:
    import logging
    from concurrent.futures import ThreadPoolExecutor

    from twofold import run
    from twofold.tasks import grading

    try:
        from twofold.serve.server import read_key, serve
    except ImportError as error:
        raise ImportError(f"serving needs an extra: pip install -e '.[serve]' ({error})") from error
    from twofold.serve.service import Limits

    key = read_key(args.api_key_file, args.host)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("uvicorn", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    limits = Limits(args.concurrent, args.queue, args.prompt_tokens, grace=args.grace)
    with ThreadPoolExecutor(1) as thread:
        warming = thread.submit(grading.warm)  # takes seconds, which no request should wait for
        service = run.service(_model(args), limits)
        warming.result()
    serve(service, args.host, args.port, key)
    return 0


def _convert(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.models.io import convert

    convert(args.file, args.out)
    print(f"saved {args.out}")
    return 0


def _card(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import card

    if args.write:
        print(f"saved {card.write(args.run_directory)}")
    else:
        print(card.card(args.run_directory), end="")
    return 0


def _push(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import card

    files = card.push(args.run_directory, args.repo, private=args.private, dry_run=args.dry_run)
    for name, size in files.items():
        print(f"{size:>13,}  {name}")
    print(f"{'would publish' if args.dry_run else 'published'} {len(files)} files as {args.repo}")
    return 0


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.demo import demo

    demo(args.out, args.seed)
    return 0


COMMANDS = {
    "train": _train, "plan": _plan, "show": _show, "watch": _watch, "demo": _demo, "eval": _eval, "audit": _audit, "critic": _critic,
    "report": _report, "calibrate": _calibrate, "solve": _solve, "serve": _serve, "convert": _convert,
    "card": _card, "push": _push,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
