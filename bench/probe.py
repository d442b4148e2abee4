"""Compare two ways to probe every prefix of a thought, as MRT does: on the kept KV cache, and with each prefix prefilled again.

Both sides call ``compute.probe.probe`` on the same thoughts with the same forced answers. One side has lost the caches of the
thoughts and runs each prefix once for all of its answers. ``sums`` is the shipped model on its own short thoughts, cut as in
``configs/mrt-sums.toml``; ``long`` is a random model on thoughts of 1024 tokens. ``prefixes`` leaves out the answers, which both
sides have to draw: the longer they are, the less there is to save.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common import SMALL, interleaved, question, qwen2, record, tokenizer, with_lengths

import twofold
from twofold.compute.probe import Prover, boundaries, probe
from twofold.compute.rollout import rollouts
from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat
from twofold.text.segments import Episodes
from twofold.types import Group, Problem, Sampling

PROVER = Prover(opening="<think>\n", hurry="", answer="\n\\boxed{", tokens=8)


def compare(
    what: str, engine: NativeEngine, chat: Chat, thoughts: Group, ends: Sequence[Sequence[int]], k: int, repeats: int
) -> None:
    """Probe ``thoughts``, which ``engine`` has just generated, with and without their caches, in turn."""
    kept = engine._kept
    computed: dict[str, int] = {}
    answers: dict[str, int] = {}

    def side(which: str) -> None:
        engine._kept = list(kept) if which == "kept" else []
        before = engine.usage.computed
        rows = probe(engine, chat, Sums(), thoughts, ends, PROVER, Sampling(n=k, seed=1))
        computed[which] = engine.usage.computed - before
        drawn = [a for row in rows for p in row if p.cost.generated for a in p.answers]
        answers[which] = sum(a.completion.sampled[::-1].index(False) - 1 for a in drawn)  # the last token is never run

    seconds = interleaved({which: lambda which=which: side(which) for which in ("kept", "again")}, repeats)
    lengths = [len(r.completion.tokens) for r in thoughts]
    record(
        "probe", what=what, probes=sum(map(len, ends)), answers=k, thought_tokens=sum(lengths) / len(lengths),
        tokens=computed["again"] / computed["kept"],
        prefixes=(computed["again"] - answers["again"]) / (computed["kept"] - answers["kept"]),
        seconds=seconds["again"] / seconds["kept"], kept_tokens=computed["kept"], kept_seconds=seconds["kept"],
    )  # fmt: skip


def sums(repeats: int) -> None:
    model, task, cut = twofold.load("tiny"), Sums(choice=1.0), Episodes(shortest=1, most=5)
    sampling = Sampling(n=4, max_tokens=160, stop=model.chat.stop)
    problems = [task.problem("train", i) for i in range(16)]
    groups = rollouts(model.engine, model.chat, task, problems, sampling, PROVER.opening)
    thoughts = [r for g in groups for r in g]
    ends = [boundaries(model.chat, r, PROVER, cut) for r in thoughts]
    compare("sums", model.engine, model.chat, thoughts, ends, 4, repeats)


def long(repeats: int) -> None:
    """Probe thoughts of 1024 tokens, cut into 16 equal episodes (their text has no paragraphs)."""
    chat = Chat(tokenizer())
    engine = NativeEngine(install(with_lengths(qwen2(**SMALL), 1024, 1024)))
    problems = [Problem(str(i), question(64, i), "1") for i in range(4)]
    groups = rollouts(engine, chat, Sums(), problems, Sampling(max_tokens=1024, stop=chat.stop))
    ends = [[i * 1024 // 16 for i in range(17)]] * 4
    compare("long", engine, chat, [r for (r,) in groups], ends, 4, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    sums(args.repeats)
    long(args.repeats)


if __name__ == "__main__":
    main()
