"""Build a training run from its config, and run it. Every recipe, task and engine is built here, in one way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from twofold import durable, same_run, toml
from twofold.compute.judge import Judging, judge_all
from twofold.compute.room import after, check_room, too_long
from twofold.config import Config, task_named
from twofold.engine_options import Native, Outside, Vllm, VllmServer
from twofold.engines.base import Engine, PolicyEngine
from twofold.evals.during import evaluate_step
from twofold.evals.run import Eval
from twofold.maths.seeds import derive
from twofold.models import head, lora
from twofold.models.checkpoints import newest_good
from twofold.models.context import context
from twofold.models.io import load_model, stop_tokens
from twofold.models.precision import choose_precision
from twofold.recipes.common import Recipe, Setup
from twofold.run import adapted, find_model, guarded, make_task, rewarded
from twofold.runtime import share_cores
from twofold.tasks.doubts import Watch
from twofold.tasks.stream import Problems, check_gradable, first, length
from twofold.text.chat import Chat
from twofold.trainer import checkpoint
from twofold.trainer.ahead import check_ahead
from twofold.trainer.dist import Team, team
from twofold.trainer.learner import Learner
from twofold.trainer.log import Log
from twofold.trainer.loop import Schedule, run_steps
from twofold.trainer.trackers import open_trackers
from twofold.types import Rollout, Sampling, Stopped, Task

MakeEngine = Callable[[Any], PolicyEngine]
"""Function that returns an engine for the module that trains."""


class _Setup:
    """The run that a recipe is built from (see ``recipes.common.Setup``), with a model and an engine for each role."""

    def __init__(self, config: Config, task: Task, engine: MakeEngine, team: Team) -> None:
        self.config, self.task, self.steps, self.seed = config, task, config.train.steps, config.train.seed
        self.models: dict[str, Any] = {}
        self.engines: dict[str, PolicyEngine] = {}
        self.tokenizer: Any = None
        device = "cpu" if config.train.shard and team.size > 1 else None  # no device need hold a whole model
        self._load = partial(load_model, device=device, backend=config.model_backend)
        self.problems = Problems(task, config.rollout.problems, config.train.seed)
        self.spare, self._engine, self.team = self.problems.spare, team.engine(engine), team
        if isinstance(config.engine, Outside):
            self._engine = engine if team.leads else self._native

    def begin(self, model: object, tokenizer: object, stop: Sequence[int] = ()) -> None:
        if self.config.lora.rank and not lora.adapted(model):
            raise ValueError("lora: this recipe begins with a new model and trains all its weights: set rank = 0")
        self.tokenizer, self.stop = tokenizer, stop
        self._add("policy", model)

    def load_policy(self) -> None:
        """Load the config's model, unless it is loaded or the recipe has begun with another."""
        if "policy" not in self.models:
            path = find_model(self.config.model)
            model, tokenizer = self._load(path)
            self.begin(self._adapted("policy", self.config.model, model), tokenizer, stop_tokens(path))

    @cached_property
    def chat(self) -> Chat:
        self.load_policy()
        return Chat(self.tokenizer, self.config.system, stop=self.stop, **self.prompts)

    @property
    def prompts(self) -> dict[str, Any]:
        """How prompts are made, as checkpoints save it."""
        return {"question": self.config.judge.question, **asdict(self.config.chat)}

    @property
    def sampling(self) -> Sampling:
        rollout = self.config.rollout
        return Sampling(temperature=rollout.temperature, max_tokens=rollout.max_tokens, seed=self.seed)

    def second(self, role: str, model: str | None = None) -> Engine:
        if isinstance(self.config.engine, VllmServer):
            raise ValueError('engine.name = "vllm-server": a server holds one model, this recipe trains two')
        name = model or self.config.model
        self.load_policy()
        if self.config.lora.rank and name == self.config.model:
            return self._add(role, self._adapted(role, name, self.models["policy"]))  # two adapters on one base
        found, tokenizer = self._load(find_model(name))
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(f"{name} has another tokenizer than {self.config.model}: it could not read solutions")
        return self._add(role, self._adapted(role, name, found))

    def frozen(self, role: str = "policy") -> PolicyEngine:
        self.load_policy()
        fixed = isinstance(self.config.engine, Vllm | Outside)  # the learner's own numbers make the better KL term
        make, model = self._native if fixed else self._engine, self.models[role]
        return make(lora.off(model) if self.config.lora.rank else copy.deepcopy(model))

    def _native(self, model: Any) -> PolicyEngine:
        native = Native(exact=getattr(self.config.engine, "exact", False))
        return native.build(model, choose_precision(self.config.train.precision))

    def reference(self, role: str = "policy") -> PolicyEngine | None:
        return self.frozen(role) if self.config.loss.beta else None

    def head(self, kind: Literal["bce", "regression"]) -> None:
        self.load_policy()
        if not hasattr(self.engines["policy"], "values"):
            raise ValueError('only the native engine reads a scalar head: set engine.name = "native"')
        head.attach(self.models["policy"], kind)

    @property
    def verifier(self) -> Engine:
        """The engine that judges: of a model trained for it, if there is one."""
        return self.engines.get("verifier", self.engines["policy"])

    @property
    def judging(self) -> Judging:
        """How rollouts are judged for the log: as they are learnt to be, or P(Yes) where Yes and No are single tokens."""
        if self.chat.last_token is not None:
            return Judging("last_token")
        if hasattr(self.models["policy"], "value_head"):
            return Judging("head")
        try:
            _ = self.chat.yes_no_ids
        except ValueError:
            return Judging("none")
        return Judging("p_yes")

    def add_learners(self, updates: Mapping[str, int]) -> None:
        """Make the learner of each role, whose learning-rate schedule runs over its ``updates`` (default: all steps)."""
        if self.team.leads:
            self.inputs = same_run.hashes(self.problems.known(), self.models, self.tokenizer, self.stop)
        if self.config.train.shard:
            self.team.shard()
        self.learners = {role: self._learner(role, updates.get(role, self.steps)) for role in self.models}

    def _learner(self, role: str, updates: int) -> Learner:
        config, model = self.config, self.models[role]
        return self.team.learner(
            role, model, config.optim, config.loss,
            steps=updates, temperature=config.rollout.temperature, epochs=config.train.epochs,
            minibatches=config.train.minibatches, precision=choose_precision(config.train.precision),
            micro_tokens=config.train.micro_tokens or (4096 if model.device.type == "cpu" else 16384),
            checkpointing=config.train.checkpointing, exact=getattr(config.engine, "exact", False),
        )  # fmt: skip

    def check_room(self, questions: Sequence[tuple[str, str]]) -> None:
        """Raise ValueError if a rollout for one of these, with its verdict, could be longer than a model's context."""
        for model in self.models.values():
            check_room(context(model.config), self.chat, questions, self.config.rollout.max_tokens, self.judging)

    def fit(self, recipe: Recipe) -> None:
        """Leave out the problems that are too long for a model's context or, unless the config says so, raise ValueError."""
        known, drawn, judging = list(self.problems.known()), 0, Judging("none")
        if hasattr(recipe, "sampling"):  # it draws rollouts
            check_gradable(known)
            drawn, ways = self.config.rollout.max_tokens, (self.judging, recipe.judging or self.judging)
            judging = max(ways, key=lambda way: after(self.chat, way, drawn))  # the log asks, and the recipe
        texts = [(p.id, recipe.text(p)) for p in known]
        for limit in [context(model.config) for model in self.models.values()]:
            if getattr(self.config.task, "skip_long", False):
                self.problems.leave_out(too_long(limit, self.chat, texts, drawn, judging))
            else:
                check_room(limit, self.chat, texts, drawn, judging)

    def _adapted(self, role: str, name: str, model: Any) -> Any:
        return adapted(model, name, self.config.lora, derive(self.seed, role)) if self.config.lora.rank else model

    def _add(self, role: str, model: Any) -> PolicyEngine:
        self.models[role], self.engines[role] = model, self._engine(model)
        return self.engines[role]


def train(
    config: Config,
    out: str | Path,
    *,
    task: Task | None = None,
    recipe: Callable[[Setup], Recipe] | None = None,
    engine: MakeEngine | None = None,
    resume: bool = False,
    accept_changed: Collection[str] = (),
    title: str = "training",
) -> Path:
    """Train into the run directory ``out``; return its last checkpoint.

    ``task``, ``recipe`` (called with the run's ``Setup``) and ``engine`` (called with the module that trains, for each role)
    take the place of the config's: see docs/extending.md. The run's ``config.toml`` records them with their file's hash.

    ``resume`` continues from the newest good checkpoint, perhaps to more steps than the run was to have (its schedules then
    run over all of them). Raises FileExistsError if ``out`` already holds a run and ``resume`` is not set. If it is set, raises
    FileNotFoundError if there is no run, and ValueError if no checkpoint is good, or if the run was made with another config,
    other code or other inputs that ``accept_changed`` does not name (see ``same_run.CHANGEABLE``). Raises BlockingIOError if
    another process writes to ``out``, and Stopped if Ctrl-C or SIGTERM ended the run before its last step (everything is saved).
    """
    share_cores()
    run, ranks = Path(out), team()
    if config.train.ahead:
        check_ahead("python" if engine else config.engine.name, ranks.size)
    if ranks.leads:
        config = same_run.begun(same_run.recorded(config, task, recipe, engine), run, resume, accept_changed)
        ranks.tell(config)
    else:
        config = toml.from_dict(Config, ranks.receive(0))
    make = engine or partial(make_engine, config)
    with durable.writing(run) if ranks.leads else nullcontext():
        base = guarded(task) if task is not None else make_task(config.task)
        setup = _Setup(config, rewarded(base, config.reward, config.reward_weights), make, ranks)
        built = (recipe or config.recipe.build)(setup)
        if not isinstance(built, Recipe):
            raise ValueError(f"a recipe must be a tf.Recipe, and this one made {built!r}")
        setup.load_policy()
        setup.add_learners(built.updates(config.train.steps))
        if ranks.leads:
            reached = _train(run, config, setup, built, resume, accept_changed, title)
            ranks.tell(["end", reached])
        else:
            reached = ranks.work(setup.learners)
    if reached < config.train.steps:
        raise Stopped(f"stopped after step {reached}; saved in {run}")
    return run / "checkpoints" / f"step-{reached}"


def _train(
    run: Path, config: Config, setup: _Setup, built: Recipe, resume: bool, accepted: Collection[str], title: str
) -> int:
    """Return the number of steps that are done."""
    learners, own, start = setup.learners, config.train, 0
    found, damaged = newest_good(run) if resume else (None, {})
    if found:
        state = checkpoint.read_state(found)
        same_run.refuse_changed(run, state["inputs"], setup.inputs, accepted)
        start = state["step"]
        for role, learner in learners.items():
            setup.team.restore(found if role == "policy" else found / role, role, learner)
        built.restore(state["recipe"])
    for role, engine in setup.engines.items():
        engine.load(learners[role].weights())
    check = _check(config, setup, run)
    setup.fit(built)
    for folder in damaged:
        durable.rename(folder, folder.with_name(f"{folder.name}.damaged"))
    if found:  # the run may have died between a save and this
        checkpoint.thin_out(run, own.keep)
    trackers = open_trackers(config.log.to, run, toml.flat(config), start)
    durable.write_text(run / same_run.CONFIG, toml.to_toml(config))
    schedule = Schedule(start, own.steps, own.save_every, config.eval.every, config.log.rollouts, own.ahead)
    with Log(run, own.steps, title, start, trackers) as log:
        for folder, why in damaged.items():
            log.say(f"{why}; it is now {folder.name}.damaged, and its steps are done again")
        if resume:
            log.say(f"resuming {run} at step {start}")
        return run_steps(
            built, setup.engines, learners, setup.problems, schedule,
            save=lambda step: checkpoint.save(
                run, step, learners, setup.tokenizer,
                state=built.state(), chat=setup.prompts, inputs=setup.inputs, keep=own.keep,
            ),
            evaluate=check, score=partial(_scores, setup), watch=Watch(log.say), log=log,
        )  # fmt: skip


def make_engine(config: Config, model: Any) -> PolicyEngine:
    """Return the engine that a config names, for a module that trains."""
    return config.engine.build(model, choose_precision(config.train.precision))


def _scores(setup: _Setup, rollouts: Sequence[Rollout]) -> Sequence[float | None]:
    """Return the score of each rollout, for ``rollouts.jsonl``; None if nothing can judge."""
    judging = setup.judging
    if judging.name == "none":
        return [None] * len(rollouts)
    return [score for score, _ in judge_all(setup.verifier, setup.chat, rollouts, judging)]


def _check(config: Config, setup: _Setup, run: Path) -> Callable[[int], dict[str, float]]:
    """Return a function from a step to the figures of a short evaluation after it, as ``[eval]`` says."""
    if not config.eval.every:
        return lambda step: {}
    if not config.eval.task and length(setup.task) is not None:
        raise ValueError("eval.every: a data set has no held-out part of its own; name another with eval.task")
    task = setup.task
    if config.eval.task:
        task = rewarded(make_task(task_named(config.eval.task)), config.reward, config.reward_weights)
    settings = Eval(
        problems=min(config.eval.problems, length(task) or config.eval.problems), n=config.eval.n,
        temperature=config.rollout.temperature, max_tokens=config.rollout.max_tokens, seed=config.train.seed, judge=setup.judging,
    )  # fmt: skip
    setup.check_room([(p.id, p.question) for p in first(task, settings.split, settings.problems)])
    return lambda step: evaluate_step(
        setup.engines["policy"], setup.verifier, setup.chat, task, settings, run, step, model=config.model
    )
