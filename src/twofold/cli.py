"""The command line: ``twofold train | eval | report | solve | serve | demo``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from twofold.types import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status. Errors a user can mend are one line on stderr, status 2."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    if rest and not args.takes_options:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.run(args, rest)
    except Stopped as stopped:
        print(f"twofold: {stopped}. The same command goes on from there (train: with --resume)", file=sys.stderr)
        return 3
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        print(f"twofold: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="twofold", description="One language model that solves and that knows when it is right."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: object, help: str, takes_options: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run, takes_options=takes_options)
        return sub

    sub = command(
        "train", _train, "Train from a TOML config; any option as --section.key VALUE or section.key=VALUE.", True
    )
    sub.add_argument("config", type=Path, help="a file such as configs/rlv-sums.toml")
    sub.add_argument("--out", type=Path, help="run directory (default: runs/ and the config's name)")
    sub.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run directory")
    sub.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")

    sub = command("eval", _eval, f"Evaluate a model on a task. Options: {_options('evals.run', 'Eval')}.", True)
    sub.add_argument("model", help="a directory, a run directory, a hub name, or 'tiny' (ships with the package)")
    sub.add_argument(
        "--task", default="sums", help="sums, countdown, letters (sums:level=4), gsm8k, math500, gym:NAME, or a file"
    )
    sub.add_argument(
        "--out", type=Path, help="evaluation directory (default: runs/eval-MODEL-TASK); what it holds is not done again"
    )
    sub.add_argument("--name", help="name in reports (default: the model's)")
    sub.add_argument("--prompt-column", help="for a file: the column with the question")
    sub.add_argument("--answer-column", help="for a file: the column with the answer")
    sub.add_argument("--verifier", help="another model that scores the samples (default: the model itself)")
    sub.add_argument("--system", help="system prompt")

    sub = command("report", _report, "Tables and figures from saved evaluations; needs no model.")
    sub.add_argument("runs", nargs="+", type=Path, help="evaluation or run directories")
    sub.add_argument("--out", type=Path, help="where report.html and report.json go (default: the first directory)")
    sub.add_argument("--baseline", help="name of the evaluation to compare with (default: the first)")

    sub = command("solve", _solve, f"Solve one problem. Options: {_options('compute.solve', 'Plan')}.", True)
    sub.add_argument("model", help="as for eval")
    sub.add_argument("problem", help="the problem's text")
    sub.add_argument("--system", help="system prompt")
    sub.add_argument("--json", action="store_true", help="one JSON object instead of text")

    sub = command("serve", _serve, "Serve a model over HTTP: OpenAI's API, and a page to try it.")
    sub.add_argument("model", help="as for eval")
    sub.add_argument("--host", default="127.0.0.1", help="other than this machine itself needs a key (%(default)s)")
    sub.add_argument("--port", type=int, default=8000, help="0 takes any that is free (%(default)s)")
    sub.add_argument("--api-key-file", type=Path, help="a file with the key (or set TWOFOLD_API_KEY)")
    sub.add_argument("--concurrent", type=int, default=64, help="requests worked on at once (%(default)s)")
    sub.add_argument("--queue", type=int, default=64, help="requests that may wait beyond them (%(default)s)")
    sub.add_argument("--grace", type=float, default=30.0, help="seconds to finish in after SIGTERM (%(default)s)")
    sub.add_argument("--system", help="system prompt, where a conversation brings none")

    sub = command(
        "demo",
        _demo,
        "Train and evaluate the shipped model on procedural maths, and write a report (about 6 minutes on 2 cores).",
    )
    sub.add_argument("--out", type=Path, default=Path("runs/demo"))
    sub.add_argument("--seed", type=int, default=0)
    return parser


def _options(module: str, name: str) -> str:
    """The fields of a light config class, for --help (none of these modules loads torch)."""
    from importlib import import_module

    return ", ".join(f"--{f.name}" for f in fields(getattr(import_module(f"twofold.{module}"), name)))


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import config as configs
    from twofold import run

    config = configs.override(configs.load(run.Config, args.config, run.ALIASES), rest, run.ALIASES)
    if args.dry_run:
        print(configs.to_toml(config), end="")
        return 0
    out = args.out or Path("runs") / args.config.stem
    print(f"saved {run.train(config, out, resume=args.resume)}")
    return 0


def _eval(args: argparse.Namespace, rest: list[str]) -> int:
    from dataclasses import replace

    from rich.progress import Progress

    from twofold import config as configs
    from twofold import run
    from twofold.evals.report import print_table, report

    chosen = run.task_named(args.task)
    if isinstance(chosen, run.Data):
        chosen = replace(chosen, prompt_column=args.prompt_column, answer_column=args.answer_column)
    config = configs.override(run.Eval(), rest)
    task = run.make_task(chosen)
    if isinstance(chosen, run.Data):
        size = len(task)  # type: ignore[arg-type]
        print(f"{args.task}: {size} problems; {task.columns}")  # type: ignore[attr-defined]
        config = replace(config, problems=min(config.problems, size))
    safe = f"eval-{Path(args.model).name}-{Path(args.task).stem}".replace(":", "-").replace("=", "-")
    out = args.out or Path("runs") / safe
    model = run.load(args.model, system=args.system)
    with Progress() as bar:
        line = bar.add_task("evaluating", total=config.problems)
        run.evaluate(
            model,
            task,
            config,
            out=out,
            name=args.name,
            verifier=run.load(args.verifier) if args.verifier else None,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    print_table(report([out], out))
    print(f"report: {out / 'report.html'}")
    return 0


def _report(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.evals.report import print_table, report

    out = args.out or args.runs[0]
    print_table(report(args.runs, out, args.baseline))
    print(f"report: {out / 'report.html'}")
    return 0


def _solve(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold import config as configs
    from twofold import run

    solution = run.solve(run.load(args.model, system=args.system), args.problem, configs.override(run.Plan(), rest))
    if args.json:
        print(json.dumps(asdict(solution)))
        return 0
    print(solution.text.strip())
    total = sum(solution.votes.values()) or 1.0
    votes = "  ".join(f"{answer}: {weight / total:.0%}" for answer, weight in list(solution.votes.items())[:5])
    print(
        f"\nanswer {solution.answer}  confidence {solution.confidence:.0%}\nvotes  {votes or 'none: no sample gave an answer'}"
    )
    print(
        f"cost   {solution.generated_tokens} tokens generated, {solution.judge_tokens} read to judge, {solution.seconds:.1f} s"
    )
    return 0


def _serve(args: argparse.Namespace, rest: list[str]) -> int:
    import logging

    from twofold import run

    try:
        from twofold.serve.server import read_key, serve
    except ImportError as error:
        raise ImportError(f"{error}: serving needs an extra, pip install 'twofold[serve]'") from error
    from twofold.serve.service import Limits

    if args.concurrent < 1 or args.queue < 0 or args.grace < 0:
        raise ValueError("--concurrent must be at least 1, --queue and --grace at least 0")
    key = read_key(args.api_key_file, args.host)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    limits = Limits(concurrent=args.concurrent, queue=args.queue, grace=args.grace)
    serve(run.service(run.load(args.model, system=args.system), limits), args.host, args.port, key)
    return 0


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    from twofold.demo import demo

    demo(args.out, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
