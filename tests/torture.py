"""Kill a training run again and again, and compare every bit of its end with a run that was never stopped.

    python tests/torture.py --kills 200
    python tests/torture.py --kills 200 --all     # and the other reliability tests in full: `make torture`

Each kill is a SIGKILL from outside at a random time of a chosen phase: while a checkpoint is saved, the model generates, a verdict
is asked, an evaluation runs, or a resume begins. Then, one at a time, parts of a checkpoint's state are dropped: the comparison
must see each. Two runs are taken in turn: Tango with two models and AdamW, and RL^V with a scalar head and Muon.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors.torch import load_file, save_file

from twofold import toml, training
from twofold.config import Config
from twofold.engines.native import NativeEngine
from twofold.maths.stats import verifier_metrics
from twofold.models.checkpoints import MANIFEST, OPTIMIZER, STATE, seal
from twofold.models.io import load_model
from twofold.recipes import tango
from twofold.run import shipped
from twofold.trainer import checkpoint

ROOT = Path(__file__).parents[1]
CLOCKS = {"step_time", "collect_time", "update_time"}
SHARED = [
    "train.steps=6", "train.save_every=2", "eval.every=3", "eval.problems=4", "eval.n=2", "loss.beta=0.1",
    "optim.schedule=linear", "optim.warmup=0", "optim.lr=1e-3", "rollout.problems=3", "rollout.max_tokens=24",
]  # fmt: skip
RUNS = {
    "tango": [
        "recipe.share=false", "recipe.verifier_warmup=1", "recipe.generator_updates=1", "recipe.rollouts=3",
        "recipe.verifier_tokens=24",
    ],
    "head": [
        "recipe.name=rlv", "recipe.verify=bce", "recipe.rollouts=3", "optim.name=muon", "train.epochs=2", "train.minibatches=2",
    ],
}  # fmt: skip
PHASES: dict[bytes, tuple[str, Any, str]] = {
    b"s": ("saving", checkpoint, "save"),
    b"g": ("generating", NativeEngine, "generate"),
    b"v": ("judging", tango, "verify"),
    b"j": ("asking P(Yes)", training, "judge_all"),
    b"e": ("evaluating", training, "evaluate_step"),
    b"r": ("resuming", training, "newest_good"),
}
OFTEN = {b"s": 5, b"j": 2, b"e": 2}
"""How much more often than once a phase is chosen: a save is where a kill could do most harm."""

OTHERS = {
    "the full forms": ["-m", "torture"],
    "slow tests of the same promises": [
        "-m", "slow", "tests/test_durable.py", "tests/test_grading.py", "tests/test_labelled.py", "tests/test_serve_overload.py",
    ],
}  # fmt: skip
"""Other reliability tests in full: what pytest is asked for."""


def config(name: str) -> Config:
    return toml.override(toml.load(Config, ROOT / "configs" / "tango-sums.toml"), [*RUNS[name], *SHARED])


def start(name: str, out: Path) -> tuple[int, int]:
    """Train in a forked process. Return its id, and a pipe on which it tells, by a letter, where it enters and leaves a phase."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for letter, (_, owner, function) in PHASES.items():
            setattr(owner, function, told(write, letter, getattr(owner, function)))
        training.train(config(name), out, resume=(out / "config.toml").exists())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def told(pipe: int, letter: bytes, act: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        os.write(pipe, letter)
        found = act(*args, **options)
        os.write(pipe, letter.upper())
        return found

    return call


def letters(pipe: int) -> Iterator[bytes]:
    while letter := os.read(pipe, 1):
        yield letter
    os.close(pipe)


def ended(child: int, out: Path) -> bool:
    """Wait for the process. Return whether it came to its end; it may else only have been killed."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run failed, see {out.with_suffix('.log')}:\n{out.with_suffix('.log').read_text()[-3000:]}")
    return status == 0


def straight(name: str, out: Path) -> dict[bytes, float]:
    """Train without a stop. Return the median seconds of each phase."""
    child, pipe = start(name, out)
    began: dict[bytes, float] = {}
    seconds: dict[bytes, list[float]] = {b"r": [0.02]}
    for letter in letters(pipe):
        if letter in PHASES:
            began[letter] = time.monotonic()
        else:
            seconds.setdefault(letter.lower(), []).append(time.monotonic() - began[letter.lower()])
    assert ended(child, out)
    return {letter: median(values) for letter, values in seconds.items()}


def bits(out: Path) -> dict[str, str]:
    """Return a hash of all that a run leaves but clocks: every file of its last checkpoint, logs and evaluations."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or path.name in (".lock", "eval.json"):
            continue
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in data.splitlines()]
            data = repr([{k: v for k, v in row.items() if k not in CLOCKS | {"seconds"}} for row in rows]).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [name for name in {**a, **b} if a.get(name) != b.get(name)]


def killed(name: str, root: Path, kills: int, rng: random.Random) -> tuple[Counter[str], int, float]:
    """Kill runs ``kills`` times in all. Return how many of these were inside each phase, and how many runs came to their end.

    Raises SystemExit if one of them differs from the run that was never stopped.
    """
    reference = root / f"{name}-straight"
    usual = straight(name, reference)
    expected, inside, runs, done = bits(reference), Counter[str](), 0, 0
    began = time.monotonic()
    while True:
        out = root / f"{name}-{runs}"
        (phase,) = rng.choices(sorted(usual), [OFTEN.get(letter, 1) for letter in sorted(usual)])
        nth = 1 if phase == b"r" else rng.randint(1, 2)
        child, pipe = start(name, out)
        told, last = Counter[bytes](), done >= kills
        for letter in letters(pipe):
            told[letter] += 1
            if letter == phase and told[phase] == nth and not last:
                time.sleep(rng.uniform(0, usual[phase]))
                os.kill(child, signal.SIGKILL)
        if not ended(child, out):
            done += 1
            inside |= {PHASES[x][0]: inside[PHASES[x][0]] + 1 for x in PHASES if told[x] > told[x.upper()]}
            continue
        if wrong := different(bits(out), expected):
            raise SystemExit(f"{out} was killed and resumed, and differs in {', '.join(wrong)}")
        shutil.rmtree(out)
        runs += 1
        if last:
            return inside, runs, (time.monotonic() - began) / max(1, done)


# ---------------------------------------------------------------- parts of the state, dropped


def change(file: str, part: str, new: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        names = [name for name in tensors if part in name]
        assert names, f"{file} has no {part}"
        save_file(
            {k: new(v) if k in names else v for k, v in tensors.items()}, folder / file, {"format": "pt", "kind": "bce"}
        )

    return apply


def forgotten(name: str, amount: int | None = None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        state[name] = dict.fromkeys(state[name], 1.0) if amount is None else state[name] - amount
        (folder / STATE).write_text(json.dumps(state))

    return apply


def started(folder: Path) -> None:
    """Put the weights back that training began with."""
    own = load_file(folder / "model.safetensors").keys()
    base = load_model(shipped(), device="cpu")[0].state_dict()
    save_file({name: base[name].clone() for name in own}, folder / "model.safetensors", {"format": "pt"})


def bit(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten().clone()
    flat.view(torch.int32)[0] ^= 1
    return flat.view_as(x)


def lines(folder: Path) -> None:
    for log in ("metrics.jsonl", "rollouts.jsonl"):
        path = folder.parent.parent / log
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def within(role: str, act: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: act(folder / role)


DROPPED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "the policy's weights": ("tango", started),
    "the last bit of one weight": ("tango", change("model.safetensors", "norm", bit)),
    "the policy's first moments": ("tango", change(OPTIMIZER, "/exp_avg", torch.zeros_like)),
    "the policy's second moments": ("tango", change(OPTIMIZER, "/exp_avg_sq", lambda x: 4 * x)),
    "the policy's optimiser step": ("tango", change(OPTIMIZER, "/step", lambda x: x - 1)),
    "the policy's place in its schedule": ("tango", forgotten("learner_step", 1)),
    "the recipe's moving averages": ("tango", forgotten("recipe")),
    "the place in the data": ("tango", forgotten("step", 1)),
    "the lines of the logs": ("tango", lines),
    "the verifier's weights": ("tango", within("verifier", started)),
    "the verifier's first moments": ("tango", within("verifier", change(OPTIMIZER, "/exp_avg", torch.zeros_like))),
    "the verifier's second moments": ("tango", within("verifier", change(OPTIMIZER, "/exp_avg_sq", lambda x: 4 * x))),
    "the verifier's optimiser step": ("tango", within("verifier", change(OPTIMIZER, "/step", lambda x: x - 1))),
    "the verifier's place in its schedule": ("tango", within("verifier", forgotten("learner_step", 1))),
    "the weights of the head": ("head", change("head/value_head.safetensors", "weight", torch.zeros_like)),
    "Muon's momentum": ("head", change(OPTIMIZER, "/momentum", torch.zeros_like)),
}


def dropped(name: str, root: Path) -> bool:
    """Resume from a checkpoint without a part of its state, and return whether the comparison sees it."""
    run, drop = DROPPED[name]
    reference = root / f"{run}-straight"
    if not reference.exists():
        straight(run, reference)
    out = shutil.copytree(reference, root / "dropped")
    shutil.rmtree(out / "checkpoints" / "step-6")
    folder = out / "checkpoints" / "step-4"
    drop(folder)
    for manifest in sorted(folder.rglob(MANIFEST), reverse=True):  # a second model's before the one that lists it
        manifest.unlink()
        seal(manifest.parent.parent, 4)
    child, pipe = start(run, out)
    for _ in letters(pipe):
        pass
    assert ended(child, out)
    later = [n for n in different(bits(out), bits(reference)) if not n.startswith("checkpoints/step-4/")]
    shutil.rmtree(out)
    return bool(later)


def warm() -> None:
    """Import here, once, what every run imports on its way: the forked processes have it then."""
    model, _ = load_model(shipped(), device="cpu")
    torch.optim.AdamW(model.parameters())
    verifier_metrics([0.1, 0.9], [False, True])


def others(words: list[str]) -> tuple[str, bool]:
    """Run tests with pytest, and show what it and they say. Return its last line, and whether all passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "--show-capture", "stdout", "--timeout", "1800", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        line = ""
        for line in tests.stdout:
            print(line, end="", flush=True)
    return line.strip(), tests.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--drop", type=int, default=len(DROPPED), help="how many parts of the state are dropped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="run the other reliability tests in full as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warm()
    rng, began, said = random.Random(args.seed), time.monotonic(), list[str]()

    def say(line: str) -> None:
        minutes = (time.monotonic() - began) / 60
        said.append(f"{minutes:5.1f} min  {line}")
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for name in args.runs:
            inside, ends, seconds = killed(name, Path(folder), args.kills // len(args.runs), rng)
            where = ", ".join(f"{phase} {n}" for phase, n in inside.most_common())
            say(f"{name}: {args.kills // len(args.runs)} kills ({where}), {seconds:.1f} s each")
            say(f"{name}: {ends} of {ends} runs ended with the bits of the run that was never stopped")
        names = list(DROPPED)[:: max(1, len(DROPPED) // max(1, args.drop))][: args.drop]
        missed = [name for name in names if not dropped(name, Path(folder))]
    say(f"{len(names) - len(missed)} of {len(names)} parts of the state, dropped, were seen")
    failed = [f"not seen: {', '.join(missed)}"] if missed else []
    for name, words in OTHERS.items() if args.all else ():
        line, passed = others(words)
        say(f"{name}: {line}")
        failed += [] if passed else [f"{name} failed: {line}"]
    if args.all:
        print("\nAll figures:", *said, sep="\n")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
