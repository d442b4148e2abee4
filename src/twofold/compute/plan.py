"""How to spend compute on a problem: one frozen value, and its short form, such as ``weighted-16:stop=posterior``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from twofold.compute.backtrack import Backtracking
from twofold.compute.judge import Judge
from twofold.compute.mcts import MCTS
from twofold.compute.prune import DeepConf, Prune
from twofold.compute.search import DVTS, Beam, Particles, Rebase
from twofold.compute.think import Correction, Forcing
from twofold.maths.confidence import Trace
from twofold.maths.posterior import Calibration
from twofold.maths.stopping import Adaptive, Consensus, Fixed, Lengths, Posterior, Windows
from twofold.text.chat import Chat
from twofold.toml import ConfigError, override
from twofold.types import Sampling

Rule = Literal["majority", "best", "weighted", "posterior", "certain", "borda", "deepconf"]
JUDGED = {"best", "weighted", "posterior"}
CERTAIN = {"certain", "borda", "deepconf"}


@dataclass(frozen=True, slots=True)
class Independent:
    """n independent samples."""

    name: Literal["independent"] = "independent"


Make = Independent | Prune | DeepConf | Forcing | Correction | Backtracking | Beam | DVTS | Rebase | Particles | MCTS


@dataclass(frozen=True, slots=True)
class Traces:
    """What the rules ``borda`` and ``deepconf`` read from the samples' own certainty (see ``maths.confidence``)."""

    top: int = 20
    """Likeliest tokens per step that confidence is taken of."""
    window: int = 64
    """Tokens of a group; published for long traces: 2048."""
    kind: Trace = "mean"
    keep: float = 0.1
    """Share of the samples that ``deepconf`` lets vote."""
    power: float = 0.5
    """Of the ranks of ``borda``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """make x stop x choose. ``rule`` chooses the answer:

    * ``majority``; ``best``, ``weighted``: by the model's own verdict; ``posterior``: verdict and agreement, calibrated;
    * ``certain``: the sample of highest self-certainty; ``borda``: votes by its rank; ``deepconf``: the top share votes.

    ``stop`` says how many samples (at most ``n``) or how long; ``make`` how candidates come to be.
    Raises ValueError for parts that do not go together.
    """

    n: int = 16
    rule: Rule = "weighted"
    judge: Judge = "p_yes"
    make: Make = field(default_factory=Independent)
    stop: Fixed | Adaptive | Windows | Consensus | Posterior | Lengths = field(default_factory=Fixed)
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    judge_tokens: int = 128
    """Token limit of a written critique."""
    judge_votes: int = 1
    """Written critiques per candidate, whose verdicts are averaged: one is greedy, several are drawn."""
    calibration: Calibration = field(default_factory=Calibration)
    traces: Traces = field(default_factory=Traces)

    def __post_init__(self) -> None:
        Sampling(self.n, self.temperature, self.top_p, self.max_tokens)
        if min(self.judge_tokens, self.judge_votes) < 1:
            raise ValueError(
                f"judge_tokens and judge_votes must be at least 1, got {self.judge_tokens}, {self.judge_votes}"
            )
        if not isinstance(self.make, Independent) and not isinstance(self.stop, Fixed):
            raise ValueError(f"stop={self.stop.name} draws independent samples, make={self.make.name} draws its own")

    @property
    def judged(self) -> bool:
        """Whether candidates are asked about."""
        return self.rule in JUDGED or isinstance(self.stop, Posterior)

    def sampling(self, chat: Chat) -> Sampling:
        """Of all ``n`` samples at once."""
        cap = self.stop.caps[0] if isinstance(self.stop, Lengths) else self.max_tokens
        top = self.traces.top if self.rule in CERTAIN else 0
        return Sampling(self.n, self.temperature, self.top_p, cap, chat.stop, self.seed, top)

    def __str__(self) -> str:
        """The short form; ``parse`` reads it back."""
        options = []
        for place, value, default in settings(self):
            if value != default:
                leaf = place.rpartition(".")[2]
                options.append(f"{leaf if _place(leaf, [self]) == place else place}={_written(value)}")
        return f"{self.rule}-{self.n}" + (":" if options else "") + ",".join(options)


def parse(text: str, base: Plan | None = None) -> Plan:
    """A plan from its short form, ``RULE-N`` or ``RULE-N:OPTION=VALUE,...``, strictly.

    ``stop`` and ``make`` take a name; the options of the chosen parts need no prefix. What is not said is as in ``base``.

    >>> parse("majority-40:stop=adaptive,threshold=0.9").stop
    Adaptive(name='adaptive', threshold=0.9, step=1)
    >>> str(parse("weighted-16:temperature=0.7,stop=lengths,caps=[64,256]"))
    'weighted-16:stop=lengths,caps=[64,256],temperature=0.7'

    Raises ConfigError (a ValueError) that says what is wrong and, where it can, what was meant.
    """
    where = f"plan {text[:200]!r}"
    head, _, rest = text.partition(":")
    found = re.fullmatch(r"([a-z_]+)-([0-9]{1,6})", head)
    if found is None:
        raise ConfigError(f"{where}: a plan is RULE-N or RULE-N:OPTION=VALUE,..., such as weighted-16")
    pairs = []
    for word in re.split(r",(?![^\[]*\])", rest) if rest else []:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{where}: {word!r} is not OPTION=VALUE")
        pairs.append((f"{key}.name" if key in ("stop", "make") else key, value))
    named = [f"{key}={value}" for key, value in pairs if key in ("stop.name", "make.name")]
    # each part alone: whether they go together is asked of the whole plan
    chosen = [
        override(Plan(), [n for n in named if n.startswith(part)], aliases=RENAMED, where=where)
        for part in ("stop", "make")
    ]
    settings = [f"{_place(key, chosen)}={value}" for key, value in pairs]
    return override(base or Plan(), [f"rule={found[1]}", f"n={int(found[2])}", *settings], RENAMED, where)


RENAMED = {"confidence": "threshold"}
"""Options of older plans -> what they are called now, for the error message."""


def _place(key: str, chosen: Sequence[Plan]) -> str:
    """Where an option without a prefix belongs: to the plan, to the chosen ``stop`` or ``make``, to another part."""
    for parts in (("stop", "make"), ("calibration", "traces")):
        known = dict.fromkeys(place for plan in chosen for place, _, _ in settings(plan))
        places = [p for p in known if p.endswith(f".{key}") and p.startswith(parts)]
        if key not in known and len(places) == 1:
            return places[0]
    return key


def settings(plan: Plan) -> Iterator[tuple[str, Any, Any]]:
    """(dotted option, value, default) of everything but the rule and n; a part's name stands for the part."""
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
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_written, value))}]" if isinstance(value, tuple) else str(value)
