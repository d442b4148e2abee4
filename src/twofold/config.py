"""The options of a training run."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from twofold import source, toml
from twofold.aliases import ALIASES as ALIASES
from twofold.engine_options import EngineConfig, Native
from twofold.maths.losses import Loss
from twofold.maths.schedule import Optim
from twofold.ranges import Count, Finite, Positive, Range, Seed, Whole, checked
from twofold.recipes import backtrack, mrt, pretrain, rlcr, rlv, sft, tango
from twofold.recipes.common import Recipe, Setup
from twofold.tasks.procedural import PROCEDURAL, Code, Countdown, Letters, Sums
from twofold.tasks.user import check_weights
from twofold.text.chat import ChatOptions
from twofold.text.extract import Extract
from twofold.text.prompts import JUDGE
from twofold.types import COLDEST, Backend, LogTo, Precision

SHIPPED = "tiny"
"""Name of the base model that comes with the package."""


@checked
class Data:
    """A data set: a local file, a name such as ``gsm8k``, or a Hugging Face data set."""

    name: Literal["data"] = "data"
    source: str = "gsm8k"
    split: str = "train"
    prompt_column: str | None = None
    answer_column: str | None = None
    solution_column: str | None = None
    """The worked solutions that SFT learns, where they are not recognised."""
    extract: Extract = "boxed"
    r"""Where a solution's answer may stand: "boxed" in a ``\boxed{}`` or on a ``####`` line, "stated" there or behind
    "Answer:", "the answer is" or in ``<answer>`` tags, "number" there or else it is the last number."""
    skip_bad: bool = False
    """Leave out malformed rows, and say which. They are an error otherwise."""
    skip_long: bool = False
    """Leave out problems that are too long for the model's context, and say how many. They are an error otherwise."""


@checked
class Gym:
    """A reasoning-gym task by its name (extra ``envs``)."""

    name: Literal["gym"] = "gym"
    task: str = "chain_sum"
    seed: Seed = 0


def _required(value: str, example: str) -> None:
    if not value:
        raise ValueError(f'source is required: the file and the name in it, such as source = "{example}"')


@checked
class PythonTask:
    """Your own task: ``mine.py:Task`` with ``name``, ``problem(split, i)`` and, if it has its own grader, ``grade``."""

    name: Literal["python"] = "python"
    source: str = ""

    def __post_init__(self) -> None:
        _required(self.source, "mine.py:Task")


@checked
class PythonRecipe:
    """Your own recipe: ``mine.py:Recipe``, called with the run's ``Setup``."""

    name: Literal["python"] = "python"
    source: str = ""

    def __post_init__(self) -> None:
        _required(self.source, "mine.py:Recipe")

    def build(self, setup: Setup) -> Recipe:
        return source.load(self.source)(setup)


TaskConfig = Sums | Countdown | Letters | Code | Data | Gym | PythonTask
RecipeConfig = rlv.RLV | mrt.MRT | backtrack.MRTB | tango.Tango | rlcr.RLCR | sft.SFT | pretrain.Pretrain | PythonRecipe


@checked
class Rollouts:
    """How the policy is sampled while training."""

    problems: Count = 16
    """Problems per step."""
    temperature: Annotated[float, Range(ge=COLDEST)] = 1.0
    max_tokens: Count = 1024


@checked
class JudgeOptions:
    """The question about the model's own solution. Checkpoints save it, so that a loaded model is asked the same question."""

    question: str = JUDGE


@checked
class Train:
    """How long the run trains, how each step uses its samples, and what is saved."""

    steps: Count = 100
    seed: Seed = 0
    epochs: Count = 1
    """Passes over the samples of each step."""
    minibatches: Count = 1
    """Optimiser steps per pass."""
    ahead: Annotated[int, Range(ge=0, le=1)] = 0
    """1: draw the rollouts of a step while the learner is at the step before, with the weights from before that update. The
    engine must compute elsewhere: vLLM or a fleet."""
    micro_tokens: Count | None = None
    """Most tokens in one forward pass. It bounds memory and changes nothing else. None: 4096 on a CPU, where more is no
    faster, and 16384 on a GPU."""
    precision: Literal["auto", Precision] = "float32"
    """``auto``: the faster one of this machine (see ``models.precision``). The run's ``config.toml`` says which it is."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    shard: bool = False
    """Cut weights, gradients and the optimiser's state among the ranks of a run (ZeRO, arXiv:1910.02054), for a model that one
    device cannot train. For the native engine and AdamW. In one process it changes nothing."""
    save_every: Whole = 50
    """Save a checkpoint every N steps (0: only after the last one)."""
    keep: Whole = 0
    """Number of checkpoints that stay on disk, the newest ones (0: all)."""


@checked
class LoraOptions:
    """Train an adapter of every role's model in place of its weights (LoRA, arXiv:2106.09685)."""

    rank: Whole = 0
    """Rank of the matrices that are trained (0: none; all weights are trained)."""
    alpha: Positive = 32.0
    """The adapter counts alpha / rank times."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """The layers that have one, by the last part of their names."""
    quantise: Literal["none", "nf4"] = "none"
    """``nf4``: keep the frozen matrices of the layers in four bits (QLoRA, arXiv:2305.14314; needs bitsandbytes)."""

    def __post_init__(self) -> None:
        if self.rank and not self.targets:
            raise ValueError("lora.targets is empty, so that nothing would be trained")
        if self.quantise != "none" and not self.rank:
            raise ValueError('quantise = "nf4" keeps the base of an adapter in four bits: set rank above 0')


@checked
class EvalOptions:
    """A short evaluation while training, saved in ``evals/step-N`` of the run. It samples as training does."""

    every: Whole = 0
    """Evaluate every N steps (0: never)."""
    task: str = ""
    """A task as for ``twofold eval --task``. Empty: the test split of the training task, which a data set does not have."""
    problems: Count = 64
    n: Count = 4
    """Samples per problem."""


@checked
class LogOptions:
    """What a run writes in addition to ``metrics.jsonl``."""

    to: tuple[LogTo, ...] = ()
    """Trackers that get the same numbers."""
    rollouts: Whole = 2
    """Number of groups of each step that are written to ``rollouts.jsonl``, which ``twofold show`` reads."""


@checked
class Config:
    """Everything that a training run depends on.

    ``reward`` is a list of functions (problem, text) -> number or ``Grade``, each named as ``mine.py:name``; "correct" is the
    task's own reward. The policy is paid their sum, weighted by ``reward_weights`` if given. Without ``reward`` it is paid the
    task's own reward. ``model_backend`` says what runs the model (see ``types.Backend``).
    """

    model: str = SHIPPED
    model_backend: Backend = "auto"
    system: str | None = None
    reward: tuple[str, ...] = ()
    reward_weights: tuple[Finite, ...] = ()
    recipe: RecipeConfig = field(default_factory=rlv.RLV)
    task: TaskConfig = field(default_factory=Sums)
    rollout: Rollouts = field(default_factory=Rollouts)
    chat: ChatOptions = field(default_factory=ChatOptions)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    engine: EngineConfig = field(default_factory=Native)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    lora: LoraOptions = field(default_factory=LoraOptions)
    train: Train = field(default_factory=Train)
    eval: EvalOptions = field(default_factory=EvalOptions)
    log: LogOptions = field(default_factory=LogOptions)

    def __post_init__(self) -> None:
        check_weights(self.reward, self.reward_weights)
        if self.train.shard and (self.engine.name != "native" or self.optim.name != "adamw"):
            raise ValueError('train.shard: set engine.name = "native", optim.name = "adamw"; others need whole weights')


def task_named(name: str) -> TaskConfig:
    """Return the task that a name on the command line stands for.

    It is ``sums``, ``countdown``, ``letters``, ``code``, ``gym:NAME``, ``mine.py:Task``, a known data set or a file. A procedural task
    may have options: ``sums:level=4,choice=0``.
    """
    if source.is_source(name):
        return PythonTask(source=name)
    kind, _, options = name.partition(":")
    if kind == "gym":
        return Gym(task=options)
    for procedural in PROCEDURAL:
        if kind == procedural().name:
            return toml.override(procedural(), options.split(",") if options else [], where=f"task {name!r}")
    return Data(source=name, split="test")
