"""A model at hand: load one or connect to one, solve, evaluate, serve. (``training.py`` trains.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofold.compute.judge import ASKED, resolved
from twofold.compute.plan import Plan, parse
from twofold.compute.rollout import Task
from twofold.compute.solve import Solution
from twofold.compute.solve import solve as solve_all
from twofold.config import SHIPPED, Data, Gym, PythonTask, TaskConfig, task_named
from twofold.engines.native import NativeEngine
from twofold.evals.plans import run_plans
from twofold.evals.pools import read_header
from twofold.evals.probes import run_probes
from twofold.evals.run import Eval
from twofold.evals.run import evaluate as evaluate_task
from twofold.models.io import Precision, latest_checkpoint, load_model, load_tokenizer, verdict_question
from twofold.tasks.grading import equal
from twofold.tasks.user import FromSource, Guarded, Rewarded
from twofold.text.chat import Chat
from twofold.text.prompts import CRITIQUE, JUDGE

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

    A run directory stands for its newest checkpoint, and a checkpoint is asked the verdict question that it was trained on.
    Raises OSError if there is no such model.
    """
    path = find_model(model)
    weights, tokenizer = load_model(path)
    chat = Chat(tokenizer, system, question=verdict_question(path) or JUDGE)
    return Model(str(model), NativeEngine(weights, precision=precision), chat, tokenizer)


def connect(
    upstream: str, model: str | Path = SHIPPED, *, system: str | None = None, serves: str | None = None
) -> Model:
    """The model that a server with OpenAI's API, such as vLLM's, has at the URL ``upstream``; nothing of it is loaded here
    but the tokenizer, that of ``model`` (named as for ``load``). ``serves`` is the server's name for it, if not this one.

    Raises OSError if there is no such model or the server cannot be reached or lacks something, ValueError if it serves
    another. See ``engines.remote.RemoteEngine``.
    """
    from twofold.engines.remote import RemoteEngine

    path = find_model(model)
    tokenizer = load_tokenizer(path)
    chat = Chat(tokenizer, system, question=verdict_question(path) or JUDGE)
    likely = (str(model), path.name)
    engine = RemoteEngine(upstream, text=CRITIQUE, ids=chat.encode(CRITIQUE), model=serves, likely=likely)
    return Model(str(model), engine, chat, tokenizer)


def find_model(model: str | Path) -> Path:
    """Return the directory of a model: the shipped one, a run's newest checkpoint, a directory, or a hub name as it is.

    Raises FileNotFoundError if it is none of these.
    """
    path = shipped() if str(model) == SHIPPED else latest_checkpoint(Path(model)) or Path(model)
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
    from twofold.serve.scheduler import Scheduler
    from twofold.serve.service import Service

    engine = model.engine
    if engine.context is None:
        where = "its config does not say (max_position_embeddings)"
        if not isinstance(engine, NativeEngine):
            where = f"the upstream's list of models does not say (max_model_len of {engine.model})"
        raise ValueError(f"{model.name}: how long may a text be? {where}")
    _ = model.chat.yes_no_ids
    raw = not isinstance(engine, NativeEngine) and engine.raw_logprobs
    return Service(Path(model.name).name, model.chat, Scheduler(engine), engine.context, same, limits, raw)


def make_task(config: TaskConfig) -> Task:
    """Return the task that a config names. Raises what its loader raises (no such file, malformed rows, a missing extra)."""
    if isinstance(config, Data):
        from twofold.tasks.datasets import load as load_dataset

        return load_dataset(
            config.source, prompt_column=config.prompt_column, answer_column=config.answer_column, split=config.split
        )
    if isinstance(config, Gym):
        from twofold.tasks.gym import Gym as GymTask

        return GymTask(config.task, seed=config.seed)
    if isinstance(config, PythonTask):
        return FromSource(config.source)
    return config


def guarded(task: Task) -> Task:
    """Return a task that was given in Python, made safe to grade with (see ``tasks.user``); ours are safe as they are."""
    return task if type(task).__module__.startswith("twofold.") else Guarded(task)


def rewarded(task: Task, functions: Sequence[str], weights: Sequence[float] = ()) -> Task:
    """Return the task, paid by these functions if there are any (see ``tasks.user.Rewarded``)."""
    return Rewarded(task, functions, weights) if functions else task


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
    if config.judge.name == "head" and not isinstance((verifier or model).engine, NativeEngine):
        raise ValueError("judge=head reads a head that was trained here: an upstream has none")
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
