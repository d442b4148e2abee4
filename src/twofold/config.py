"""Everything that a run may be told, and the names that other libraries have for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twofold import toml
from twofold.models.io import Precision
from twofold.recipes import backtrack, mrt, pretrain, rlv, sft, tango
from twofold.tasks.procedural import PROCEDURAL, Countdown, Letters, Sums
from twofold.trainer.learner import Loss
from twofold.trainer.optim import Optim

SHIPPED = "tiny"
"""Name of the base model that comes with the package."""


@dataclass(frozen=True, slots=True)
class Data:
    """A real data set: a local file, a name such as ``gsm8k``, or a Hugging Face data set."""

    name: Literal["data"] = "data"
    source: str = "gsm8k"
    split: str = "train"
    prompt_column: str | None = None
    answer_column: str | None = None


@dataclass(frozen=True, slots=True)
class Gym:
    """A reasoning-gym task by its name (extra ``envs``)."""

    name: Literal["gym"] = "gym"
    task: str = "chain_sum"
    seed: int = 0


TaskConfig = Sums | Countdown | Letters | Data | Gym


@dataclass(frozen=True, slots=True)
class Rollouts:
    """How the policy is sampled while training."""

    problems: int = 16
    """Per step."""
    temperature: float = 1.0
    max_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class Train:
    """The run. ``micro_tokens`` per forward pass bounds memory and changes nothing else (None: 4096 on a CPU, where more is
    no faster, 16384 on a GPU)."""

    steps: int = 100
    seed: int = 0
    epochs: int = 1
    minibatches: int = 1
    micro_tokens: int | None = None
    precision: Precision = "float32"
    checkpointing: bool = False
    save_every: int = 50


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a training run depends on."""

    model: str = SHIPPED
    system: str | None = None
    recipe: rlv.RLV | mrt.MRT | backtrack.MRTB | tango.Tango | sft.SFT | pretrain.Base = field(default_factory=rlv.RLV)
    task: TaskConfig = field(default_factory=Sums)
    rollout: Rollouts = field(default_factory=Rollouts)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)


ALIASES = {
    "model_name_or_path": "model", "num_generations": "recipe.rollouts", "group_size": "recipe.rollouts",
    "rollout.n": "recipe.rollouts", "n_samples_per_prompt": "recipe.rollouts", "max_completion_length": "rollout.max_tokens",
    "learning_rate": "optim.lr", "lr_scheduler_type": "optim.schedule", "warmup_ratio": "optim.warmup", "max_grad_norm": "optim.clip",
    "epsilon": "loss.clip_low", "epsilon_high": "loss.clip_high", "loss_type": "loss.normalise", "scale_rewards": "recipe.estimator",
    "mask_truncated_completions": "recipe.truncated", "per_device_train_batch_size": "train.micro_tokens",
    "gradient_accumulation_steps": "train.micro_tokens", "max_steps": "train.steps", "save_steps": "train.save_every",
    "bf16": "train.precision", "dataset_name": "task.source", "lambda": "recipe.lam", "kl_coef": "loss.beta",
    "gradient_checkpointing": "train.checkpointing", "num_train_epochs": "train.epochs", "output_dir": "--out",
}  # fmt: skip
"""What other libraries call an option -> our name, for the error message."""


def task_named(name: str) -> TaskConfig:
    """``sums``, ``countdown``, ``letters``, ``gym:NAME``, a known data set or a file.

    A name may carry options: ``sums:level=4,choice=0``.
    """
    kind, _, options = name.partition(":")
    if kind == "gym":
        return Gym(task=options)
    for procedural in PROCEDURAL:
        if kind == procedural().name:
            return toml.override(procedural(), options.split(",") if options else [])
    return Data(source=name, split="test")
