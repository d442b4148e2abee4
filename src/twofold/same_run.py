"""Whether a resumed run is the run that began: the same config, code, data, base model, tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from twofold import source, toml
from twofold.config import ALIASES, Config, PythonRecipe, PythonTask
from twofold.engine_options import PythonEngine
from twofold.models.precision import choose_precision
from twofold.tasks.procedural import PROCEDURAL
from twofold.tasks.user import CORRECT
from twofold.trainer.log import METRICS
from twofold.types import Precision, Problem

CONFIG = "config.toml"
INPUTS = {
    "data": "the problems of the task",
    "model": "the weights that training began with",
    "tokenizer": "the tokenizer",
    "template": "the chat template, or the tokens that end a text",
}
PLACES = {
    f"engine.{x}"
    for x in (
        "address",
        "workers",
        "cpus",
        "gpus",
        "timeout",
        "deadline",
        "kv_gib",
        "sleep",
        "eager",
        "url",
        "exchange",
    )
}
"""Options that say where and how long an engine computes, and not what."""
CHANGEABLE = (*INPUTS, "code")
"""What a resume may be told to accept changed. Code is pinned in the config; the rest is hashed in each checkpoint."""


def recorded(config: Config, task: object, recipe: object, engine: object) -> Config:
    """Return the config with all of the user's own code, given in Python or by name, pinned to the hash of its file."""
    if isinstance(task, PROCEDURAL):
        config = replace(config, task=task)
    elif task is not None:
        config = replace(config, task=PythonTask(source=source.describe(task)))
    if recipe is not None:
        config = replace(config, recipe=PythonRecipe(source=source.describe(recipe)))
    if engine is not None:
        config = replace(config, engine=PythonEngine(source=source.describe(engine)))
    for name in ("task", "recipe", "engine"):
        part = getattr(config, name)
        if part.name == "python" and source.is_source(part.source):
            config = replace(config, **{name: replace(part, source=source.pin(part.source))})
    if source.is_source(config.eval.task):
        config = replace(config, eval=replace(config.eval, task=source.pin(config.eval.task)))
    return replace(config, reward=tuple(r if r == CORRECT else source.pin(r) for r in config.reward))


def begun(config: Config, run: Path, resume: bool, accepted: Collection[str] = ()) -> Config:
    """Return the config with a type in place of ``precision = "auto"``: the one that a run that is resumed began with.

    Raise FileExistsError, FileNotFoundError or ValueError if ``run`` holds another run, or none where one is resumed.
    """
    path = run / CONFIG
    if unknown := set(accepted) - set(CHANGEABLE):
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be accepted changed, only {', '.join(CHANGEABLE)}")
    if not path.exists():
        left = [name for name in ("checkpoints", METRICS) if (run / name).exists()]
        if resume:
            why = f"it has {left[0]}, but no {CONFIG}" if left else "leave out --resume, or name its --out"
            raise FileNotFoundError(f"{run} holds no run that could be resumed: {why}")
        if left:
            raise FileExistsError(f"{run} holds {left[0]} of a run whose {CONFIG} is gone: choose another --out")
        return _with_precision(config, config.train.precision)
    if not resume:
        raise FileExistsError(f"{run} already holds a run: continue it with --resume, or choose another --out")
    before = toml.load(Config, path, ALIASES)
    config = _with_precision(
        config, before.train.precision if config.train.precision == "auto" else config.train.precision
    )
    # a run may be made longer
    before = replace(before, train=replace(before.train, steps=max(before.train.steps, config.train.steps)))
    old, new = toml.flat(before), toml.flat(config)
    keys = [k for k in {**old, **new} if new.get(k) != old.get(k) and k not in PLACES]
    of_code = [k for k in keys if source.unpinned(repr(new.get(k))) == source.unpinned(repr(old.get(k)))]
    if changed := [
        f"{k} = {new.get(k)!r}, was {old.get(k)!r}" for k in keys if not ("code" in accepted and k in of_code)
    ]:
        hint = ", or with --accept-changed code" if of_code == keys else ""
        raise ValueError(
            f"{run} was made with another config ({'; '.join(changed[:5])}); resume with its own, {path}{hint}"
        )
    return config


def _with_precision(config: Config, precision: Precision | Literal["auto"]) -> Config:
    return replace(config, train=replace(config.train, precision=choose_precision(precision)))


def hashes(
    problems: Iterable[Problem], models: Mapping[str, Any], tokenizer: Any, stop: Collection[int]
) -> dict[str, str]:
    """Return the sha256 of a run's inputs, by the names in ``INPUTS``.

    ``models`` are those of every role, with the weights that training begins with. Of endless problems a few stand for all.
    """
    data, weights = hashlib.sha256(), hashlib.sha256()
    for problem in problems:
        data.update(_as_text(problem).encode())
    for role, model in models.items():
        for name, tensor in model.state_dict().items():
            weights.update(f"{role}/{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            weights.update(tensor.cpu().contiguous().numpy())
    fast = getattr(tokenizer, "backend_tokenizer", None)
    text = fast.to_str() if fast else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    words = f"{text} {sorted(map(repr, tokenizer.special_tokens_map.items()))}"
    return {
        "data": data.hexdigest(),
        "model": weights.hexdigest(),
        "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        "template": hashlib.sha256(f"{tokenizer.chat_template} {sorted(stop)}".encode()).hexdigest(),
    }


def _as_text(problem: Problem) -> str:
    """Return a problem as text that another process writes in the same way: without ``meta`` if that is no plain JSON."""
    try:
        return json.dumps(asdict(problem), sort_keys=True)
    except TypeError:
        return json.dumps([problem.id, problem.question, problem.answer])


def refuse_changed(run: Path, before: Mapping[str, str], now: Mapping[str, str], accepted: Collection[str]) -> None:
    """Raise ValueError if an input is not what it was when the run began, unless it is ``accepted``."""
    if changed := [name for name in INPUTS if now[name] != before[name] and name not in accepted]:
        said = " and ".join(f"{INPUTS[name]} changed" for name in changed)
        how = " ".join(f"--accept-changed {name}" for name in changed)
        raise ValueError(f"{run} was made with other inputs: since then {said}. Go back to them, or resume with {how}")
