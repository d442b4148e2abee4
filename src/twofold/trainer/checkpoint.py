"""Checkpoints: a plain Hugging Face model directory plus the trainer's state. Only safetensors and JSON.

``checkpoints/step-40/`` loads with ``from_pretrained`` and ``vllm serve`` as it is. Randomness and data order are
functions of (seed, step), so the optimiser's moments, the step number and a recipe's few numbers are all the state there is.
The state also keeps the verdict question that the model was trained on, for whoever loads the model.
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
    question: str,
) -> Path:
    """Write ``run/checkpoints/step-N`` (``step-N-ROLE`` for other roles) under a draft name, then rename it."""
    final = run / "checkpoints" / (f"step-{step}" if role == "policy" else f"step-{step}-{role}")
    draft = final.with_name(final.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    save_model(draft, learner.model, tokenizer)
    found = moments(learner.optimizer, learner.model)
    save_file({k: v.contiguous() for k, v in found.items()}, draft / OPTIMIZER)
    content = {"step": step, "learner_step": learner.step, "recipe": dict(state), "question": question}
    (draft / STATE).write_text(json.dumps(content) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    return final


def thin(run: Path, keep: int) -> None:
    """Delete all but the last ``keep`` checkpoints, with those of other roles; 0 keeps all."""
    steps = sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*") if p.name[5:].isdigit())
    for step in steps[:-keep] if keep else []:
        # the policy's first: its presence says that the step is whole
        for folder in sorted((run / "checkpoints").glob(f"step-{step}*")):
            if folder.name == f"step-{step}" or folder.name.startswith(f"step-{step}-"):
                shutil.rmtree(folder)


def recipe_state(directory: Path) -> dict[str, float]:
    """What the recipe's ``state()`` was when this checkpoint was written. (Older checkpoints call it memory.)"""
    content = json.loads((directory / STATE).read_text())
    return content.get("recipe", content.get("memory", {}))


def restore(directory: Path, learner: Learner) -> int:
    """Load weights and optimiser state in place; returns the step to go on with.

    Raises ValueError if the weights are another model's.
    """
    own = learner.model.state_dict()
    saved = load_file(directory / WEIGHTS) | head.read(directory)
    places = {own[k].data_ptr() for k in saved if k in own}
    missing = {k for k in own.keys() - saved.keys() if own[k].data_ptr() not in places}  # a tied weight is saved once
    if strange := missing | (saved.keys() - own.keys()):
        raise ValueError(f"{directory} holds another model: they differ in {', '.join(sorted(strange)[:3])}")
    learner.model.load_state_dict(saved, strict=False)
    remember(learner.optimizer, learner.model, load_file(directory / OPTIMIZER))
    position = json.loads((directory / STATE).read_text())
    learner.step = position["learner_step"]
    return position["step"]
