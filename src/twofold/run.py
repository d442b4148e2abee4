"""Use a model: load it or connect to it, then solve, evaluate or serve. (``training.py`` trains.)"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twofold import hub
from twofold.compute.judge import ASKED, Judging, resolved
from twofold.compute.plan import Independent, Plan, parse
from twofold.compute.room import after, check_room, too_long
from twofold.compute.solve import Solution
from twofold.compute.solve import solve as solve_all
from twofold.config import SHIPPED, Data, Gym, LoraOptions, PythonTask, TaskConfig, task_named
from twofold.durable import writing
from twofold.engines.native import NativeEngine
from twofold.evals.audit import Audit, Audited
from twofold.evals.audit import audit as audit_task
from twofold.evals.audit import save as save_audit
from twofold.evals.plans import run_plans
from twofold.evals.pools import read_header
from twofold.evals.probes import run_probes
from twofold.evals.run import Eval
from twofold.evals.run import evaluate as evaluate_task
from twofold.maths.stopping import Lengths
from twofold.models import lora
from twofold.models.checkpoints import latest_checkpoint, verify
from twofold.models.decoder import Decoder
from twofold.models.gguf import SUFFIX as GGUF
from twofold.models.io import chat_options, load_model, load_tokenizer
from twofold.models.precision import choose_precision
from twofold.models.quantised import quantise
from twofold.runtime import share_cores
from twofold.tasks import sandbox
from twofold.tasks.code import Code
from twofold.tasks.grading import equal
from twofold.tasks.stream import check_gradable, first
from twofold.tasks.user import FromSource, Guarded, Rewarded
from twofold.text.chat import Chat
from twofold.text.prompts import CRITIQUE
from twofold.types import Backend, Precision, Task

if TYPE_CHECKING:
    from twofold.engine_options import Fleet
    from twofold.engines.fleet import FleetEngine
    from twofold.engines.remote import RemoteEngine
    from twofold.serve.service import Limits, Service
    from twofold.tasks.datasets import Dataset


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to use: ``engine`` generates, ``chat`` writes its prompts."""

    name: str
    engine: NativeEngine | RemoteEngine | FleetEngine
    chat: Chat
    tokenizer: Any


def shipped() -> Path:
    """Return the directory of the base model that comes with the package."""
    return Path(str(files("twofold") / "assets" / SHIPPED))


def load(
    model: str | Path = SHIPPED,
    *,
    system: str | None = None,
    precision: Literal["auto", Precision] = "float32",
    enable_thinking: bool | None = None,
    think_end: str | None = None,
    opening: str | None = None,
    fleet: Fleet | None = None,
    backend: Backend = "auto",
) -> Model:
    """Load a model by its directory or hub name; ``"tiny"`` is the model that comes with the package.

    A run directory stands for its newest checkpoint. A checkpoint is asked the verdict question that it was trained on, and
    thinks as it was trained to, unless ``enable_thinking``, ``think_end`` and ``opening`` say otherwise (see
    ``text.chat.ChatOptions``). With ``fleet`` it runs in the workers of a Ray cluster. ``backend`` says what runs it (see
    ``types.Backend``). Raises OSError if there is no such model, ValueError if ``backend`` does not suit it.
    """
    share_cores()
    path = find_model(model)
    weights, tokenizer = load_model(path, backend=backend)
    chat = _chat(path, tokenizer, system, enable_thinking=enable_thinking, think_end=think_end, opening=opening)
    chosen = choose_precision(precision)
    engine = fleet.build(weights, chosen) if fleet else NativeEngine(weights, precision=chosen)
    return Model(str(model), engine, chat, tokenizer)


def _chat(path: Path, tokenizer: Any, system: str | None, **thinking: bool | str | None) -> Chat:
    options = chat_options(path) | {k: v for k, v in thinking.items() if v is not None}
    try:
        chat = Chat(tokenizer, system, **options)
        chat.prompt("")  # so that a template which fails does so now
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return chat


def connect(
    upstream: str,
    model: str | Path = SHIPPED,
    *,
    system: str | None = None,
    serves: str | None = None,
    enable_thinking: bool | None = None,
    think_end: str | None = None,
    opening: str | None = None,
) -> Model:
    """Return the model that a server with OpenAI's API, such as vLLM's, has at the URL ``upstream``.

    Only the tokenizer of ``model`` (named as for ``load``) is loaded here, and prompts are made as ``load`` says. ``serves``
    is the server's name for the model, if it is not ``model``. Raises OSError if there is no such model, or if the server
    cannot be reached or lacks something that is needed; ValueError if it serves another model. See ``engines.remote.RemoteEngine``.
    """
    from twofold.engines.remote import RemoteEngine

    path = find_model(model, weights=False)
    tokenizer = load_tokenizer(path)
    chat = _chat(path, tokenizer, system, enable_thinking=enable_thinking, think_end=think_end, opening=opening)
    names = (str(model), path.name)
    engine = RemoteEngine(upstream, text=CRITIQUE, ids=chat.codec.plain(CRITIQUE), model=serves, likely=names)
    return Model(str(model), engine, chat, tokenizer)


def find_model(model: str | Path, *, weights: bool = True) -> Path:
    """Return the directory of the shipped model, of a run's newest checkpoint, or of a model, or ``model`` itself if it is a
    GGUF file. A model of the hub is fetched, without its ``weights`` if they are not needed.

    Raises FileNotFoundError if ``model`` is none of these, another OSError if the hub does not answer, and Damaged (a
    ValueError) if it is a checkpoint whose files are not as they were written.
    """
    path = shipped() if str(model) == SHIPPED else latest_checkpoint(Path(model)) or Path(model)
    if path.suffix == GGUF and path.is_file():
        return path
    if path.is_dir():
        verify(path)
        return path
    if len(path.parts) != 2 or Path(path.parts[0]).is_dir():
        raise FileNotFoundError(f"{model}: no such model directory, and not a name on a hub (OWNER/NAME)")
    return hub.model(str(model), weights=weights)


def adapted(model: Any, name: str, options: LoraOptions, seed: int) -> Any:
    """Return a view of the model of this name with a new adapter (see ``models.lora``).

    Raises ValueError if the name is an adapter's, or the model is not run by the decoder.
    """
    path = find_model(name)
    if not Decoder.suits(model):
        raise ValueError(
            f"lora: adapters are for Llama's family, run by the decoder, not for this {type(model).__name__}"
        )
    if lora.base_of(path):
        raise ValueError(f"lora: {path} is an adapter itself; make a model of it with `twofold convert {path} OUT`")
    if options.quantise == "nf4":
        quantise(lora.off(model))
    base = str(path.resolve()) if name == SHIPPED or Path(name).exists() else name
    return lora.attach(model, lora.Lora(options.rank, options.alpha, options.targets, base), seed)


def solve(model: Model, problem: str, plan: Plan | str | None = None) -> Solution:
    """Return the answer to one problem, with its confidence, the votes and the cost.

    ``plan`` may be given in its short form, such as "weighted-16".
    """
    return solve_many(model, [problem], plan)[0]


def solve_many(model: Model, problems: Sequence[str], plan: Plan | str | None = None) -> list[Solution]:
    """Return ``solve`` of every problem, all in the same engine calls. Answers are grouped by mathematical equality."""
    plan = parse(plan) if isinstance(plan, str) else plan or Plan()
    if not all(problem.strip() for problem in problems):
        raise ValueError("there is no problem to solve: its text is empty")
    named = ((f"problem {i}" if len(problems) > 1 else "the problem", text) for i, text in enumerate(problems, 1))
    check_room(model.engine.context, model.chat, named, *_written(plan), hint="")
    return solve_all(model.engine, model.chat, problems, plan, same)


def _written(plan: Plan) -> tuple[int, Judging]:
    """Return the longest solution of a plan in tokens, and how it is judged. What else a strategy writes is checked by the engine."""
    if not isinstance(plan.make, Independent):
        return 1, Judging("none")
    longest = max(plan.stop.caps) if isinstance(plan.stop, Lengths) else plan.max_tokens
    return longest, plan.judge if plan.judged else Judging("none")


_compared: dict[tuple[str, str], bool] = {}
PAIRS = 100_000
"""Number of pairs of answers that are remembered: a server sees answers for ever."""


def same(a: str, b: str, left: Callable[[], float] = lambda: math.inf) -> bool:
    """Return whether the grader finds two answers mathematically equal. If it cannot decide in time, they are not.

    ``left`` returns the seconds that the caller still has. Two texts of letters are not equal, unless they are one: whether they
    are words or products is not known here.
    """
    if a == b or (a.isalpha() and b.isalpha()):
        return a == b
    if (a, b) not in _compared:
        label = equal(a, b, left=left)
        if label not in ("correct", "wrong"):  # another caller may have more time
            return False
        while len(_compared) >= PAIRS:
            _compared.pop(next(iter(_compared)), None)
        _compared[a, b] = label == "correct"
    return _compared[a, b]


def service(model: Model, limits: Limits | None = None) -> Service:
    """Return the service that ``serve/`` runs. Raises ValueError if the model's context length or Yes and No are not known."""
    from twofold.engines.remote import RemoteEngine
    from twofold.serve.scheduler import Scheduler
    from twofold.serve.service import Service

    engine = model.engine
    if not isinstance(engine, NativeEngine | RemoteEngine):
        raise ValueError("a fleet cannot be served: it has no requests that advance token by token")
    if engine.context.tokens is None:
        where = "its config has no max_position_embeddings"
        if not isinstance(engine, NativeEngine):
            where = f"the upstream's list of models has no max_model_len of {engine.model}"
        raise ValueError(f"{model.name}: the context length is not known: {where}")
    _ = model.chat.yes_no_ids
    raw = not isinstance(engine, NativeEngine) and engine.raw_logprobs
    name, known = Path(model.name).name, what_it_knows(model.name)
    return Service(name, model.chat, Scheduler(engine), engine.context.tokens, same, limits, raw, known)


def what_it_knows(model: str) -> str:
    """Return a sentence about what a model was made for: the shipped one, and a run's. Of other models nothing is known here."""
    if model == SHIPPED:
        return (
            "tiny comes with twofold, is very small, and knows arithmetic puzzles and nothing else, such as: Start with 47. "
            "Add 38. What is the result?"
        )
    config = Path(model) / "config.toml"
    if not config.is_file():
        return ""
    trained = tomllib.loads(config.read_text(encoding="utf-8"))
    task = trained["task"]
    said = f"It began as {trained['model']} and was trained by {trained['recipe']['name']} on {task.get('source', task['name'])}."
    return f"{said} {what_it_knows(SHIPPED)}" if trained["model"] == SHIPPED else said


def make_task(config: TaskConfig) -> Task:
    """Return the task that a config names. Raises what its loader raises (no such file, malformed rows, a missing extra) and,
    for one that runs programs, ``sandbox.Unsafe`` where they cannot be isolated."""
    if isinstance(config, Data):
        from twofold.tasks.datasets import load as load_dataset

        return load_dataset(
            config.source, prompt_column=config.prompt_column, answer_column=config.answer_column,
            solution_column=config.solution_column, split=config.split, skip_bad=config.skip_bad, extract=config.extract,
        )  # fmt: skip
    if isinstance(config, Gym):
        from twofold.tasks.gym import GymTask

        return GymTask(config.task, seed=config.seed)
    if isinstance(config, PythonTask):
        return FromSource(config.source)
    return guarded(config)


def fitting(task: Dataset, readers: Sequence[Model], config: Eval) -> Dataset:
    """Return the data set without the problems that are too long for a model's context, and log how many these are.

    ``readers`` are the models that read the prompts, the first of which writes the solutions. Raises ValueError if nothing
    is left.
    """
    questions = [(problem.id, problem.question) for problem in task.problems]
    long: set[str] = set()
    for reader in readers:
        long |= too_long(reader.engine.context, readers[0].chat, questions, config.max_tokens, config.judge).keys()
    return task.without(long)


def _check_head(model: Model, judging: Judging) -> None:
    if judging.name == "head":
        engine = model.engine
        if not isinstance(engine, NativeEngine):
            raise ValueError("judge=head reads a scalar head that was trained here; an upstream and a fleet have none")
        if not hasattr(engine.model, "value_head"):
            raise ValueError(
                f'judge=head: {model.name} has no scalar head: it was not trained with verify = "bce" or "regression"'
            )


def audit(
    model: Model,
    task: str | Task,
    config: Audit | None = None,
    *,
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Audited:
    """Measure how often ``model`` calls right what is made to fool it, and save that as ``audit.json`` in ``out``."""
    config = config or Audit()
    _check_head(model, config.judge)
    if config.judge.name in ("last_token", "pairs"):
        why = "a text that is not the model's own has no end token of its own"
        why = why if config.judge.name == "last_token" else "it asks about one text at a time"
        raise ValueError(f"an audit cannot judge by {config.judge.name}: {why}")
    chosen = make_task(task_named(task)) if isinstance(task, str) else guarded(task)
    problems = first(chosen, config.split, config.problems)
    check_gradable(problems)
    context, questions = model.engine.context, [(p.id, p.question) for p in problems]
    check_room(context, model.chat, questions, config.max_tokens, config.judge)
    room = None if context.tokens is None else context.tokens - after(model.chat, config.judge)
    tell = progress or (lambda done, total: None)
    found = audit_task(model.engine, model.chat, chosen, problems, config, model=model.name, room=room, progress=tell)
    save_audit(found, Path(out))
    return found


def guarded(task: Task) -> Task:
    """Return a task that grades under a deadline (see ``tasks.user``). twofold's own tasks do so already.

    Raises ``sandbox.Unsafe`` for a task that runs programs, where they cannot be isolated.
    """
    if isinstance(task, Code):
        sandbox.check()
    return task if type(task).__module__.startswith("twofold.") else Guarded(task)


def rewarded(task: Task, functions: Sequence[str], weights: Sequence[float] = ()) -> Task:
    """Return the task with its rewards from these functions, if there are any (see ``tasks.user.Rewarded``)."""
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
    """Sample, grade and score problems of ``task`` with ``model``, saved in ``out``; return the directory. Then use ``report``.

    Problems that ``out`` already has are not sampled again. ``verifier`` is a second model that scores the samples in place
    of ``model`` (the separate-verifier ablation). ``plans`` that draw independent samples are computed from these samples; the
    others are run on the same problems. A short form samples and judges as ``config`` does, unless it says otherwise. If a
    plan reads the samples' certainty, it is recorded. ``config.probe`` also draws thoughts and probes them. Raises
    BlockingIOError if another process writes to ``out``.
    """
    config = config or Eval()
    chosen = make_task(task_named(task)) if isinstance(task, str) else guarded(task)
    alike = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "judge")
    like = Plan(**{name: getattr(config, name) for name in alike})
    parsed = [parse(plan, like) if isinstance(plan, str) else plan for plan in plans]
    parsed = [replace(plan, judge=resolved(plan.judge, model.chat)) for plan in parsed]
    if unjudged := [plan for plan in parsed if plan.judged and plan.judge.name not in ASKED]:
        raise ValueError(
            f"plan {unjudged[0]} cannot ask for verdicts by judge={unjudged[0].judge.name}: give it one of {', '.join(ASKED)}"
        )
    if too_large := [plan for plan in parsed if plan.n > config.n]:
        raise ValueError(
            f"plan {too_large[0]}: the evaluation draws {config.n} samples: raise --n, or lower the plan's n"
        )
    _check_head(verifier or model, config.judge)
    config.judge.asking(model.chat)  # raises for a model that was not trained for it
    if config.judge.name == "last_token" and verifier:
        raise ValueError(
            "judge=last_token reads the model that is evaluated: leave out the verifier, or choose another judge"
        )
    if traced := [plan.traces for plan in parsed if plan.traced]:
        config = replace(config, trace_top=traced[0].top, trace_window=traced[0].window)
    problems = first(chosen, config.split, config.problems)
    check_gradable(problems)
    for reader in (model, verifier) if verifier else (model,):
        questions = [(p.id, p.question) for p in problems]
        check_room(reader.engine.context, model.chat, questions, config.max_tokens, config.judge)
    for plan in parsed:
        check_room(model.engine.context, model.chat, questions, *_written(plan))
    directory = Path(out)
    with writing(directory):
        evaluate_task(
            model.engine,
            model.chat,
            chosen,
            config,
            directory,
            name=name or model.name,
            model=model.name,
            verifier=verifier.engine if verifier else None,
            verified_by=verifier.name if verifier else None,
            progress=progress or (lambda done, total: None),
        )
        if config.probe.thoughts:
            run_probes(model.engine, model.chat, chosen, problems, config.probe, directory, batch=config.batch)
        if parsed:
            header = read_header(directory)
            run_plans(
                model.engine, model.chat, chosen, problems, parsed, directory, header, batch=config.batch, same=same
            )
    return directory
