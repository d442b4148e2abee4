"""Compare Tango with its baselines at matched tokens: accuracy, tokens to GRPO's accuracy, the verifier's F1.

    python studies/tango.py configs/tango-study.toml                              # every arm, three seeds; then the tables
    python studies/tango.py configs/tango-study.toml --arms rl grpo votes true --against rl   # options, see ABLATIONS
    python studies/tango.py configs/tango-study.toml --arms grpo --seeds 100 --set optim.lr=1e-3 --split train --out runs/try

All arms begin from one start that can do both roles (``warm_tango.py``). ``train.steps`` of the config is the number of updates of
Tango with two models; another arm gets the number that costs about as many tokens. Tokens are those that both roles wrote and
those that went through a learner, prompts included. Every ``train.save_every`` updates, scaled in the same way, both roles are
measured at temperature 1: solutions of held-out problems, and one verification of each case of the procedural ProcessBench.
OUT/ARM-SEED.jsonl has a line per measurement; an arm whose file exists is not run again. Arms are compared at the number of
tokens that all have reached, by interpolation between measurements. Seeds are averaged per problem; intervals (95%) resample
problems.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import warm_tango
from numpy.typing import NDArray
from shared import COLOURS, Floats, band, difference, interval, save

from twofold import run, toml, training
from twofold.compute.rollout import rollouts
from twofold.compute.verify import Verification, verify
from twofold.engines.base import Engine
from twofold.evals.critic import as_candidate, predicted_step
from twofold.maths.stats import cluster_bootstrap, resamples
from twofold.recipes import tango
from twofold.tasks.processbench import some_cases
from twofold.text.chat import Chat
from twofold.text.steps import Critique, spans
from twofold.types import Completion, Rollout, Sampling


class Arm(NamedTuple):
    """One way to train. ``scale`` is its number of updates for each of Tango's, chosen so that it costs about as many tokens;
    ``judged`` says whether a verifier takes part."""

    name: str
    scale: float
    options: list[str]
    judged: bool = True


TWO = ["recipe.share=false"]
ALONE = ["recipe.share=true", "recipe.verifier_updates=0", "recipe.verifier_warmup=0"]
ARMS = {
    "grpo": Arm("GRPO, no verifier", 1.75, [*ALONE, "recipe.alpha=0"], judged=False),
    "frozen": Arm("frozen verifier", 1.0625, [*TWO, "recipe.verifier_updates=0", "recipe.verifier_warmup=0"]),
    "sft": Arm("verifier by SFT", 1.0, [*TWO, "recipe.verifier_learns=sft"]),
    "rl": Arm("Tango, two models", 1.0, TWO),
    "shared": Arm("Tango, one model", 1.0, ["recipe.share=true"]),
    "verifier": Arm(
        "verifier alone, frozen generator", 0.5, [*TWO, "recipe.generator_updates=0", "recipe.verifier_warmup=0"]
    ),
}
"""The arms of the study. A verifier that trains with a frozen generator shows its final quality in fewer updates."""
ABLATIONS = {
    "votes": Arm("4 verifications", 0.625, [*TWO, "recipe.verifications=4"]),
    "consistency": Arm("consistency 0.5", 1.0, [*TWO, "recipe.consistency=0.5"]),
    "labels": Arm("step labels 1", 0.875, [*TWO, "recipe.step_labels=1"]),
    "first_error": Arm("credit first_error", 1.0, [*TWO, "recipe.credit=first_error"]),
    "response": Arm("credit response", 1.0, [*TWO, "recipe.credit=response"]),
    "alpha": Arm("alpha 0.5", 1.0, [*TWO, "recipe.alpha=0.5"]),
    "true": Arm("true verdicts, at no cost", 1.75, ALONE, judged=False),
    "true_alpha": Arm("true verdicts, alpha 0.5", 1.75, [*ALONE, "recipe.alpha=0.5"], judged=False),
}
"""Tango with two models and one option changed; and true verdicts (``warm_tango.right``), which cost no tokens: an upper bound."""
ALL = ARMS | ABLATIONS
TOKENS = ("tango/tokens", "verifier/tokens", "num_tokens", "verifier/num_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ALL, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="options to change for all arms, such as optim.lr=2e-4")
    parser.add_argument(
        "--base",
        type=Path,
        help="a config that trains the config's model, which is done first if the model does not exist",
    )
    parser.add_argument("--warm", type=int, default=240, help="steps of the common start (warm_tango.py)")
    parser.add_argument(
        "--slip", type=float, default=0.2, help="chance of a slip in a step, in the solutions that the start learns"
    )
    parser.add_argument("--copy", type=float, default=0.5, help="share of steps that its critiques repeat unchecked")
    parser.add_argument(
        "--planted",
        type=float,
        default=0.2,
        help="chance of a slip in a step, in every other solution that it learns to check",
    )
    parser.add_argument("--optim", default="adamw", choices=warm_tango.LR, help="optimiser of the start")
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--split", default="test", help="'train' to choose settings; use seeds other than 0 then")
    parser.add_argument("--out", type=Path, default=Path("runs/tango"))
    parser.add_argument("--against", default="grpo", help="the arm with which the others are compared")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    base = toml.override(toml.load(run.Config, args.config), args.set)
    if args.base:
        made = Path(base.model)
        training.train(toml.load(run.Config, args.base), made, resume=(made / "config.toml").exists(), title="base")
    taught = warm_tango.Taught(args.warm, args.optim, args.slip, args.planted, args.copy)
    start = warm_tango.start(base, taught, args.out / "warm")
    base = toml.override(base, [f"model={start}"])
    for seed in args.seeds:
        for arm in args.arms:
            if not (args.out / f"{arm}-{seed}.jsonl").exists():
                one(arm, seed, base, args)
    curves = {arm: Curve.read(args.out, arm, args.seeds) for arm in args.arms}
    budget = min(c.tokens_K[-1] for arm, c in curves.items() if arm != "verifier" or len(curves) == 1)
    print(f"\n{len(args.seeds)} seeds, {args.problems} problems, compared at {budget / 1000:.0f}k tokens\n")
    table(curves, args.against, budget)
    along(curves, budget)
    if args.figure:
        draw(curves, args.figure)


def one(arm: str, seed: int, base: run.Config, args: argparse.Namespace) -> None:
    """Train, then measure every checkpoint; the file appears when it is complete."""
    began = time.monotonic()
    _, scale, options, _ = ALL[arm]
    folder, every = args.out / f"{arm}-{seed}", round(scale * base.train.save_every)
    steps = every * round(scale * base.train.steps / every)
    more = [f"train.seed={seed}", f"train.steps={steps}", f"train.save_every={every}"]
    config = toml.override(base, [*options, *more])
    tango.verify = truth if arm.startswith("true") else verify
    training.train(config, folder, resume=(folder / "config.toml").exists(), title=f"{arm} {seed}")
    trained = time.monotonic()
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spent = np.cumsum([sum(line.get(name, 0) for name in TOKENS) for line in log])
    recipe = config.recipe
    frozen = not recipe.generator_updates, not (recipe.verifier_updates or recipe.verifier_warmup)
    rows: list[dict[str, Any]] = []
    for done in range(0, steps + 1, every):
        roles = ("", "" if recipe.share else "/verifier")
        models = [str(folder / "checkpoints" / f"step-{done}{role}") if done else base.model for role in roles]
        before = rows[0] if rows else {}
        rows.append(
            {
                "generator_updates": sum(tango.turn(recipe, s)[0] == "generator" for s in range(done)),
                "tokens": float(spent[done - 1]) if done else 0.0,
                **(kept(before, "right") if before and frozen[0] else solved(models[0], config, args, seed)),
                **(
                    kept(before, "labels", "predictions")
                    if before and frozen[1]
                    else checked(models[1], config, args, seed)
                ),
            }
        )
    (part := args.out / f"{arm}-{seed}.part").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.rename(part.with_suffix(".jsonl"))
    print(f"{arm} {seed}: {trained - began:.0f} s to train, {time.monotonic() - trained:.0f} s to measure", flush=True)


def truth(
    engine: Engine, chat: Chat, rollouts: Sequence[Rollout], steps: Sequence[int], question: str, sampling: Sampling
) -> list[list[Verification]]:
    """Return true verdicts, at no cost, in place of those that ``verify`` returns."""
    found = []
    for r, k in zip(rollouts, steps, strict=True):
        verdicts = warm_tango.right(r.problem, [r.text[a:b].strip() for a, b in spans(r.text, "lines")])
        assert len(verdicts) == k
        critique = Critique([*verdicts], final=r.grade.correct, shape=True, closed=True, loose=False)
        found.append([Verification([], Completion([], [], [], "stop"), critique)])
    return found


def kept(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the measurement at the start, which stays true of a role that does not learn."""
    return {name: row[name] for name in names}


def solved(name: str, config: run.Config, args: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Return, for each problem, the share of two solutions that is right."""
    model, task = run.load(name), run.make_task(config.task)
    sampling = Sampling(
        2, config.rollout.temperature, max_tokens=config.rollout.max_tokens, stop=model.chat.stop, seed=seed
    )
    problems = [task.problem(args.split, i) for i in range(args.problems)]
    groups = rollouts(model.engine, model.chat, task, problems, sampling)
    return {"right": [sum(r.grade.reward or 0.0 for r in g) / len(g) for g in groups]}


def checked(name: str, config: run.Config, args: argparse.Namespace, seed: int) -> dict[str, list[int | None]]:
    """Return the first wrong step of each case: the true one, and the one that a verification names."""
    model, recipe = run.load(name), config.recipe
    cases = some_cases(run.make_task(config.task), args.problems, args.split)
    counts = [len(c.steps) for c in cases]
    sampling = Sampling(
        1, config.rollout.temperature, max_tokens=recipe.verifier_tokens, stop=model.chat.stop, seed=seed
    )
    quoted = [as_candidate(model.chat, c, recipe.cut) for c in cases]
    found = verify(model.engine, model.chat, quoted, counts, recipe.question, sampling)
    predicted = [predicted_step(v.critique, k, whole=False) for (v,), k in zip(found, counts, strict=True)]
    return {"labels": [c.label for c in cases], "predictions": predicted}


@dataclass(frozen=True)
class Curve:
    """One arm along its training: K measurements of P problems, averaged over seeds, and of C cases for each of S seeds.

    ``each_S_K`` is the accuracy per seed.
    """

    updates_K: Floats
    tokens_K: Floats
    right_K_P: Floats
    hit_K_S_C: Floats
    flawed_C: NDArray[np.bool_]
    each_S_K: Floats

    @classmethod
    def read(cls, out: Path, arm: str, seeds: Sequence[int]) -> Curve:
        runs = [[json.loads(line) for line in (out / f"{arm}-{s}.jsonl").read_text().splitlines()] for s in seeds]
        right = np.array([[row["right"] for row in rows] for rows in runs])
        hit = np.array(
            [
                [[a == b for a, b in zip(row["labels"], row["predictions"], strict=True)] for row in rows]
                for rows in runs
            ]
        )
        updates, tokens = (
            np.array([[row[k] for row in rows] for rows in runs]).mean(0) for k in ("generator_updates", "tokens")
        )
        flawed = np.array(runs[0][0]["labels"]) >= 0
        return cls(updates, tokens, right.mean(0), hit.transpose(1, 0, 2).astype(float), flawed, right.mean(2))

    def at(self, values_K_: Floats, tokens: float) -> Floats:
        """Return the values at this number of tokens, interpolated between the two measurements around it."""
        return between(self.tokens_K, values_K_, tokens)

    def f1(self, hit_S_C: Floats) -> str:
        """Return ProcessBench's F1 in words, such as ``27.4 [19.4, 35.0]``."""
        return "{:.1f} [{:.1f}, {:.1f}]".format(*self.f1_interval(hit_S_C))

    def f1_interval(self, hit_S_C: Floats) -> tuple[float, float, float]:
        """Return ProcessBench's F1 in %, the mean over seeds, and its 95% interval over cases."""
        cases = hit_S_C.shape[1]

        def score(w_n_C: Floats) -> Floats:
            wrong, right = (
                w_n_C[:, m] @ hit_S_C[:, m].T / w_n_C[:, m].sum(1, keepdims=True)
                for m in (self.flawed_C, ~self.flawed_C)
            )
            return (2 * wrong * right / np.maximum(wrong + right, 1e-9)).mean(1)

        drawn = resamples(cases, 2000, seed=0).astype(float)
        low, high = np.quantile(score(drawn), [0.025, 0.975])
        return 100 * float(score(np.ones((1, cases)))[0]), 100 * float(low), 100 * float(high)

    def reach(self, target: float, weights_P: Floats) -> tuple[float, float]:
        """Return (the generator's updates, tokens) at which accuracy first reaches ``target``; infinite if it never does."""
        mean_K = self.right_K_P @ weights_P / weights_P.sum()
        for k in range(1, len(mean_K)):
            if mean_K[k] >= target:
                share = float(np.clip((target - mean_K[k - 1]) / max(mean_K[k] - mean_K[k - 1], 1e-9), 0, 1))
                return tuple(float((1 - share) * x[k - 1] + share * x[k]) for x in (self.updates_K, self.tokens_K))  # type: ignore[return-value]
        return np.inf, np.inf


def between(x_K: Floats, values_K_: Floats, x: float) -> Floats:
    """Interpolate linearly at ``x``. After the last point the last value holds."""
    k = int(np.clip(np.searchsorted(x_K, x), 1, len(x_K) - 1))
    share = min(1.0, (x - x_K[k - 1]) / (x_K[k] - x_K[k - 1]))
    return (1 - share) * values_K_[k - 1] + share * values_K_[k]


def table(curves: dict[str, Curve], against: str, budget: float) -> None:
    """Print the comparison at matched tokens and at matched updates, and what it takes to reach the accuracy of ``against``."""
    name = ALL[against].name.partition(",")[0]
    head = ["arm", "generator's updates", "accuracy", f"minus {name}", "per seed"]
    head += [f"minus {name} after as many updates", f"updates to {name}'s accuracy", "tokens to it", "F1 at the end"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    base = curves.get(against)
    for arm, c in curves.items():
        right_P, updates = c.at(c.right_K_P, budget), float(c.at(c.updates_K, budget))
        cells = [f"{updates:.0f}", interval(right_P)]
        if base is None or arm in (against, "verifier"):
            cells += [""] * 3
        else:
            each = 100 * (c.at(c.each_S_K.T, budget) - base.at(base.each_S_K.T, budget))
            cells += [difference(right_P, base.at(base.right_K_P, budget)), ", ".join(f"{x:+.1f}" for x in each)]
            beyond = updates > base.updates_K[-1]
            cells += ["" if beyond else difference(right_P, between(base.updates_K, base.right_K_P, updates))]
        cells += reached(c, base, budget) if base and arm != "verifier" else ["", ""]
        print("| " + " | ".join([ALL[arm].name, *cells, c.f1(c.hit_K_S_C[-1]) if ALL[arm].judged else ""]) + " |")


def reached(c: Curve, base: Curve, budget: float) -> list[str]:
    """Return, as table cells, the generator's updates and the tokens to reach the accuracy that ``base`` has at the budget.

    Intervals are over problems.
    """
    problems = base.right_K_P.shape[1]
    drawn = resamples(problems, 500, seed=0).astype(float)

    def ways(w_P: Floats) -> tuple[float, float]:
        return c.reach(float(base.at(base.right_K_P, budget) @ w_P / w_P.sum()), w_P)

    here, resampled = ways(np.ones(problems)), np.array([ways(w) for w in drawn])
    cells = []
    for x, column, scale, unit in zip(here, resampled.T, (1, 1000), ("", "k"), strict=True):
        if np.isinf(x):
            cells.append(f"never (in {np.isinf(column).mean():.0%} of resamples)")
            continue
        low, high = np.quantile(column, [0.025, 0.975], method="nearest")
        cells.append(f"{x / scale:.0f}{unit} [{low / scale:.0f}, {high / scale:.0f}]")
    return cells


def along(curves: dict[str, Curve], budget: float) -> None:
    """Print accuracy at shares of the budget, and F1 at each measurement. F1 is no mean, so it is not interpolated."""
    shares = (0, 0.25, 0.5, 0.75, 1)
    count = len(next(iter(curves.values())).hit_K_S_C)
    head = [f"accuracy at {s:.0%}" for s in shares] + [
        "F1 at the start",
        *(f"at {k}/{count - 1} of its training" for k in range(1, count)),
    ]
    print("\n| arm | " + " | ".join(head) + " |\n|" + "---|" * (1 + len(head)))
    for arm, c in curves.items():
        rights = [f"{100 * c.at(c.right_K_P, s * budget).mean():.1f}" for s in shares]
        f1s = [c.f1(hit_S_C) if ALL[arm].judged else "" for hit_S_C in c.hit_K_S_C]
        print("| " + " | ".join([ALL[arm].name, *rights, *f1s]) + " |")


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Draw accuracy and the verifier's F1 against tokens, with their 95% intervals over problems and cases."""
    from matplotlib.figure import Figure

    from twofold.evals.drawing import end_labels

    figure = Figure(figsize=(11, 3.8))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.75, "left": 0.06, "right": 0.81, "bottom": 0.14})
    ends: dict[Any, list[tuple[float, str, str]]] = {left: [], right: []}
    for (arm, c), colour in zip(curves.items(), COLOURS, strict=False):
        x = c.tokens_K / 1000
        if arm != "verifier":
            mean, low, high = (100 * v for v in cluster_bootstrap(c.right_K_P.T))
            band(left, x, mean, low, high, colour)
            ends[left].append((mean[-1], ALL[arm].name, colour))
        if ALL[arm].judged and arm != "frozen":
            mean, low, high = np.array([c.f1_interval(hit) for hit in c.hit_K_S_C]).T
            band(right, x, mean, low, high, colour)
            ends[right].append((mean[-1], ALL[arm].name, colour))
    left.set(xlabel="tokens written and learnt, thousands", ylabel="accuracy, %", title="Generator, held-out problems")
    right.set(xlabel="tokens written and learnt, thousands", ylabel="F1, %", title="Verifier, planted errors")
    for axes, names in ends.items():
        axes.set_ylim(bottom=0)
        end_labels(axes, names)
    save(figure, path)


if __name__ == "__main__":
    main()
