"""From a config to objects to the loop: the one file that names every concrete class."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from twofold import toml
from twofold.compute.judge import ASKED, resolved
from twofold.compute.plan import Plan, parse
from twofold.compute.rollout import Task
from twofold.compute.solve import Solution
from twofold.compute.solve import solve as solve_all
from twofold.config import SHIPPED, Config, Data, Gym, TaskConfig, task_named
from twofold.engines.native import NativeEngine
from twofold.evals.plans import run as run_plans
from twofold.evals.pools import read_header
from twofold.evals.probes import run as run_probes
from twofold.evals.run import Eval
from twofold.evals.run import evaluate as evaluate_task
from twofold.models.io import Precision, load_model, load_tokenizer
from twofold.recipes import backtrack, mrt, pretrain, rlv, sft, tango
from twofold.tasks.grading import equal
from twofold.text.chat import Chat
from twofold.text.prompts import CRITIQUE
from twofold.trainer import checkpoint
from twofold.trainer.learner import Learner
from twofold.trainer.log import Log
from twofold.trainer.loop import Collects
from twofold.trainer.loop import train as loop
from twofold.types import Problem, Sampling, Stopped

if TYPE_CHECKING:
    from twofold.engines.remote import RemoteEngine
    from twofold.serve.service import Limits, Service


@dataclass(frozen=True, slots=True)
class Model:
    """A model at hand: ``engine`` generates, ``chat`` writes its prompts."""

    name: str
    engine: NativeEngine | RemoteEngine
    chat: Chat
    tokenizer: Any


def shipped() -> Path:
    """Directory of the base model that comes with the package."""
    return Path(str(files("twofold") / "assets" / SHIPPED))


def load(model: str | Path = SHIPPED, *, system: str | None = None, precision: Precision = "float32") -> Model:
    """Load a model by directory, hub name, or ``"tiny"`` for the one that comes with the package.

    A run directory stands for its newest checkpoint. Raises OSError if there is no such model.
    """
    weights, tokenizer = load_model(_path(model))
    return Model(str(model), NativeEngine(weights, precision=precision), Chat(tokenizer, system), tokenizer)


def connect(
    upstream: str, model: str | Path = SHIPPED, *, system: str | None = None, serves: str | None = None
) -> Model:
    """The model that a server with OpenAI's API, such as vLLM's, has at the URL ``upstream``; nothing of it is loaded here
    but the tokenizer, that of ``model`` (named as for ``load``). ``serves`` is the server's name for it, if not this one.

    Raises OSError if there is no such model or the server cannot be reached or lacks something, ValueError if it serves
    another. See ``engines.remote.RemoteEngine``.
    """
    from twofold.engines.remote import RemoteEngine

    path = _path(model)
    tokenizer = load_tokenizer(path)
    chat = Chat(tokenizer, system)
    likely = (str(model), path.name)
    engine = RemoteEngine(upstream, text=CRITIQUE, ids=chat.encode(CRITIQUE), model=serves, likely=likely)
    return Model(str(model), engine, chat, tokenizer)


def _path(model: str | Path) -> Path:
    path = shipped() if str(model) == SHIPPED else checkpoint.latest(Path(model)) or Path(model)
    if not path.is_dir() and (len(path.parts) != 2 or Path(path.parts[0]).is_dir()):
        raise FileNotFoundError(f"{model}: no such model directory, and not the name of one on a hub (OWNER/NAME)")
    return path


def solve(model: Model, problem: str, plan: Plan | str | None = None) -> Solution:
    """The answer to one problem, with its confidence, the votes and the cost. A plan may be its short form."""
    return solve_many(model, [problem], plan)[0]


def solve_many(model: Model, problems: Sequence[str], plan: Plan | str | None = None) -> list[Solution]:
    """``solve`` of every problem, all in the same engine calls. Answers are grouped by mathematical equality."""
    plan = parse(plan) if isinstance(plan, str) else plan or Plan()
    return solve_all(model.engine, model.chat, problems, plan, same)


@lru_cache(maxsize=100_000)  # a server sees answers for ever
def same(a: str, b: str) -> bool:
    """Whether two answers are mathematically equal, as the graders see it; not decided in time is no."""
    return equal(a, b) == "correct"


def service(model: Model, limits: Limits | None = None) -> Service:
    """A model made ready to serve, see ``serve/``. Raises ValueError if its context or its verdicts cannot be told."""
    from twofold.serve.scheduler import Loop
    from twofold.serve.service import Service

    engine = model.engine
    if engine.context is None:
        where = "its config does not say (max_position_embeddings)"
        if not isinstance(engine, NativeEngine):
            where = f"the upstream's list of models does not say (max_model_len of {engine.model})"
        raise ValueError(f"{model.name}: how long may a text be? {where}")
    _ = model.chat.yes_no_ids
    raw = not isinstance(engine, NativeEngine) and engine.raw
    return Service(Path(model.name).name, model.chat, Loop(engine), engine.context, same, limits, raw)


def make_task(config: TaskConfig) -> Task:
    """The task a config names. Raises what its loader raises (no such file, malformed rows, a missing extra)."""
    if isinstance(config, Data):
        from twofold.tasks.datasets import load as load_dataset

        return load_dataset(
            config.source, prompt_column=config.prompt_column, answer_column=config.answer_column, split=config.split
        )
    if isinstance(config, Gym):
        from twofold.tasks.gym import Gym as GymTask

        return GymTask(config.task, seed=config.seed)
    return config


def evaluate(
    model: Model,
    task: str | Task,
    config: Eval | None = None,
    *,
    out: str | Path,
    name: str | None = None,
    verifier: Model | None = None,
    plans: Sequence[Plan | str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Sample, grade and score ``task`` with ``model`` into ``out``; resumes what is already there. Then see ``report``.

    ``verifier`` is a second model that scores in its place (the separate-verifier ablation). ``plans`` are compared on
    these samples (those that draw independent ones) or run on the same problems; a short form samples and judges as
    ``config`` does where it does not say otherwise. What the plans read of the samples' certainty is recorded.
    ``config.probe`` has thoughts of its own, sampled likewise, beside them.
    """
    config = config or Eval()
    chosen = make_task(task_named(task)) if isinstance(task, str) else task
    like = Plan(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, judge=config.judge)
    parsed = [parse(plan, like) if isinstance(plan, str) else plan for plan in plans]
    parsed = [replace(plan, judge=resolved(plan.judge, model.chat)) for plan in parsed]
    if unjudged := [plan for plan in parsed if plan.judged and plan.judge.name not in ASKED]:
        judge = unjudged[0].judge.name
        raise ValueError(
            f"plan {unjudged[0]} cannot ask for verdicts by judge={judge}: give it one of {', '.join(ASKED)}"
        )
    if most := [plan for plan in parsed if plan.n > config.n]:
        raise ValueError(f"plan {most[0]}: the evaluation draws {config.n} samples: raise --n or lower the plan's")
    trained = config.judge.name not in (*ASKED, "none")
    if trained and not isinstance((verifier or model).engine, NativeEngine):
        raise ValueError(f"judge {config.judge.name} reads a head that was trained here: an upstream has none")
    if certain := [plan.traces for plan in parsed if plan.traced]:
        config = replace(config, trace_top=certain[0].top, trace_window=certain[0].window)
    found = evaluate_task(
        model.engine,
        model.chat,
        chosen,
        config,
        Path(out),
        name=name or model.name,
        model=model.name,
        verifier=verifier.engine if verifier else None,
        verified_by=verifier.name if verifier else None,
        progress=progress or (lambda done, total: None),
    )
    problems = [chosen.problem(config.split, i) for i in range(config.problems)]
    if config.probe.thoughts:
        run_probes(model.engine, model.chat, chosen, problems, config.probe, found, batch=config.batch)
    if parsed:
        header = read_header(found)
        run_plans(model.engine, model.chat, chosen, problems, parsed, found, header, batch=config.batch, same=same)
    return found


def train(config: Config, out: str | Path, *, resume: bool = False, title: str = "training") -> Path:
    """Train into the run directory ``out``; returns its last checkpoint.

    ``resume`` goes on from the newest checkpoint. Raises FileExistsError if ``out`` already holds a run and
    ``resume`` is not set, ValueError if it is set and the run there was made with another config, and Stopped if Ctrl-C
    or SIGTERM ended it before its last step (everything is saved).
    """
    run = Path(out)
    found = checkpoint.latest(run)
    _refuse_to_mix(run, config, resume)
    model, tokenizer, chat = _policy(config)
    models = {"policy": model} | _second(config, tokenizer)
    engines = {role: NativeEngine(m, precision=config.train.precision) for role, m in models.items()}
    task = make_task(config.task)
    memory = checkpoint.read_memory(found) if resume and found else {}
    recipe = _recipe(config, task, chat, engines, memory)
    learners = {role: _learner(config, m, role) for role, m in models.items()}
    start = 0
    if resume and found:
        for role, learner in learners.items():
            start = checkpoint.restore(found if role == "policy" else found.with_name(f"{found.name}-{role}"), learner)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text(toml.to_toml(config))
    with Log(run, config.train.steps, title, start) as log:
        if start:
            log.say(f"resuming {run} at step {start}")
        problems = _problems(config, task)
        reached = loop(
            recipe, engines, learners, problems, memory=memory, run=run, tokenizer=tokenizer, start=start, steps=config.train.steps,
            save_every=config.train.save_every, log=log,
        )  # fmt: skip
    if reached < config.train.steps:
        raise Stopped(f"stopped after step {reached}; saved in {run}")
    last = checkpoint.latest(run)
    assert last is not None
    return last


def _refuse_to_mix(run: Path, config: Config, resume: bool) -> None:
    """Raise if ``run`` holds a run that this is not the continuation of."""
    path = run / "config.toml"
    if not path.exists():
        return
    if not resume:
        raise FileExistsError(f"{run} already holds a run: go on with --resume, or choose another --out")
    old, new = (_flat(tomllib.loads(text)) for text in (path.read_text(), toml.to_toml(config)))
    changed = [f"{k} = {new.get(k)!r}, was {old.get(k)!r}" for k in {**old, **new} if new.get(k) != old.get(k)]
    if changed:
        raise ValueError(f"{run} was made with another config ({'; '.join(changed[:5])}); resume with its own {path}")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _policy(config: Config) -> tuple[Any, Any, Chat]:
    if isinstance(config.recipe, pretrain.Base):
        model, tokenizer = pretrain.create(config.recipe, config.train.seed)
        return model, tokenizer, Chat(tokenizer)
    model, tokenizer = load_model(_path(config.model))
    if isinstance(config.recipe, rlv.RLV) and config.recipe.verify in ("bce", "regression"):
        model.value_head = _zero_head(model)
    return model, tokenizer, Chat(tokenizer, config.system)


def _zero_head(model: Any) -> Any:
    import torch

    head = torch.nn.Linear(model.config.hidden_size, 1, device=model.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def _second(config: Config, tokenizer: Any) -> dict[str, Any]:
    """The second model of the recipes that train one, by its role. Raises ValueError if its tokenizer is another."""
    match config.recipe:
        case rlv.RLV(verify="separate"):
            return {"verifier": load_model(_path(config.model))[0]}
        case tango.Tango(share=False, verifier=name):
            model, other = load_model(_path(name or config.model))
            if other.get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"recipe.verifier {name} has another tokenizer than {config.model}: it could not read solutions"
                )
            return {"verifier": model}
    return {}


def _recipe(
    config: Config, task: Task, chat: Chat, engines: Mapping[str, NativeEngine], memory: dict[str, float]
) -> Collects:
    sampling = Sampling(
        temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens, seed=config.train.seed
    )
    model = engines["policy"].model
    match config.recipe:
        case rlv.RLV() as chosen:
            return rlv.Recipe(chosen, task, chat, sampling, _frozen(config, model) if config.loss.beta else None)
        case mrt.MRT() | backtrack.MRTB() as chosen:
            start = _frozen(config, model) if chosen.source == "start" else None
            reference = _frozen(config, model) if config.loss.beta else None
            if isinstance(chosen, mrt.MRT):
                return mrt.Recipe(chosen, task, chat, sampling, start, reference)
            return backtrack.Recipe(chosen, task, chat, sampling, start, reference)
        case tango.Tango() as chosen:
            references = {role: _frozen(config, e.model) for role, e in engines.items()} if config.loss.beta else {}
            steps, second = config.train.steps, engines.get("verifier")
            return tango.Recipe(chosen, task, chat, sampling, steps, second, references, memory)
        case pretrain.Base() as chosen:
            return pretrain.Recipe(chosen, chat, config.train.seed)
        case _:
            return sft.Recipe(chat)


def _frozen(config: Config, model: Any) -> NativeEngine:
    """The model as it is now, for good."""
    return NativeEngine(copy.deepcopy(model), precision=config.train.precision)


def _learner(config: Config, model: Any, role: str) -> Learner:
    """Its learning rate runs over its own updates, which are all steps unless models take turns."""
    verify, steps = getattr(config.recipe, "verify", None), config.train.steps
    if isinstance(config.recipe, tango.Tango):
        steps = tango.planned(config.recipe, steps)[role]
    return Learner(
        model, config.optim, config.loss,
        steps=steps, temperature=config.rollout.temperature, epochs=config.train.epochs,
        minibatches=config.train.minibatches, precision=config.train.precision,
        micro_tokens=config.train.micro_tokens or (4096 if model.device.type == "cpu" else 16384),
        checkpointing=config.train.checkpointing, value="mse" if verify == "regression" else "bce",
    )  # fmt: skip


def _problems(config: Config, task: Task) -> Callable[[int], list[Problem]]:
    """Step -> its problems: a pure function of (seed, step), so that it needs no checkpoint."""
    n = config.rollout.problems
    if isinstance(config.recipe, pretrain.Base):
        return lambda step: []
    if isinstance(config.task, Data):
        size = len(task)  # type: ignore[arg-type]
        return lambda step: [task.problem("train", _shuffled(config.train.seed, size, step * n + i)) for i in range(n)]
    first = config.train.seed * 10_000_000  # procedural tasks are endless: another seed never repeats a problem
    return lambda step: [task.problem("train", first + step * n + i) for i in range(n)]


def _shuffled(seed: int, size: int, position: int) -> int:
    """Index at a position of an endless stream that passes over ``size`` items in a new order each epoch."""
    import random

    epoch, i = divmod(position, size)
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[i]


def names(union: Any) -> Sequence[str]:
    """The names of a union of named configs."""
    return [member().name for member in get_args(union)]
