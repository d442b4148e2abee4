"""Checkpoints: a plain Hugging Face model directory plus the trainer's state, in safetensors and JSON only.

``from_pretrained`` and ``vllm serve`` load ``checkpoints/step-40/`` as it is. Randomness and data order are functions of
(seed, step), so the state is the optimiser's moments, the step number and a recipe's few numbers. The state also has how
its prompts were made (``chat``: the verdict question, and how it thinks), so that whoever loads the model makes the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from twofold.models import head
from twofold.models.io import STATE, WEIGHTS, save_model
from twofold.trainer.learner import Learner
from twofold.trainer.optim import moments, remember

OPTIMIZER = "optimizer.safetensors"


def save(
    run: Path,
    step: int,
    learner: Learner,
    tokenizer: Any,
    role: str = "policy",
    *,
    state: Mapping[str, float],
    chat: Mapping[str, Any],
) -> Path:
    """Write ``run/checkpoints/step-N`` (``step-N-ROLE`` for other roles) and return it.

    It is written under a draft name and then renamed, so that a checkpoint which is there is complete.
    """
    final = run / "checkpoints" / (f"step-{step}" if role == "policy" else f"step-{step}-{role}")
    draft = final.with_name(final.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    save_model(draft, learner.model, tokenizer)
    state_of_optimizer = moments(learner.optimizer, learner.model)
    save_file({k: v.contiguous() for k, v in state_of_optimizer.items()}, draft / OPTIMIZER)
    content = {"step": step, "learner_step": learner.step, "recipe": dict(state), **chat}
    (draft / STATE).write_text(json.dumps(content) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    return final


def thin(run: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints, for all roles; 0 keeps all."""
    steps = sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*") if p.name[5:].isdigit())
    for step in steps[:-keep] if keep else []:
        # the policy's first: a step is complete if the policy's checkpoint is there
        for folder in sorted((run / "checkpoints").glob(f"step-{step}*")):
            if folder.name == f"step-{step}" or folder.name.startswith(f"step-{step}-"):
                shutil.rmtree(folder)


def recipe_state(directory: Path) -> dict[str, float]:
    """Return the recipe's ``state()`` when this checkpoint was written. (Older checkpoints call it ``memory``.)"""
    content = json.loads((directory / STATE).read_text())
    return content.get("recipe", content.get("memory", {}))


def restore(directory: Path, learner: Learner) -> int:
    """Load weights and optimiser state in place; return the step to continue with.

    Raises ValueError if the weights are another model's.
    """
    own = learner.model.state_dict()
    saved = load_file(directory / WEIGHTS) | head.read(directory)
    addresses = {own[k].data_ptr() for k in saved if k in own}
    missing = {
        k for k in own.keys() - saved.keys() if own[k].data_ptr() not in addresses
    }  # a tied weight is saved once
    if different := missing | (saved.keys() - own.keys()):
        raise ValueError(f"{directory} holds another model: the weights differ in {', '.join(sorted(different)[:3])}")
    learner.model.load_state_dict(saved, strict=False)
    remember(learner.optimizer, learner.model, load_file(directory / OPTIMIZER))
    state = json.loads((directory / STATE).read_text())
    learner.step = state["learner_step"]
    return state["step"]
