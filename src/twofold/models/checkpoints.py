"""The checkpoints of a run on disk: which there are, and whether their files are as they were written.

``checkpoints/step-40/`` is a plain model directory. What only training reads is in its folder ``trainer/``, where nobody who
loads every ``*.safetensors`` beside a model finds it. A second model of the run is such a directory inside, ``verifier/``.
``trainer/manifest.json`` has the sha256 of every file and is written last.
"""

from __future__ import annotations

import json
from pathlib import Path

from twofold import durable

TRAINER = "trainer"
MANIFEST, STATE, OPTIMIZER = (
    f"{TRAINER}/{name}" for name in ("manifest.json", "trainer_state.json", "optimizer.safetensors")
)
FORM = {"step", "learner_step", "skipped", "recipe", "inputs"}
"""What the state of a checkpoint has that a run can resume from."""
OLD_STATE = "trainer_state.json"
"""Where versions before the manifest wrote the state. Their checkpoints are models that can be loaded."""


class Damaged(ValueError):
    """A checkpoint is not as it was written. The message names the file."""


def steps(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first. A checkpoint gets its name when it is complete."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((p for p in found if p.name[5:].isdigit()), key=lambda p: int(p.name[5:]))


def latest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    return steps(run)[-1] if steps(run) else None


def seal(folder: Path, step: int) -> None:
    """Write the manifest of a model's folder, in which all else is written. A second model inside is sealed before."""
    inside = [path.parent.parent for path in folder.rglob(MANIFEST)]
    every = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [p for p in every if not any(p.is_relative_to(other) and p != other / MANIFEST for other in inside)]
    digests = {str(p.relative_to(folder)): durable.sha256(p) for p in files}
    durable.write_text(folder / MANIFEST, _manifest(step, digests))


def verify(folder: Path, *, resume: bool = False) -> None:
    """Raise Damaged unless a model's files are as the manifest of its checkpoint says. A model without ``trainer/`` passes.

    To ``resume``, the folder must be a checkpoint of this version with all its models and their moments.
    """
    if not resume and not (folder / TRAINER).is_dir():
        return
    step, files = _read(folder)
    named = folder.name.removeprefix("step-")
    if named.isdigit() and int(named) != step:
        raise Damaged(f"{folder} is the checkpoint of step {step}, as its {MANIFEST} says: it was renamed or mixed up")
    for name, digest in files.items():
        path = folder / name
        if not resume and (name == OPTIMIZER or (name.endswith(MANIFEST) and not path.is_file())):
            continue  # another role's model may have been deleted
        if name == OPTIMIZER and not path.is_file():
            raise Damaged(f"{folder} has no moments of the optimiser: only the newest two checkpoints keep them")
        if not path.is_file() or durable.sha256(path) != digest:
            what = "is not as it was written" if path.is_file() else "is missing"
            raise Damaged(f"{path} {what}: the checkpoint of step {step} is damaged")
        if resume and name.endswith(MANIFEST):
            verify(path.parent.parent, resume=True)
    if resume and (lacking := sorted(FORM - json.loads((folder / STATE).read_text()).keys())):
        raise Damaged(f"{folder / STATE} has no {', '.join(lacking)}: another version wrote it")


def newest_good(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint that a run can resume from, and why each newer one is not good.

    None if the run has no checkpoint yet. Raises Damaged if it has some, but no good one.
    """
    bad: dict[Path, str] = {}
    for folder in reversed(steps(run)):
        try:
            verify(folder, resume=True)
            return folder, bad
        except Damaged as error:
            bad[folder] = str(error)
    if bad:
        raise Damaged(f"{run} cannot be resumed, as no checkpoint is good: {'; '.join(bad.values())}")
    return None, bad


def drop_moments(folder: Path) -> None:
    """Delete the optimiser's moments of a checkpoint, which remains a model."""
    for path in folder.rglob(OPTIMIZER):
        path.unlink()


def _manifest(step: int, files: dict[str, str]) -> str:
    return json.dumps({"step": step, "files": files}, indent=1) + "\n"


def _read(folder: Path) -> tuple[int, dict[str, str]]:
    path = folder / MANIFEST
    if not path.is_file():
        why = "an older version wrote it" if (folder / OLD_STATE).is_file() else "it is not complete"
        raise Damaged(f"{folder} has no {MANIFEST}: {why}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        step, files = content["step"], content["files"]
        if type(step) is not int or text != _manifest(step, {str(x): str(files[x]) for x in files}):
            raise ValueError("it has another form")
        if out := [x for x in files if Path(x).is_absolute() or ".." in Path(x).parts]:
            raise ValueError(f"it names {out[0]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path} is not as it was written, so the checkpoint is damaged: {error!r}") from error
    return content["step"], content["files"]
