"""The papers' own evaluations as data: the sets, how each is sampled, and the numbers that the paper reports for them.

A number is in per cent, as the paper has it; ``None`` where it has none. What a paper leaves open is decided here and said
in ``notes``. ``twofold.suite`` runs a suite, ``beside`` makes its page.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from twofold.compute.judge import Judging
from twofold.compute.probe import Prover
from twofold.evals.critic import Critic
from twofold.evals.probes import Probing
from twofold.evals.run import Eval
from twofold.text.segments import Episodes

CRITIC = "processbench_"
"""How the names of ProcessBench's splits begin."""


@dataclass(frozen=True, slots=True)
class Part:
    """One set of a suite, by its name in ``tasks.known``: how many problems it has, and how it is sampled.

    A part with a ``Critic`` is a split of ProcessBench, named ``processbench_SPLIT``.
    """

    name: str
    size: int
    how: Eval | Critic


@dataclass(frozen=True, slots=True)
class Row:
    """A metric of one set, beside what the paper has for each of the table's columns.

    ``metric`` is a rule and its number of samples ("weighted@64"), "regret" or "F1". ``cap`` is the token limit that it is
    measured under, if that is not the set's own.
    """

    part: str
    metric: str
    paper: tuple[float | None, ...]
    cap: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that share the paper's columns. ``where`` says where the numbers stand; ``average`` has the paper's means."""

    title: str
    columns: tuple[str, ...]
    where: str
    rows: tuple[Row, ...]
    average: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    """A paper's evaluation."""

    name: str
    paper: str
    parts: tuple[Part, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def _rows(metric: str, *rows: tuple[str, tuple[float | None, ...]]) -> tuple[Row, ...]:
    return tuple(Row(part, metric, paper) for part, paper in rows)


# --- RL^V -------------------------------------------------------------------------------------------------------------

_SHORT = Eval(n=64, temperature=0.7, max_tokens=1024)
_LONGER = replace(_SHORT, max_tokens=2048)

RLV = Suite(
    name="rlv",
    paper="RL^V: Putting the Value Back in RL (arXiv:2505.04842)",
    parts=(
        Part("math500", 500, _SHORT),
        Part("math2", 210, _LONGER),
        Part("gpqa_physics", 86, _LONGER),
        Part("aime24", 30, _LONGER),
    ),
    tables=(
        Table(
            "Qwen2.5-Math-1.5B, weighted vote",
            ("RL with V", "plain RL"),
            "None is checked against the paper. MATH500 at 64 samples (GRPO) is from a summary of it; the rest (Leave-one-out "
            "PPO) is read by eye from the authors' slides, about 3 points either way. How plain RL chooses there is not known.",
            (
                Row("math500", "weighted@64", (79.0, 55.6)),
                Row("math500", "weighted@32", (79.0, None)),
                Row("math500", "weighted@8", (70.0, None)),
                Row("math2", "weighted@32", (59.0, 50.0)),
                Row("math2", "weighted@8", (51.0, 42.0)),
                Row("gpqa_physics", "weighted@32", (32.0, 25.0)),
                Row("gpqa_physics", "weighted@8", (25.0, 18.0)),
            ),
        ),
        Table(
            "R1-Distill-Qwen-1.5B, weighted vote under a token limit",
            ("GRPO with V", "best without"),
            "Fig. 1 left, read by eye from the authors' slides. The suite samples up to 2048 tokens, which fit Qwen2.5-Math; "
            "--sets aime24 --max_tokens 4096 samples all three.",
            (
                Row("aime24", "weighted@64", (13.0, 10.0), cap=1024),
                Row("aime24", "weighted@64", (26.0, 17.0), cap=2048),
                Row("aime24", "weighted@64", (39.0, 32.0), cap=4096),
            ),
        ),
    ),
    notes=(
        "The paper draws 512 samples on MATH500 and up to 128 on MATH^2 and GPQA; here 64 everywhere.",
        "Temperature 0.7 is that of the authors' evaluation code. GPQA is posed with its four options; the paper does not say.",
    ),
)

# --- Tango ------------------------------------------------------------------------------------------------------------

_GREEDY = Eval(n=1, temperature=0.0, max_tokens=2048, judge=Judging("none"))
_VERIFIER = Critic(how="verifier", max_tokens=2048)
_TANGO = ("SFT start", "GRPO", "GRPO +Tango", "Tango, 300 steps")
_TANGO_WHERE = "Table 1 (Qwen2.5-Math-7B, 200 steps of the generator) and Table 2 (300 steps). Single greedy runs."

TANGO = Suite(
    name="tango",
    paper="RL Tango (arXiv:2505.15034)",
    parts=(
        Part("math500", 500, _GREEDY),
        Part("aime24", 30, _GREEDY),
        Part("aime25", 30, _GREEDY),
        Part("amc23", 40, _GREEDY),
        Part("olympiadbench", 675, _GREEDY),
        Part("boardgameqa", 15000, _GREEDY),
        Part("cruxeval", 800, _GREEDY),
        Part("strategyqa", 2290, _GREEDY),
        Part("tablebench", 493, _GREEDY),
        Part("processbench_gsm8k", 400, _VERIFIER),
        Part("processbench_math", 1000, _VERIFIER),
        Part("processbench_olympiadbench", 1000, _VERIFIER),
        Part("processbench_omnimath", 1000, _VERIFIER),
    ),
    tables=(
        Table(
            "Mathematics",
            _TANGO,
            _TANGO_WHERE,
            _rows(
                "pass@1",
                ("math500", (66.6, 74.6, 81.4, 82.4)),
                ("aime24", (3.3, 13.3, 20.0, 26.7)),
                ("aime25", (3.3, 10.0, 20.0, 23.3)),
                ("amc23", (27.5, 50.0, 65.0, 70.0)),
                ("olympiadbench", (28.1, 36.9, 43.9, 45.3)),
            ),
            (25.8, 37.0, 46.1, 49.5),
        ),
        Table(
            "Out of domain",
            _TANGO,
            _TANGO_WHERE,
            _rows(
                "pass@1",
                ("boardgameqa", (46.6, 55.3, 60.5, 62.3)),
                ("cruxeval", (44.3, 48.8, 51.4, 54.0)),
                ("strategyqa", (85.9, 88.1, 90.0, 91.4)),
                ("tablebench", (34.4, 38.2, 42.3, 43.6)),
            ),
            (52.8, 57.6, 61.1, 62.8),
        ),
        Table(
            "ProcessBench: the first wrong step, by the verifier",
            ("Tango verifier", "Qwen2.5 7B Instruct", "Skywork PRM-7B"),
            "Table 3. How the verifier was asked there is not known; here it verifies every step.",
            _rows(
                "F1",
                ("processbench_gsm8k", (53.1, 36.5, 70.8)),
                ("processbench_math", (48.2, 36.6, 53.6)),
                ("processbench_olympiadbench", (37.8, 29.7, 22.9)),
                ("processbench_omnimath", (36.3, 27.4, 21.0)),
            ),
            (43.9, 32.6, 42.1),
        ),
    ),
    notes=(
        "The paper writes its own prompt, without a chat template; here it is the model's template and --system.",
        "A verification is at most 2048 tokens, half of Qwen2.5-Math's context; the other half is for what it reads. In the "
        "paper's training it is 4096; the limit in ProcessBench is not known.",
        "An answer must be boxed. In the paper the checker of three sets also reads a reply without a box.",
    ),
)

# --- MRT --------------------------------------------------------------------------------------------------------------

LIMIT = 16384
_LONG = Eval(n=20, temperature=0.6, top_p=0.95, max_tokens=LIMIT, judge=Judging("none"))
_PROBED = Eval(
    n=20, temperature=0.6, top_p=0.95, max_tokens=LIMIT, judge=Judging("none"),
    probe=Probing(
        thoughts=16, answers=8, waits=8, each=2048, prover=Prover(tokens=4096), episodes=Episodes(most=99, group=10)
    ),
)  # fmt: skip

MRT = Suite(
    name="mrt",
    paper="MRT: Optimizing Test-Time Compute via Meta Reinforcement Fine-Tuning (arXiv:2503.07572)",
    parts=(
        Part("aime24", 30, _LONG),
        Part("aime25", 30, _PROBED),
        Part("amc23", 40, _LONG),
        Part("minerva_math", 272, _LONG),
        Part("math500", 500, _LONG),
    ),
    tables=(
        Table(
            "Mean of 20 samples of up to 16384 tokens",
            ("R1", "R1 +GRPO", "R1 +MRT", "DSR", "DSR +GRPO", "DSR +MRT"),
            "Table 1. R1: DeepSeek-R1-Distill-Qwen-1.5B; DSR: DeepScaleR-1.5B-Preview.",
            _rows(
                "pass@1",
                ("aime24", (28.7, 29.8, 30.3, 42.8, 44.5, 47.2)),
                ("aime25", (26.0, 27.3, 29.3, 36.7, 39.3, 39.7)),
                ("amc23", (69.9, 70.5, 72.9, 83.0, 81.5, 83.1)),
                ("minerva_math", (19.8, 22.1, 22.5, 24.6, 24.7, 24.2)),
                ("math500", (80.1, 80.3, 80.4, 85.2, 84.9, 85.1)),
            ),
            (44.9, 46.0, 47.1, 54.5, 55.0, 55.9),
        ),
        Table(
            "Normalised regret of thoughts at a token budget (lower is better)",
            ("DSR", "DSR +GRPO", "DSR +MRT"),
            "Fig. 9, read from a plot of the authors' released notebook. Beyond 16384 tokens thoughts are made to go on. Theirs "
            "are 15 problems of AIME 2025, here it is all 30.",
            tuple(
                Row("aime25", "regret", paper, cap)
                for cap, paper in {
                    4096: (88.7, 89.4, 90.3), 8192: (78.3, 79.2, 78.1), 12288: (73.7, 74.7, 72.7), 16384: (71.2, 72.4, 69.8),
                    20480: (69.6, 70.7, 68.0), 24576: (68.7, 69.6, 66.9), 28672: (68.3, 69.2, 65.9), 32768: (67.5, 69.2, 65.3),
                }.items()
            ),
        ),
    ),
    notes=(
        "Temperature 0.6 and top-p 0.95 are those of the authors' regret scripts; the paper does not say for pass@1.",
        "--probe.thoughts 0 leaves the regret out: it is most of the cost.",
    ),
)  # fmt: skip

SUITES = {suite.name: suite for suite in (RLV, TANGO, MRT)}
