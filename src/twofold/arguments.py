"""What the command line takes: its commands, their arguments, and the help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

from twofold import __version__
from twofold.ranges import Count, NonNegative, Positive, Range, Seed, Share, Whole, ranges_in

Port = Annotated[int, Range(ge=0, le=65535)]
Run = Callable[[argparse.Namespace, list[str]], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ({self.prog} --help shows the arguments)")


def parser(commands: Mapping[str, Run]) -> argparse.ArgumentParser:
    """Return the parser. ``commands`` has the function of each command, which gets the arguments and the options left over.

    A mistake is a ValueError.
    """
    found = _Parser(
        prog="twofold",
        description="Train, evaluate and use one language model that solves problems and judges its own solutions.",
        epilog="twofold COMMAND --help shows the arguments of a command.",
    )
    found.add_argument("--version", action="version", version=f"twofold {__version__}")
    subparsers = found.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, help: str, options: str | None = None) -> argparse.ArgumentParser:
        """Add a command. ``options`` describes its options that a config class has, if it takes such options."""
        description = f"{help} {options}" if options else help
        sub = subparsers.add_parser(name, help=help, description=description, allow_abbrev=False)
        sub.set_defaults(run=commands[name], takes_options=options is not None, error=sub.error)
        return sub

    _add_training(command)
    _add_evaluation(command)
    _add_use(command)
    return found


def _add_training(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "train",
        "Train a model as a TOML config says.",
        "Every option of the config may be set as --section.key VALUE or section.key=VALUE; --dry-run prints them all.",
    )
    sub.add_argument("config", type=Path, help="a file, or the name of a config of the package, such as rlv-sums")
    sub.add_argument(
        "--out", metavar="DIR", type=Path, help="run directory (default: runs/NAME for a config NAME.toml)"
    )
    sub.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in the run directory")
    sub.add_argument(
        "--accept-changed",
        metavar="WHAT",
        action="append",
        default=[],
        help="resume though this is not what the run began with: data, model, tokenizer, template or code (may be repeated)",
    )
    sub.add_argument("--dry-run", action="store_true", help="print the complete config, and do not train")

    _add_plan(command)

    sub = command("show", "Print what the model wrote at one step of a run.")
    sub.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory")
    sub.add_argument(
        "--step", metavar="N", type=_number(Whole), help="the step to show (default: the last one that was written)"
    )
    sub.add_argument("--full", action="store_true", help="print whole texts (default: at most 20 lines of each)")

    sub = command(
        "watch", "Show a run's curves and last rollouts on a page of this machine, while it trains or afterwards."
    )
    sub.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory, which another process may write")
    sub.add_argument(
        "--port", metavar="N", type=_number(Port), default=8001,
        help="port to listen on; 0: any free one (default: %(default)s)",
    )  # fmt: skip

    about = "Train and evaluate the shipped model on procedural maths, and write a report (3 to 7 minutes on 2 cores)."
    sub = command("demo", about)
    sub.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/demo"), help="directory (%(default)s)")
    sub.add_argument("--seed", metavar="N", type=_number(Seed), default=0, help="seed of both runs (%(default)s)")


def _add_plan(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "plan",
        "Estimate the memory, time and money of a training run before it is started.",
        "Options of the config may be set as for train. It loads no model and needs no GPU.",
    )
    sub.add_argument("config", type=Path, help="a file, or the name of a config of the package such as rlv-sums")
    sub.add_argument(
        "--model",
        help="sizes of the model: a directory with config.json, a name such as qwen2.5-7b, or "
        "hidden=N,layers=N,heads=N,kv_heads=N,ffn=N,vocabulary=N (default: the config's model)",
    )
    sub.add_argument(
        "--machine", choices=("h100", "h200", "a100", "cpu"), default="h100",
        help="what it will run on; cpu: two cores (default: %(default)s)",
    )  # fmt: skip

    def number(option: str, kind: Any, help: str, default: int | None = None) -> None:
        metavar = "X" if kind is Positive else "N"
        sub.add_argument(option, metavar=metavar, type=_number(kind), default=default, help=help)

    number("--devices", Count, "devices in all (%(default)s)", 1)
    number("--tensor-parallel", Count, "devices that sample as one (%(default)s)", 1)
    number("--prompt", Count, "mean tokens of a prompt (%(default)s)", 128)
    number("--completion", Count, "mean tokens of a rollout (default: half of rollout.max_tokens)")
    number("--parts", Count, "steps of a solution, episodes of a thought (%(default)s)", 8)
    number("--tflops", Positive, "TFLOP/s of a large matrix product (default: the machine's)")
    number("--tbytes", Positive, "TB/s of a device's memory (default: the machine's)")
    number("--memory", Positive, "GiB of a device (default: the machine's)")
    number("--price", Positive, "money for an hour of a device (default: the machine's)")
    sub.add_argument("--json", action="store_true", help="print one JSON object with all numbers")


def _add_evaluation(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("eval", "Evaluate a model on a task, and write a report.", _options("evals.run", "Eval"))
    sub.add_argument("model", help="a directory, a run, a GGUF file, a hub name, or tiny (ships with the package)")
    what = sub.add_mutually_exclusive_group()
    what.add_argument(
        "--task",
        default="sums",
        help="sums, countdown, letters, code (with options: sums:level=4), gsm8k, math500, gym:NAME, mine.py:Task, or a file "
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
    _add_data(sub)
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
    sub.add_argument(
        "--fleet",
        metavar="OPTIONS",
        help="sample in the workers of a Ray cluster, such as workers=8,gpus=1,address=auto (docs/engines.md)",
    )

    _add_verifiers(command)

    sub = command("report", "Write tables and figures from saved evaluations. This needs no model.")
    sub.add_argument("runs", nargs="+", type=Path, help="evaluation or run directories")
    sub.add_argument(
        "--out", metavar="DIR", type=Path, help="where report.html and report.json go (default: the first directory)"
    )
    sub.add_argument("--baseline", metavar="NAME", help="the evaluation to compare with (default: the first)")
    _add_report_options(sub)

    sub = command("calibrate", "Fit and print the six numbers of rule=posterior and stop=posterior.")
    sub.add_argument(
        "runs", nargs="+", type=Path, help="evaluation or run directories whose problems are used for nothing else"
    )


def _add_verifiers(command: Callable[..., argparse.ArgumentParser]) -> None:
    about = "Measure how often a model calls solutions right that are made to fool it."
    sub = command("audit", about, _options("evals.audit", "Audit"))
    sub.add_argument("model", help="as for eval")
    sub.add_argument("--task", default="sums", help="as for eval (default: %(default)s)")
    sub.add_argument("--out", metavar="DIR", type=Path, help="where audit.json goes (default: runs/audit-MODEL-TASK)")
    _add_prompts(sub)
    _add_upstream(sub)

    about = "Measure how well a model finds the first wrong step of solutions."
    sub = command("critic", about, _options("evals.critic", "Critic"))
    sub.add_argument("model", help="as for eval; for a run with two models, the verifier's checkpoint")
    sub.add_argument(
        "cases", help="sums, letters or countdown (with planted errors), a file, or a split of ProcessBench"
    )
    sub.add_argument("--number", metavar="N", type=_number(Count), default=200, help="number of cases (%(default)s)")
    sub.add_argument(
        "--tune-on", metavar="CASES", help="for how=p_yes: choose the threshold on these other cases first"
    )
    _add_prompts(sub)


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--prompt-column", metavar="NAME", help="for a data set: the column with the question")
    sub.add_argument("--answer-column", metavar="NAME", help="for a data set: the column with the answer")
    sub.add_argument("--extract", choices=("boxed", "stated", "number"), help="where answers may stand")
    sub.add_argument("--skip-bad", action="store_true", help="for a data set: leave out malformed rows, and say which")
    sub.add_argument(
        "--skip-long",
        action="store_true",
        help="for a data set: leave out problems that are too long for the model's context, and say how many",
    )


def _add_report_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--caps",
        metavar="N,N,...",
        type=_caps,
        default=[],
        help="show accuracy for each of these token caps and each number of samples, such as 64,128,256",
    )
    sub.add_argument(
        "--optimal",
        action="store_true",
        help="choose a plan for each problem by its difficulty, which a pilot estimates: among the plans given, or among "
        "the majority vote, best-of-n, the weighted vote and the posterior",
    )


def _add_use(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("solve", "Solve problems with a test-time plan.", _options("compute.plan", "Plan"))
    sub.add_argument("model", help="as for eval")
    sub.add_argument("problem", help="the problem's text, or a file of problems: one per line, or JSON lines")
    sub.add_argument("--plan", help="such as weighted-16 or posterior-40:stop=posterior,threshold=0.95")
    sub.add_argument(
        "--abstain", type=_number(Share), default=0.5, metavar="P",
        help='say "not sure" below this confidence (default: %(default)s, more likely wrong than right; 0 always answers)',
    )  # fmt: skip
    _add_prompts(sub)
    _add_upstream(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON object per problem instead of text")

    sub = command("serve", "Serve a model over HTTP: OpenAI's API, and a page to try it.")
    sub.add_argument("model", help="as for eval")
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; one that other machines reach needs a key (%(default)s)",
    )
    sub.add_argument(
        "--port", metavar="N", type=_number(Port), default=8000,
        help="port to listen on; 0: any free one (default: %(default)s)",
    )  # fmt: skip
    sub.add_argument("--api-key-file", metavar="FILE", type=Path, help="a file with the key (or set TWOFOLD_API_KEY)")
    sub.add_argument(
        "--concurrent", metavar="N", type=_number(Count), default=64, help="requests that run at once (%(default)s)"
    )
    sub.add_argument(
        "--queue", metavar="N", type=_number(Whole), default=64, help="further requests that may wait (%(default)s)"
    )
    sub.add_argument(
        "--prompt-tokens", metavar="N", type=_number(Count), default=131072,
        help="tokens that the prompts of all these requests may have together (%(default)s)",
    )  # fmt: skip
    sub.add_argument(
        "--grace", metavar="SECONDS", type=_number(NonNegative), default=30.0,
        help="seconds for running requests to finish after SIGTERM (%(default)s)",
    )  # fmt: skip
    _add_prompts(sub)
    _add_upstream(sub)

    sub = command("convert", "Write the model of a GGUF file, or an adapter with its base, as a plain model directory.")
    sub.add_argument("file", metavar="SOURCE", type=Path, help="a GGUF file, or an adapter's checkpoint directory")
    sub.add_argument("out", metavar="DIR", type=Path, help="a new directory; its weights are fp32")

    sub = command(
        "card", "Print the model card of a run's newest checkpoint: base, method, figures, how to judge with it."
    )
    sub.add_argument(
        "run_directory", metavar="RUN", type=Path, help="a run directory; evaluations in RUN/evals are reported"
    )
    sub.add_argument("--write", action="store_true", help="write it to RUN/README.md instead")

    sub = command("push", "Publish a run's newest checkpoint on the hub, with its model card.")
    sub.add_argument("run_directory", metavar="RUN", type=Path, help="a run directory")
    sub.add_argument("repo", metavar="OWNER/NAME", help="the model's name on the hub")
    sub.add_argument("--private", action="store_true", help="if the repository is made, make it private")
    sub.add_argument("--dry-run", action="store_true", help="list what would be published, and publish nothing")


def _add_prompts(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--system", metavar="TEXT", help="system prompt (serve: of conversations that have none)")
    sub.add_argument("--enable-thinking", choices=["true", "false"], help="for the chat template (default: as trained)")
    sub.add_argument(
        "--think-end", metavar="TEXT", help="what ends a thought (default: </think>, if the template has it)"
    )
    sub.add_argument(
        "--opening", metavar="TEXT", help="what every solution begins with, such as <think> (default: as trained)"
    )


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


def _options(module: str, name: str) -> str:
    """Return a sentence that lists the fields of a config class, for --help. None of these modules loads torch."""
    names = [f"--{f.name}" for f in fields(getattr(import_module(f"twofold.{module}"), name))]
    return f"Further options, each as --name VALUE or name=VALUE: {', '.join(names)}."


def _caps(text: str) -> list[int]:
    return [_number(Count)(cap) for cap in text.split(",")]


_caps.__name__ = "list of numbers of tokens"  # "invalid list of numbers of tokens value: 'x'"


def _number(kind: Any) -> Callable[[str], Any]:
    """Return a reader of numbers of this type and within its range, for ``add_argument``."""
    number, (allowed,) = kind.__origin__, ranges_in(kind)

    def read(text: str) -> Any:
        value = number(text)
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text}")
        return value

    read.__name__ = "whole number" if number is int else "number"  # "invalid whole number value: 'x'"
    return read
