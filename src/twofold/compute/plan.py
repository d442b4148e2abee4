"""A plan says how to spend compute on a problem. It is one frozen value with a short form, ``weighted-16:stop=posterior``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import field, fields, is_dataclass
from typing import Any, Literal

from twofold.compute.aggregate import RSA, AggLM
from twofold.compute.backtrack import Backtracking
from twofold.compute.judge import ASKED, Judging
from twofold.compute.mcts import MCTS
from twofold.compute.prune import DeepConfOnline, Prune
from twofold.compute.rules import check_name, rule_named
from twofold.compute.search import DVTS, Beam, Particles, Rebase
from twofold.compute.think import Correction, Forcing
from twofold.maths.confidence import Traces
from twofold.maths.pairs import Tournament
from twofold.maths.posterior import Calibration
from twofold.maths.stopping import Adaptive, Consensus, Fixed, Lengths, Posterior, Windows
from twofold.ranges import Count, NonNegative, PositiveShare, Seed, Share, Whole, checked
from twofold.text.chat import Chat
from twofold.text.prompts import PAIR
from twofold.toml import ConfigError, override
from twofold.types import Sampling


@checked
class Independent:
    """n independent samples."""

    name: Literal["independent"] = "independent"


Make = (
    Independent
    | Prune
    | DeepConfOnline
    | Forcing
    | Correction
    | Backtracking
    | Beam
    | DVTS
    | Rebase
    | Particles
    | MCTS
    | RSA
    | AggLM
)


SCORED = (DeepConfOnline, Correction, Beam, DVTS, Rebase, Particles, MCTS)
"""The ways to make candidates that bring their own scores, so that the judge is not asked about them."""

PARTS = ("stop", "make", "judge")
"""The parts of a plan that are chosen by name."""

_HEAD = re.compile(r"([a-z_]+|[^:,]+\.py:\w+(?:@sha256:[0-9a-f]+)?)-([0-9]{1,6})(?::(.*))?", re.DOTALL)
_TOKEN = re.compile(r"""[^,\["]+|"(?:[^"\\]|\\.)*"|\[[^\]"]*(?:"(?:[^"\\]|\\.)*"[^\]"]*)*\]|.""", re.DOTALL)
_PLAIN = re.compile(r"[\w</>.-]+")

RENAMED = {"confidence": "threshold", "judge_tokens": "judge.tokens", "judge_votes": "judge.votes"}
"""Options of older plans -> what they are called now, for the error message."""


@checked
class Plan:
    """How to make candidates, when to stop, and how to choose among them.

    ``rule`` chooses the answer:

    * ``majority``: the most frequent one; ``weighted``: the one with the largest sum of verdicts; ``best``: that of the
      sample with the best verdict; ``posterior``: the likeliest, given verdicts and agreement, calibrated;
    * ``certain``: that of the sample of highest self-certainty; ``borda``: votes by the ranks of self-certainty;
      ``deepconf``: a vote among the share of samples of highest token confidence;
    * ``FILE.py:NAME``: a rule of your own (see ``compute.rules``).

    ``judge`` says how the model is asked for verdicts, ``stop`` how many samples are drawn (at most ``n``) or how long they
    get, ``make`` how candidates are made. Raises ValueError for parts that do not go together.
    """

    n: Count = 16
    rule: str = "weighted"
    judge: Judging = field(default_factory=Judging)
    make: Make = field(default_factory=Independent)
    stop: Fixed | Adaptive | Windows | Consensus | Posterior | Lengths = field(default_factory=Fixed)
    temperature: NonNegative = 1.0
    top_p: PositiveShare = 1.0
    max_tokens: Count = 256
    seed: Seed = 0
    calibration: Calibration = field(default_factory=Calibration)
    traces: Traces = field(default_factory=Traces)
    tournament: Tournament = field(default_factory=Tournament)
    top_k: Whole = 0
    min_p: Share = 0.0

    def __post_init__(self) -> None:
        check_name(self.rule)
        Sampling(self.n, self.temperature, self.top_p, self.max_tokens, top_k=self.top_k, min_p=self.min_p)
        if not isinstance(self.make, Independent) and not isinstance(self.stop, Fixed):
            raise ValueError(f"stop={self.stop.name} draws independent samples, make={self.make.name} draws its own")
        if isinstance(self.make, SCORED) and self.judge.name in ASKED[1:]:
            raise ValueError(
                f"make={self.make.name} brings its own scores and never asks judge={self.judge.name}: set judge=p_yes"
            )
        if self.judge.name == "pairs" and self.rule == "posterior":
            raise ValueError(
                "rule posterior reads probabilities, and judge=pairs gives standings: use best or weighted"
            )
        if self.judge.name == "pairs" and not isinstance(self.stop, Fixed):
            raise ValueError(f"judge=pairs compares all samples of a problem, but stop={self.stop.name} looks earlier")
        if self.judge.name == "pairs" and "{solution}" not in (self.judge.question or PAIR):
            raise ValueError("judge.question of judge=pairs must say where the other solution stands: {solution}")
        if self.judge.name != "pairs" and self.tournament != Tournament():
            raise ValueError("options of a tournament, such as budget, go with judge=pairs only")

    @property
    def judged(self) -> bool:
        """Return whether the model is asked for verdicts."""
        return rule_named(self.rule).needs == "verdicts" or isinstance(self.stop, Posterior)

    @property
    def traced(self) -> bool:
        """Return whether the rule reads the samples' token confidences."""
        return rule_named(self.rule).needs == "traces"

    def sampling(self, chat: Chat) -> Sampling:
        """Return how all ``n`` samples are drawn at once."""
        cap = self.stop.caps[0] if isinstance(self.stop, Lengths) else self.max_tokens
        top = self.traces.top if self.traced else 0
        drawn = (self.n, self.temperature, self.top_p, cap, chat.stop, self.seed)
        return Sampling(*drawn, trace_top=top, top_k=self.top_k, min_p=self.min_p)

    def __str__(self) -> str:
        """Return the short form, which ``parse`` reads back."""
        options = []
        for place, value, default in settings(self):
            if value != default:
                leaf = place.rpartition(".")[2]
                options.append(f"{leaf if _place(leaf, [self]) == place else place}={_written(value)}")
        return f"{self.rule}-{self.n}" + (":" if options else "") + ",".join(options)


def parse(text: str, base: Plan | None = None) -> Plan:
    """Read a plan from its short form, ``RULE-N`` or ``RULE-N:OPTION=VALUE,...``, strictly.

    ``stop``, ``make`` and ``judge`` take a name; the options of the chosen parts need no prefix. Text that holds a comma, a
    bracket or a space stands in double quotes. What is not said is as in ``base``.

    >>> parse("majority-40:stop=adaptive,threshold=0.9").stop
    Adaptive(name='adaptive', threshold=0.9, step=1)
    >>> str(parse("weighted-16:temperature=0.7,stop=lengths,caps=[64,256]"))
    'weighted-16:stop=lengths,caps=[64,256],temperature=0.7'

    Raises ConfigError, a ValueError, that says what is wrong and, if possible, what was meant.
    """
    where = f"plan {text[:200]!r}"
    found = _HEAD.fullmatch(text)
    if found is None:
        raise ConfigError(f"{where}: a plan is RULE-N or RULE-N:OPTION=VALUE,..., such as weighted-16")
    pairs = []
    for word in _words(found[3] or ""):
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{where}: {word!r} is not OPTION=VALUE")
        pairs.append((f"{key}.name" if key in PARTS else key, value))
    # each part alone: whether they go together is asked of the whole plan
    chosen = [
        override(Plan(), [f"{key}={value}" for key, value in pairs if key == f"{part}.name"], RENAMED, where)
        for part in PARTS
    ]
    settings = [f"{_place(key, chosen)}={value}" for key, value in pairs]
    return override(base or Plan(), [f"rule={found[1]}", f"n={int(found[2])}", *settings], RENAMED, where)


def _words(options: str) -> list[str]:
    """Split at the commas that stand outside of brackets and quotes.

    >>> _words('stop=lengths,caps=[64,256],judge.question="Right, or not?"')
    ['stop=lengths', 'caps=[64,256]', 'judge.question="Right, or not?"']
    """
    words, start = [], 0
    for token in _TOKEN.finditer(options):
        if token[0] == ",":
            words.append(options[start : token.start()])
            start = token.end()
    return [*words, options[start:]] if options else []


def _place(key: str, chosen: Sequence[Plan]) -> str:
    """Return the full name of an option without a prefix: of the plan, of its ``stop`` or ``make``, of another part."""
    for parts in (("stop", "make"), ("judge",), ("calibration", "traces", "tournament")):
        known = dict.fromkeys(place for plan in chosen for place, _, _ in settings(plan))
        places = [p for p in known if p.endswith(f".{key}") and p.startswith(parts)]
        if key not in known and len(places) == 1:
            return places[0]
    return key


def settings(plan: Plan) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted option, value, default) of everything but the rule and n; a part's name is the value of the part."""
    yield from ((p, v, d) for p, v, d in _leaves("", plan, Plan()) if p not in ("rule", "n"))


def _leaves(prefix: str, value: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    default = default if type(default) is type(value) else type(value)()
    for f in fields(value):
        mine, usual = getattr(value, f.name), getattr(default, f.name)
        if is_dataclass(mine):
            named = getattr(mine, "name", None)
            if named:
                yield f"{prefix}{f.name}", named, usual.name
            yield from _leaves(f"{prefix}{f.name}.", mine, usual)
        elif f.name != "name":
            yield f"{prefix}{f.name}", mine, usual


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(_quoted(v) if isinstance(v, str) else _written(v) for v in value)}]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() != "none" else _quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    """Return a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
