"""Checkpoints: a plain Hugging Face model directory plus the trainer's state, in safetensors and JSON only.

``from_pretrained`` and ``vllm serve`` load ``checkpoints/step-40/`` as it is. Randomness and data order are functions of
(seed, step), so the state is the optimiser's moments, the step number and a recipe's few numbers. The state also has how
its prompts were made (``chat``: the verdict question, and how it thinks), so that whoever loads the model makes the same,
and the hashes of the run's inputs. ``models.checkpoints`` says where the files are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twofold import durable
from twofold.models.checkpoints import OPTIMIZER, STATE, drop_moments, seal, steps, verify
from twofold.models.io import read_trained, save_model
from twofold.trainer.learner import Diverged, Learner
from twofold.trainer.optim import remember

RESUMABLE = 2
"""The newest checkpoints, which keep the optimiser's moments: if the last one is damaged, the one before can be resumed."""


def save(
    run: Path,
    step: int,
    learners: Mapping[str, Learner],
    tokenizer: Any,
    *,
    state: Mapping[str, float],
    chat: Mapping[str, Any],
    inputs: Mapping[str, str],
    keep: int = 0,
) -> Path:
    """Write ``run/checkpoints/step-N``, with the models of all roles, and return it. Then thin the older ones out.

    It is written under another name and renamed when all is on the disk. Only the newest ``keep`` checkpoints (0: all) remain,
    and moments only in the newest two; nothing is deleted before the new one is verified. Raises Diverged if a weight or a
    moment is not finite, and OSError if the disk is full: both leave the older checkpoints as they are.
    """
    final = run / "checkpoints" / f"step-{step}"
    draft = final.with_name(final.name + durable.DRAFT)
    found = {role: learner.saved() for role, learner in learners.items()}
    for role, (weights, moments) in found.items():
        for name, values in {**weights, **moments}.items():
            if not values.isfinite().all():
                raise Diverged(f"step {step} is not saved: {name} of the {role} is not finite. Lower the learning rate")
    for leftover in final.parent.glob(f"*{durable.DRAFT}"):
        shutil.rmtree(leftover)
    try:
        for role, learner in reversed(list(learners.items())):  # the policy's folder has the others in it
            folder = draft if role == "policy" else draft / role
            weights, moments = found[role]
            save_model(folder, learner.model, tokenizer, weights)
            (folder / OPTIMIZER).parent.mkdir()
            save_file({k: v.contiguous() for k, v in moments.items()}, folder / OPTIMIZER)
            content = {"step": step, "learner_step": learner.step, "skipped": learner.skipped, "recipe": dict(state)}
            (folder / STATE).write_text(json.dumps(content | {"inputs": dict(inputs)} | dict(chat)) + "\n")
            seal(folder, step)
        durable.publish(draft, final)
        verify(final, resume=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} could not be saved in {run}: {error}; the older ones are whole"
        ) from error
    thin_out(run, keep)
    return final


def thin_out(run: Path, keep: int) -> None:
    """Leave the newest ``keep`` checkpoints (0: all), and moments in the newest two only. The newest one must have been verified."""
    for folder in steps(run)[:-keep] if keep else []:
        durable.remove(folder)
    for folder in steps(run)[:-RESUMABLE]:
        drop_moments(folder)


def read_state(directory: Path) -> dict[str, Any]:
    """Return the trainer's state: ``step``, the next one; ``recipe``, the recipe's ``state()``; ``inputs``, the run's hashes."""
    return json.loads((directory / STATE).read_text())


def restore(directory: Path, learner: Learner) -> None:
    """Load weights and optimiser state of one model in place. Raises ValueError if the weights are another model's."""
    learner.model.load_state_dict(read_trained(directory, learner.model), strict=False)
    remember(learner.optimizer, learner.model, load_file(directory / OPTIMIZER))
    state = read_state(directory)
    learner.step, learner.skipped = state["learner_step"], state["skipped"]
