"""The command line: ``twofold train | show | eval | critic | report | calibrate | solve | serve | convert | demo``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofold.runtime import keep_memory
from twofold.types import Stopped

if TYPE_CHECKING:
    from twofold.run import Model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. An error that the user can mend is one line on stderr, status 2."""
    keep_memory()
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    if rest and not args.takes_options:
        args.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return args.run(args, rest)
    except Stopped as stopped:
        print(f"twofold: {stopped}. The same command continues from there (train: with --resume)", file=sys.stderr)
        return 3
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        # a system error's own text begins with "[Errno 2]"
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"twofold: {text}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="twofold",
        description="Train, evaluate and use one language model that solves problems and judges its own solutions.",
        epilog="twofold COMMAND --help shows the arguments of a command.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: object, help: str, options: str | None = None) -> argparse.ArgumentParser:
        """Add a command. ``options`` describes its options that a config class has, if it takes such options."""
        description = f"{help} {options}" if options else help
        sub = commands.add_parser(name, help=help, description=description, allow_abbrev=False)
        sub.set_defaults(run=run, takes_options=options is not None, error=sub.error)
        return sub

    _add_training(command)
    _add_evaluation(command)
    _add_use(command)
    return parser


def _add_training(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "train",
        _train,
        "Train a model as a TOML config says.",
        "Every option of the config may be set as --section.key VALUE or section.key=VALUE; --dry-run prints them all.",
    )
    sub.add_argument("config", type=Path, help="a file such as configs/rlv-sums.toml")
    sub.add_argument(
        "--out", metavar="DIR", type=Path, help="run directory (default: runs/NAME for a config NAME.toml)"
    )
    sub.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in the run directory")
    sub.add_argument("--dry-run", action="store_true", help="print the complete config, and do not train")

    sub = command("show", _show, "Print what the model wrote at one step of a run.")
    sub.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory")
    sub.add_argument("--step", metavar="N", type=int, help="the step to show (default: the last one that was written)")
    sub.add_argument("--full", action="store_true", help="print whole texts (default: at most 20 lines of each)")

    about = "Train and evaluate the shipped model on procedural maths, and write a report (3 to 6 minutes on 2 cores)."
    sub = command("demo", _demo, about)
    sub.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/demo"), help="directory (%(default)s)")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="seed of both runs (%(default)s)")


def _add_evaluation(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("eval", _eval, "Evaluate a model on a task, and write a report.", _options("evals.run", "Eval"))
    sub.add_argument("model", help="a directory, a run, a GGUF file, a hub name, or tiny (ships with the package)")
    what = sub.add_mutually_exclusive_group()
    what.add_argument(
        "--task",
        default="sums",
        help="sums, countdown, letters (with options: sums:level=4), gsm8k, math500, gym:NAME, mine.py:Task, or a file "
        "(default: %(default)s)",
    )
    what.add_argument("--suite", choices=("rlv", "tango", "mrt"), help="all sets of a paper, beside its own numbers")
    sub.add_argument("--sets", metavar="SET,SET,...", help="of a suite: only these sets")
    sub.add_argument(
        "--data", metavar="DIR", type=Path, help="of a suite: a folder of files named SET.jsonl, SET.json ..."
    )
    sub.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="evaluation directory (default: runs/eval-MODEL-TASK, for a suite runs/SUITE-MODEL); problems that it already "
        "has are not sampled again",
    )
    sub.add_argument("--name", help="name in reports (default: the model's)")
    sub.add_argument("--prompt-column", metavar="NAME", help="for a file: the column with the question")
    sub.add_argument("--answer-column", metavar="NAME", help="for a file: the column with the answer")
    sub.add_argument("--extract", choices=("boxed", "stated", "number"), default="boxed", help="where answers stand")
    sub.add_argument(
        "--reward",
        metavar="SOURCE",
        action="append",
        default=[],
        help="grade with your own function, mine.py:reward; if repeated, the rewards are summed",
    )
    sub.add_argument(
        "--plan",
        action="append",
        default=[],
        help="also evaluate this test-time plan, such as majority-16:stop=adaptive; may be repeated",
    )
    _add_report_options(sub)
    sub.add_argument(
        "--verifier", metavar="MODEL", help="another model that scores the samples (default: the same model)"
    )
    _add_prompts(sub)
    _add_upstream(sub)

    about = "Measure how well a model finds the first wrong step of solutions."
    sub = command("critic", _critic, about, _options("evals.critic", "Critic"))
    sub.add_argument("model", help="as for eval; for a run with two models, the verifier's checkpoint")
    sub.add_argument(
        "cases", help="sums, letters or countdown (with planted errors), a file, or a split of ProcessBench"
    )
    sub.add_argument("--number", metavar="N", type=int, default=200, help="number of cases (%(default)s)")
    sub.add_argument(
        "--tune-on", metavar="CASES", help="for how=p_yes: choose the threshold on these other cases first"
    )
    _add_prompts(sub)

    sub = command("report", _report, "Write tables and figures from saved evaluations. This needs no model.")
    sub.add_argument("runs", nargs="+", type=Path, help="evaluation or run directories")
    sub.add_argument(
        "--out", metavar="DIR", type=Path, help="where report.html and report.json go (default: the first directory)"
    )
    sub.add_argument("--baseline", metavar="NAME", help="the evaluation to compare with (default: the first)")
    _add_report_options(sub)

    sub = command("calibrate", _calibrate, "Fit and print the six numbers of rule=posterior and stop=posterior.")
    sub.add_argument(
        "runs", nargs="+", type=Path, help="evaluation directories whose problems are used for nothing else"
    )


def _add_report_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--caps",
        metavar="N,N,...",
        default="",
        help="show accuracy for each of these token caps and each number of samples, such as 64,128,256",
    )
    sub.add_argument(
        "--optimal",
        action="store_true",
        help="choose a plan for each problem by its difficulty, which a pilot estimates: among the plans given, or among "
        "majority votes of several sizes and weighted votes",
    )


def _caps(text: str) -> list[int]:
    try:
        return [int(cap) for cap in text.split(",")] if text else []
    except ValueError as error:
        raise ValueError(f"--caps takes numbers of tokens, such as 64,128,256, got {text!r}") from error


def _add_use(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("solve", _solve, "Solve problems with a test-time plan.", _options("compute.plan", "Plan"))
    sub.add_argument("model", help="as for eval")
    sub.add_argument("problem", help="the problem's text, or a file of problems: one per line, or JSON lines")
    sub.add_argument("--plan", help="such as weighted-16 or posterior-40:stop=posterior,threshold=0.95")
    sub.add_argument("--abstain", type=float, default=0.0, metavar="P", help='say "not sure" below this confidence')
    _add_prompts(sub)
    _add_upstream(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON object per problem instead of text")

    sub = command("serve", _serve, "Serve a model over HTTP: OpenAI's API, and a page to try it.")
    sub.add_argument("model", help="as for eval")
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines reach needs a key (%(default)s)",
    )
    sub.add_argument("--port", metavar="N", type=int, default=8000, help="0 takes any free port (%(default)s)")
    sub.add_argument("--api-key-file", metavar="FILE", type=Path, help="a file with the key (or set TWOFOLD_API_KEY)")
    sub.add_argument("--concurrent", metavar="N", type=int, default=64, help="requests that run at once (%(default)s)")
    sub.add_argument("--queue", metavar="N", type=int, default=64, help="further requests that may wait (%(default)s)")
    sub.add_argument(
        "--grace", metavar="SECONDS", type=float, default=30.0,
        help="seconds for running requests to finish after SIGTERM (%(default)s)",
    )  # fmt: skip
    _add_prompts(sub)
    _add_upstream(sub)

    sub = command("convert", _convert, "Write the model of a GGUF file as a plain model directory.")
    sub.add_argument("file", metavar="FILE.gguf", type=Path, help="a model of type Llama, Qwen2 or Qwen3")
    sub.add_argument("out", metavar="DIR", type=Path, help="a new directory; its weights are fp32")


def _add_prompts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--system", metavar="TEXT", help="system prompt (serve: of conversations that have none)")
    sub.add_argument("--enable-thinking", choices=["true", "false"], help="for the chat template (default: as trained)")
    sub.add_argument(
        "--think-end", metavar="TEXT", help="what ends a thought (default: </think>, if the template has it)"
    )


def _prompts(args: argparse.Namespace) -> dict[str, Any]:
    thinking = {"true": True, "false": False}.get(args.enable_thinking)
    return {"system": args.system, "enable_thinking": thinking, "think_end": args.think_end}


def _add_upstream(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--upstream",
        metavar="URL",
        help="use the model of this server, such as vLLM's http://127.0.0.1:8000/v1 (key: TWOFOLD_UPSTREAM_KEY); "
        "only the tokenizer of the model argument is then loaded",
    )
    sub.add_argument(
        "--upstream-model", metavar="NAME", help="the server's name for the model, if it is not the model argument"
    )


def _model(args: argparse.Namespace) -> Model:
    from twofold import run

    if args.upstream:
        return run.connect(args.upstream, args.model, serves=args.upstream_model, **_prompts(args))
    if args.upstream_model:
        raise ValueError("--upstream-model names a model of the server at --upstream URL: give both")
    return run.load(args.model, **_prompts(args))


def _options(module: str, name: str) -> str:
    """Return a sentence that lists the fields of a config class, for --help. None of these modules loads torch."""
    from importlib import import_module

    names = [f"--{f.name}" for f in fields(getattr(import_module(f"twofold.{module}"), name))]
    return f"Further options, each as --name VALUE or name=VALUE: {', '.join(names)}."


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import toml, training
    from twofold.config import ALIASES, Config

    config = toml.override(toml.load(Config, args.config, ALIASES), rest, ALIASES)
    if args.dry_run:
        print(toml.to_toml(config), end="")
        return 0
    out = args.out or Path("runs") / args.config.stem
    print(f"saved {training.train(config, out, resume=args.resume)}")
    return 0


def _eval(args: argparse.Namespace, rest: list[str]) -> int:
    if args.suite:
        return _suite(args, rest)
    if args.sets or args.data:
        raise ValueError("--sets and --data belong to --suite")
    from dataclasses import replace

    from rich.progress import Progress

    from twofold import run, toml
    from twofold.config import Data, task_named
    from twofold.evals.grid import check_caps
    from twofold.evals.optimal import check_problems
    from twofold.evals.report import print_table, report
    from twofold.evals.run import RENAMED
    from twofold.tasks.datasets import Dataset
    from twofold.tasks.stream import length

    chosen = task_named(args.task)
    if isinstance(chosen, Data):
        columns = {"prompt_column": args.prompt_column, "answer_column": args.answer_column}
        chosen = replace(chosen, extract=args.extract, **columns)
    config, caps = toml.override(run.Eval(), rest, RENAMED), _caps(args.caps)
    if caps:
        check_caps(caps, config.max_tokens)
    task = run.make_task(chosen)
    if (size := length(task)) is not None:
        print(f"{args.task}: {size} problems" + (f"; {task.columns}" if isinstance(task, Dataset) else ""))
        config = replace(config, problems=min(config.problems, size))
    if args.optimal:
        check_problems(config.problems)
    safe = f"eval-{Path(args.model).name}-{Path(args.task).stem}".replace(":", "-").replace("=", "-")
    out = args.out or Path("runs") / safe
    model = _model(args)
    with Progress() as bar:
        line = bar.add_task("evaluating", total=config.problems)
        run.evaluate(
            model,
            run.rewarded(task, args.reward),
            config,
            out=out,
            name=args.name,
            verifier=run.load(args.verifier) if args.verifier else None,
            plans=args.plan,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    print_table(report([out], out, caps=caps, optimal=args.optimal))
    print(f"report: {out / 'report.html'}")
    return 0


def _suite(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import run, suite

    columns = args.prompt_column or args.answer_column or args.extract != "boxed"
    if args.reward or args.caps or args.optimal or columns:
        names = "--reward, --caps, --optimal, --prompt-column, --answer-column and --extract"
        raise ValueError(f"a suite has its own: leave out {names}")
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


def _critic(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import run, toml
    from twofold.config import Data, Gym, PythonTask, task_named
    from twofold.evals.critic import Critic, score, tuned
    from twofold.tasks.procedural import Split
    from twofold.tasks.processbench import Case, some_cases

    def cases_of(name: str, split: Split) -> list[Case]:
        task = task_named(name)
        return some_cases(name if isinstance(task, Data | Gym | PythonTask) else task, args.number, split)

    critic = toml.override(Critic(), rest)
    cases = cases_of(args.cases, "test")
    others = cases_of(args.tune_on, "train") if args.tune_on else []
    model = run.load(args.model, **_prompts(args))
    if others:
        critic = tuned(model.engine, model.chat, others, critic)
    found = score(model.engine, model.chat, cases, critic)
    print(f"F1 {found.f1:.1%} [{found.low:.1%}, {found.high:.1%}] on {found.cases} cases")
    print(f"cases with an error, its step found: {found.on_wrong:.1%}; without one, none found: {found.on_right:.1%}")
    print(f"replies that could not be read: {found.unreadable:.1%}")
    return 0


def _show(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.trainer.show import show

    for line in show(args.run_directory, args.step, args.full):
        print(line)
    return 0


def _report(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.evals.report import print_table, report

    out = args.out or args.runs[0]
    print_table(report(args.runs, out, args.baseline, _caps(args.caps), args.optimal))
    print(f"report: {out / 'report.html'}")
    return 0


def _calibrate(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.evals.pools import POOLS, read_pools
    from twofold.maths.posterior import fit

    pools = [pool for run in args.runs for pool in read_pools(run / POOLS)]
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

    from twofold import run

    try:
        from twofold.serve.server import read_key, serve
    except ImportError as error:
        raise ImportError(f"serving needs an extra: pip install 'twofold[serve]' ({error})") from error
    from twofold.serve.service import Limits

    if args.concurrent < 1 or args.queue < 0 or args.grace < 0:
        raise ValueError("--concurrent must be at least 1, --queue and --grace at least 0")
    key = read_key(args.api_key_file, args.host)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for name in ("uvicorn", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    limits = Limits(concurrent=args.concurrent, queue=args.queue, grace=args.grace)
    serve(run.service(_model(args), limits), args.host, args.port, key)
    return 0


def _convert(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.models.io import convert

    convert(args.file, args.out)
    print(f"saved {args.out}")
    return 0


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.demo import demo

    demo(args.out, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
