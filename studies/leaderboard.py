"""Every way to make one model solve and verify: from one start, on the same held-out problems, at equal tokens and equal seconds.

    python studies/leaderboard.py --jobs 16                          # the shipped model; 16 processes of one thread
    python studies/leaderboard.py --config configs/rlv-smollm2.toml --model SMOLLM2 --start 200 5e-5 --warm 16 1e-4 --out runs/large
    python studies/leaderboard.py --table                            # only read OUT/*.json; write OUT/table.md and OUT/figure.png

OUT/METHOD-SEED.json has what the table needs of one training and its evaluation, OUT/METHOD.time.json the seconds of an answer. What
is done is not done again. Without --jobs all is done in this process, on a GPU if there is one. A method or a plan that this twofold
does not know is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import leaderboard_table
import numpy as np
import smollm2
from numpy.typing import NDArray

from twofold import run, toml, training
from twofold.compute.judge import judge_all
from twofold.compute.plan import Plan, parse
from twofold.compute.rollout import rollouts
from twofold.config import Config
from twofold.durable import read_lines, write_text
from twofold.engines.base import PolicyEngine
from twofold.evals.calibrated import halves, replay_halves
from twofold.evals.plans import RUNS
from twofold.evals.pools import POOLS, read_pools
from twofold.evals.run import Eval
from twofold.evals.saved import load_evaluations
from twofold.maths.stats import verifier_metrics
from twofold.maths.stopping import Adaptive, Posterior
from twofold.models.checkpoints import latest_checkpoint
from twofold.models.io import chat_options
from twofold.recipes.rlv import RLV
from twofold.tasks.stream import first
from twofold.types import Sampling


@dataclass(frozen=True)
class Method:
    """A line of the leaderboard.

    ``options`` change the config, also that of a start which is not ``trained``. ``judge`` scores the samples (options of
    ``Judging``). ``plans`` are strategies that cannot be read from saved samples: each is run for several k.
    """

    title: str
    options: tuple[str, ...] = ()
    judge: tuple[str, ...] = ("judge.name=p_yes",)
    plans: tuple[str, ...] = ()
    trained: bool = True


NOTE = "training.json"
SURE = 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98
"""Thresholds of adaptive consistency: the points of its curve."""
FALLING = [(s, 0.25) for s in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)] + [
    (1, d) for d in (0.25, 0.15, 0.1, 0.05, 0.02)
]
"""The posterior's thresholds and how they fall: values chosen on problems 100 to 179 of the test split, which no result is from."""
THINK = ('chat.opening="<think>\\n"',)
LONG = (*THINK, "rollout.max_tokens=128")
CHECK = "Check each step, then the whole solution."
PLAIN = "recipe.verify=none", "recipe.adversarial=0"
HEAD = ("judge.name=head",)
VERDICT = 'reward=["correct"]', "reward_weights=[0.0]", "loss.beta=8"
"""No reward and a strong KL term: the verdict is all that is learnt. 8 was chosen where the thresholds above were."""
PAIRS = "best-{k}:judge=pairs", "weighted-{k}:judge=pairs", "weighted-{k}:judge=pairs,answers=true,budget=1,both=false"
MRT = (
    *LONG, "recipe.name=mrt", 'recipe.prover.hurry=""', 'recipe.prover.answer="\\n\\\\boxed{"', "recipe.prover.tokens=8",
    "recipe.episodes.shortest=1", "recipe.episodes.most=5", "optim.lr=2e-4", "loss.beta=0", "loss.normalise=sequence",
)  # fmt: skip
METHODS = {
    "none": Method("the start", trained=False),
    "rl": Method("plain RL", PLAIN, plans=("majority-{k}:make=rsa,k=2",)),
    "rl2": Method("plain RL, twice the steps", PLAIN),
    "rlv": Method("RL^V, generative"),
    "verdict": Method("RL^V's verdict alone", VERDICT),
    "last_token": Method(
        "RL^V, last token (LaSeR)",
        ("recipe.verify=last_token", "recipe.balance=weights", "recipe.lam=5", "recipe.adversarial=0"),
        ("judge.name=last_token",),
    ),
    "pairs": Method("RL^V, pairs (V1)", ("recipe.verify=pairs", "recipe.balance=all", "recipe.adversarial=0"), plans=PAIRS),
    "bce": Method("RL^V, classification head", ("recipe.verify=bce",), HEAD),
    "regression": Method("RL^V, regression head", ("recipe.verify=regression",), HEAD),
    "separate": Method("RL^V, separate verifier", ("recipe.verify=separate",)),
    "rlcr": Method("RLCR", ("recipe.name=rlcr", "recipe.credit=split", "recipe.lam=10"), ("judge.name=stated",)),
    "tango": Method(
        "Tango",
        ("recipe.name=tango", "recipe.rollouts=5", "recipe.verifier_warmup=4", "recipe.cut=lines",
         f"recipe.question={CHECK}", "recipe.verifier_tokens=80", "optim.lr=3e-4"),
        ("judge.name=written", f"judge.question={CHECK}", "judge.tokens=80"),
    ),
    "think": Method("the start, thinking", THINK, trained=False),
    "think_rlv": Method("RL^V, thinking", THINK),
    "think_verdict": Method("RL^V's verdict alone, thinking", (*THINK, *VERDICT)),
    "long": Method("the start, thinking long", LONG, trained=False),
    "grpo": Method("GRPO, thinking long", (*MRT, "recipe.method=grpo", "recipe.rollouts=6")),
    "mrt": Method("MRT (RL)", (*MRT, "recipe.method=rl")),
    "likelihood": Method("MRT, likelihood", (*MRT, "recipe.method=online", "recipe.progress=likelihood")),
}  # fmt: skip
"""In the order of the table."""


# --- one method, one seed -----------------------------------------------------------------------------------------------------


def shared(args: argparse.Namespace) -> Config:
    """Return what all trainings share. ``--set KEY=VALUE`` is for all methods, ``--set METHOD:KEY=VALUE`` for one."""
    config = toml.override(toml.load(Config, args.config), [s for s in args.set if s.partition(":")[0] not in METHODS])
    return replace(config, model=args.model or config.model)


def config_of(name: str, seed: int, args: argparse.Namespace) -> Config:
    """Return a method's training."""
    own = [text for method, _, text in (s.partition(":") for s in args.set) if method == name]
    config = toml.override(shared(args), [*METHODS[name].options, "log.rollouts=0", *own, f"train.seed={seed}"])
    if args.start:
        config = replace(config, model=str(latest_checkpoint(args.out / "runs" / "start")))
    if isinstance(config.recipe, RLV):
        config = replace(config, recipe=replace(config.recipe, score_every=0))
    return replace(config, train=replace(config.train, steps=config.train.steps * (2 if name == "rl2" else 1)))


def eval_of(name: str, seed: int, args: argparse.Namespace) -> tuple[Eval, dict[str, list[Plan]]]:
    """Return how a method is evaluated, and its plans: one for each k of a strategy."""
    rollout, plans = config_of(name, seed, args).rollout, {}
    drawn = {"temperature": rollout.temperature, "max_tokens": rollout.max_tokens, "seed": seed}
    settings = Eval(problems=args.problems, n=args.n, batch=args.batch, **drawn)
    several = powers(min(args.most, args.n))[1:]
    for text in METHODS[name].plans if several else ():
        try:
            plans[text] = [parse(text.format(k=k), Plan(**drawn)) for k in several]
        except toml.ConfigError as error:
            print(f"left out {name}, {text}: {error}", flush=True)
    return toml.override(settings, METHODS[name].judge), plans


def stopping(name: str, settings: Eval) -> dict[str, list[Plan]]:
    """Return the plans that draw until they are sure: adaptive consistency, and our posterior. Their curves have no k.

    The posterior looks after 1, 2, 4, 8 ... samples. If the model thinks, half of its samples have no answer, so it looks after
    every quarter more, and its cheapest points are those where few samples may be drawn. Also chosen on problems 100 to 179.
    """
    thinks = set(THINK) <= set(METHODS[name].options)
    few = [(k, 0.3, 0.25) for k in powers(settings.n // 2)[1:]] if thinks else []
    falling = few + [(settings.n, sure, decay) for sure, decay in FALLING if sure >= 0.3 or not thinks]
    posterior = Plan(
        settings.n, "posterior", temperature=settings.temperature, max_tokens=settings.max_tokens, judge=settings.judge
    )
    majority, growth = replace(posterior, rule="majority"), 0.25 if thinks else 1.0
    return {
        "maj_stop": [replace(majority, stop=Adaptive(threshold=sure)) for sure in SURE],
        "posterior_stop": [
            replace(posterior, n=n, stop=Posterior(threshold=sure, decay=decay, growth=growth))
            for n, sure, decay in falling
        ],
    }


def powers(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]


def train(config: Config, folder: Path, title: str) -> Path:
    """Train, unless it is done, and note what it cost in ``training.json``. What was interrupted begins again.

    ``computed`` are the tokens that went through the engines: drawn, and read for verdicts and for the KL term. ``learnt``
    are those that went through the learner.
    """
    if not (folder / NOTE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        engines: list[Any] = []

        def engine(model: Any) -> PolicyEngine:
            engines.append(training.make_engine(config, model))
            return engines[-1]

        training.train(config, folder, engine=engine, title=title)
        steps = read_lines(folder / "metrics.jsonl")
        learnt = config.train.epochs * sum(v for s in steps for key, v in s.items() if key.endswith("num_tokens"))
        cost = {"computed": sum(e.usage.computed for e in engines), "learnt": learnt}
        cost |= {"steps": len(steps), "seconds": sum(s["step_time"] for s in steps)}
        write_text(folder / NOTE, json.dumps(cost))
    found = latest_checkpoint(folder)
    assert found is not None
    return found


def trained(name: str, seed: int, args: argparse.Namespace) -> tuple[Path, dict[str, float]]:
    """Return a method's model, and what its trainings cost in all.

    With ``--warm`` a verdict that is a token or a token's log-prob is learnt before the training, as in smollm2.py. Any other
    verdict is learnt in as many steps as both have, at the warm-up's learning rate, with all rewards 0 and a KL term that keeps
    the policy.
    """
    config, folder = config_of(name, seed, args), args.out / "runs" / f"{name}-{seed}"
    verify = getattr(config.recipe, "verify", name)
    if not METHODS[name].trained:
        return Path(config.model), {}
    folders = [folder]
    if args.warm and verify in ("generative", "pairs", "last_token"):
        folders.append(folder.with_name(f"{folder.name}-warm"))
        warm = smollm2.warm(config, int(args.warm[0]), args.warm[1], seed)
        taught = train(warm, folders[1], f"{name} {seed}, verdict")
        config = replace(config, model=str(taught))
        if (score := chat_options(taught)["last_token"]) is not None:
            config = toml.override(config, [f"recipe.last_token.reference={score.reference}"])
    elif args.warm and (verify in ("bce", "regression", "separate") or name == "rlcr"):
        steps, optim = config.train.steps + int(args.warm[0]), replace(config.optim, lr=args.warm[1])
        config = replace(
            config, optim=optim, train=replace(config.train, steps=steps), loss=replace(config.loss, beta=1.0)
        )
        config = replace(config, reward=("correct",), reward_weights=(0.0,))
    path = train(config, folder, f"{name} {seed}")
    notes = [json.loads((f / NOTE).read_text()) for f in folders]
    return path, {key: sum(note[key] for note in notes) for key in notes[0]}


def loaded(path: Path, config: Config) -> tuple[run.Model, run.Model | None]:
    """Return the model, and the separate verifier if there is one."""
    load = partial(run.load, system=config.system, precision=config.train.precision, opening=config.chat.opening)
    return load(path), load(path / "verifier") if (path / "verifier").is_dir() else None


def evaluation(name: str, seed: int, args: argparse.Namespace) -> Path:
    return args.out / "runs" / f"{name}-{seed}" / "evals" / "test"


def one(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train and evaluate; OUT/NAME-SEED.json appears when it is complete."""
    (path, cost), config = trained(name, seed, args), config_of(name, seed, args)
    (model, verifier), (settings, plans) = loaded(path, config), eval_of(name, seed, args)
    folder = evaluation(name, seed, args)
    every = [plan for own in plans.values() for plan in own]
    run.evaluate(model, run.make_task(config.task), settings, out=folder, name=name, verifier=verifier, plans=every)
    saved = load_evaluations([folder])[0]
    prompt = np.mean([len(model.chat.prompt(p.problem.question)) for p in saved.pools])
    answered = [[a is not None for a in p.answers] for p in saved.pools]
    drawn = np.mean([p.tokens for p in saved.pools])
    read = np.mean([np.dot(p.judge_tokens, some) / settings.n for p, some in zip(saved.pools, answered, strict=True)])
    rules = {
        rule: curve(saved.ks, [prompt + k * (drawn + read * (rule not in ("maj", "pass"))) for k in saved.ks], correct)
        for rule, correct in saved.curves_P_K.items()
    }
    calibrations = halves(saved.pools)
    for rule, own in stopping(name, settings).items() if calibrations else ():
        replays = [replay_halves(saved.pools, plan, calibrations) for plan in own]
        spent = [prompt + (r.generated_P_K + r.verified_P_K)[:, -1].mean() for r in replays]
        rules[rule] = curve([], spent, np.stack([r.correct_P_K[:, -1] for r in replays], axis=1))
    rows = read_lines(folder / RUNS)
    for text, own in plans.items():
        of_K = [[row for row in rows if row["plan"] == str(plan)] for plan in own]
        spent = [prompt + np.mean([r["cost"]["generated"] + r["cost"]["verified"] for r in of_k]) for of_k in of_K]
        right_P_K = np.array([[r["label"] == "correct" for r in of_k] for of_k in of_K], dtype=float).T
        rules[text] = curve([plan.n for plan in own], spent, right_P_K)
    judged = [
        (score, grade.correct)
        for pool, some in zip(saved.pools, answered, strict=True)
        for score, grade, has in zip(pool.scores, pool.grades, some, strict=True)
        if has
    ]
    result = {"method": name, "title": METHODS[name].title, "seed": seed, "training": cost, "rules": rules}
    result |= {"problems": [p.problem.id for p in saved.pools], "drawn": float(drawn), "read": float(read)}
    result |= asdict(verifier_metrics(*zip(*judged, strict=True)))
    result |= {"keys": saved.attacks and [saved.attacks.accepted, saved.attacks.judged]}
    write_text(args.out / f"{name}-{seed}.json", json.dumps(result))


def curve(ks: Sequence[int], tokens: Sequence[float], correct_P_K: NDArray[np.float64]) -> dict[str, Any]:
    return {"ks": list(ks), "tokens": [float(t) for t in tokens], "correct": correct_P_K.round(5).tolist()}


def clock(name: str, seed: int, args: argparse.Namespace) -> None:
    """Measure the seconds of an answer at each k, in OUT/NAME.time.json: drawing alone, drawing and judging, and each plan."""
    (path, _), config = trained(name, seed, args), config_of(name, seed, args)
    (model, verifier), (settings, plans) = loaded(path, config), eval_of(name, seed, args)
    task = run.make_task(config.task)
    problems = first(task, "test", args.timed)
    sampling = Sampling(1, settings.temperature, max_tokens=settings.max_tokens, stop=model.chat.stop, seed=seed)
    seconds: dict[str, list[float]] = {"drawn": [], "judged": []}
    for k in [1, *powers(args.n)]:
        began = time.perf_counter()
        groups = rollouts(model.engine, model.chat, task, problems, replace(sampling, n=k))
        seconds["drawn"].append((time.perf_counter() - began) / len(problems))
        answered = [r for group in groups for r in group if r.answer is not None]
        judge_all((verifier or model).engine, model.chat, answered, settings.judge, seed)
        seconds["judged"].append((time.perf_counter() - began) / len(problems))
    calibrations = halves(read_pools(evaluation(name, seed, args) / POOLS))
    if calibrations and verifier is None:  # a plan asks the model itself
        plans["posterior_stop"] = [
            replace(p, calibration=calibrations[0]) for p in stopping(name, settings)["posterior_stop"]
        ]
    for text, own in plans.items():
        seconds[text] = []
        for plan in [own[0], *own]:
            began = time.perf_counter()
            run.solve_many(model, [p.question for p in problems], plan)
            seconds[text].append((time.perf_counter() - began) / len(problems))
    measured = {rule: times[1:] for rule, times in seconds.items()}  # the first was a warm-up
    write_text(args.out / f"{name}.time.json", json.dumps(measured))


# --- all of them --------------------------------------------------------------------------------------------------------------


def known(names: Sequence[str], args: argparse.Namespace) -> list[str]:
    """Return the methods that this twofold knows, and say which it does not."""
    found = []
    for name in names:
        try:
            eval_of(name, 0, args)
            found.append(name)
        except toml.ConfigError as error:
            print(f"left out {name}: {error}", flush=True)
    return found


def do(what: str, work: Sequence[tuple[str, int]], args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Do ``one`` or ``clock`` for each (method, seed), in ``--jobs`` processes or here. Return how many failed."""
    began, logs = time.monotonic(), args.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    like = {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}

    def do_one(item: tuple[str, int]) -> str:
        start, (name, seed), log = time.monotonic(), item, logs / f"{what}-{item[0]}-{item[1]}.txt"
        if args.jobs:
            command = [sys.executable, __file__, *argv, f"--{what}", name, str(seed)]
            with log.open("w") as file:
                code = subprocess.run(command, stdout=file, stderr=file, env=os.environ | like).returncode
        else:
            try:
                code = (one if what == "one" else clock)(name, seed, args)
            except Exception:  # the others are still worth doing
                code = log.write_text(traceback.format_exc())
        return f"failed, see {log}" if code else f"{time.monotonic() - start:.0f} s"

    def ended() -> Iterator[tuple[tuple[str, int], str]]:
        if not args.jobs:
            yield from ((item, do_one(item)) for item in work)
            return
        with ThreadPoolExecutor(args.jobs) as threads:
            futures = {threads.submit(do_one, item): item for item in work}
            yield from ((futures[future], future.result()) for future in as_completed(futures))

    failed = 0
    for i, ((name, seed), said) in enumerate(ended(), 1):
        failed += said.startswith("failed")
        print(f"[{time.monotonic() - began:4.0f} s] {i}/{len(work)} {what} {name} {seed}: {said}", flush=True)
    return failed


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/leaderboard-sums.toml"), help="what all trainings share")
    add("--model", help="the model to start from, in place of the config's")
    add("--start", type=float, nargs=2, metavar=("UPDATES", "LR"), help="first a supervised start, as in smollm2.py")
    add("--warm", type=float, nargs=2, metavar=("STEPS", "LR"), help="a verdict's warm-up, likewise")
    add("--set", nargs="+", default=[], metavar="[METHOD:]KEY=VALUE", help="options, of all methods or of one")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--problems", type=int, default=120, help="held-out problems")
    add("--n", type=int, default=64, help="samples of each problem, a power of two")
    add("--most", type=int, default=16, help="samples of a plan that has to be run for every k")
    add("--batch", type=int, default=20, help="problems of an engine call in evaluations")
    add("--timed", type=int, default=8, help="problems on which seconds are measured")
    add("--jobs", type=int, default=0, help="processes at a time, on the CPU; 0: all in this process")
    add("--threads", type=int, default=1, help="of each process")
    add("--out", type=Path, default=Path("runs/leaderboard"))
    add("--table", action="store_true", help="only make the table and the figure")
    add("--one", nargs=2, metavar=("METHOD", "SEED"), help="train and evaluate one only")
    add("--clock", nargs=2, metavar=("METHOD", "SEED"), help="measure the seconds of one only")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    if args.one or args.clock:
        name, seed = args.one or args.clock
        (one if args.one else clock)(name, int(seed), args)
        return 0
    failed = 0
    if not args.table:
        if args.start:
            smollm2.start(shared(args), shared(args).model, None, int(args.start[0]), args.start[1], args.out / "runs")
        names, seed = known(args.methods, args), args.seeds[0]
        todo = [(m, s) for m in reversed(names) for s in args.seeds if not (args.out / f"{m}-{s}.json").exists()]
        failed += do("one", todo, args, argv)  # the longest, which are last in METHODS, come first
        timed = [m for m in names if (args.out / f"{m}-{seed}.json").exists()]
        todo = [(m, seed) for m in timed if not (args.out / f"{m}.time.json").exists()]
        failed += do("clock", todo, args, argv)
    leaderboard_table.write(args.out)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
