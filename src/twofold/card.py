"""The model card of a trained checkpoint: its base, its training, what was measured, how to judge with it. And its way to a hub.

Everything in a card is read from the run's directory. What is not known there is not claimed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twofold import __version__, hub, toml
from twofold.config import ALIASES, SHIPPED, Config
from twofold.durable import write_text
from twofold.evals.pools import HEADER
from twofold.evals.records import Evaluation
from twofold.evals.report import summarise
from twofold.models import lora
from twofold.models.checkpoints import MANIFEST, STATE, TRAINER, latest_checkpoint, verify
from twofold.models.io import ASKED_AS, asked_as, chat_options, load_tokenizer
from twofold.same_run import CONFIG
from twofold.text.chat import Chat
from twofold.text.prompts import CONFIDENCE
from twofold.trainer.log import METRICS

CARD = "README.md"
HERE = "PATH/OF/THIS/MODEL"
"""Stands for the model's name in a card that was not made for a hub."""
OTHER_JUDGES = {
    "pairs": (
        "The model was trained to say which of two of its solutions is right. A tournament of such questions scores the solutions.",
        "weighted-16:judge=pairs,answers=true,budget=1,both=false",
    ),
    "rlcr": (
        f'After a solution the model is asked: "{CONFIDENCE}" Its confidence, from 0 to 1, is the score of the solution.',
        "weighted-16:judge=stated",
    ),
    "last_token": (
        "The score of a solution is read from the log-prob of one token after it. Nothing is asked.",
        "weighted-16:judge=last_token",
    ),
}
"""``recipe.verify``, or the recipe's name -> how such a model judges if not by P(Yes), and the plan that asks it so."""


def write(run: Path) -> Path:
    """Write the card of a run's newest checkpoint to the run's directory, and return its path.

    It does not go into the checkpoint, whose files are sealed by a manifest; ``push`` puts the two together.
    """
    write_text(run / CARD, card(run))
    return run / CARD


def push(run: Path, repo: str, *, private: bool = False, dry_run: bool = False) -> dict[str, int]:
    """Upload a run's newest checkpoint with its card to ``repo`` (OWNER/NAME) on the hub; return the sizes of the files by name.

    What only training reads stays here. Raises ValueError for an adapter whose base is a directory of this machine, Damaged if
    the checkpoint is not as it was written, and hub.Unreachable if the hub does not take it.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ValueError(f"{repo!r} is no name on a hub: write OWNER/NAME")
    checkpoint = _checkpoint(run)
    if (base := lora.base_of(checkpoint)) and Path(base).exists():
        raise ValueError(
            f"{checkpoint} is an adapter of {base}, which nobody else has: write a whole model with "
            f"`twofold convert {checkpoint} OUT`"
        )
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.parent.name != TRAINER]
    files: dict[str, Path | bytes] = {str(path.relative_to(checkpoint)): path for path in paths}
    files |= {CARD: card(run, repo).encode(), ASKED_AS: (json.dumps(asked_as(checkpoint), indent=2) + "\n").encode()}
    if not dry_run:
        hub.upload(repo, files, private=private)
    return {x: len(f) if isinstance(f, bytes) else f.stat().st_size for x, f in sorted(files.items())}


def card(run: Path, name: str = HERE) -> str:
    """Return the model card of a run's newest checkpoint, to be published as ``name``.

    Raises FileNotFoundError if ``run`` is not a run with a checkpoint.
    """
    checkpoint = _checkpoint(run)
    config = toml.load(Config, run / CONFIG, ALIASES)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    found = _evaluations(run, checkpoint)
    title = name.rpartition("/")[2] if name != HERE else run.resolve().name
    parts = [
        f"---\n{_metadata(config, checkpoint, found, title)}\n---",
        f"# {title}",
        "A language model that was trained by reinforcement learning with twofold. This card was written by the program from "
        "the run's own files.",
        _table(["", ""], _facts(config, checkpoint, state)),
        "## Figures",
        _figures(run, found),
        "## Judge with it",
        _judging(config, checkpoint, name),
        "## Limits",
        "The figures hold for the task, the sampling and the seed named here. They say nothing of other problems: outside its "
        "task the model may answer with confidence and be wrong. A verdict is evidence and no proof.",
        "## Every option of the run",
        f"```toml\n{_without_folders(toml.to_toml(config)).strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _checkpoint(run: Path) -> Path:
    checkpoint = latest_checkpoint(run)
    if checkpoint is None or not (run / CONFIG).is_file():
        raise FileNotFoundError(f"{run} is not a run with a checkpoint: a run directory has {CONFIG} and checkpoints/")
    if not (checkpoint / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{checkpoint} has no {MANIFEST}: an older version wrote it; train a step with this one"
        )
    verify(checkpoint)
    return checkpoint


def _evaluations(run: Path, checkpoint: Path) -> list[Evaluation]:
    """Return the evaluations in a run, those of earlier checkpoints left out."""
    folders = [path.parent for path in sorted(run.glob(f"evals/*/{HEADER}"))]
    folders = [path for path in folders if path.name == checkpoint.name or not path.name.startswith("step-")]
    return [e for task in summarise(folders).tasks for e in task.evaluations] if folders else []


def _metadata(config: Config, checkpoint: Path, found: list[Evaluation], title: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation", dataset_type=e.header.task, dataset_name=f"{e.header.task} ({e.header.split})",
            metric_type="accuracy", metric_name=metric, metric_value=round(e.accuracy[metric].mean, 4),
        )
        for e in found
        for metric in _metrics(e)
    ]  # fmt: skip
    data = ModelCardData(
        library_name="peft" if lora.base_of(checkpoint) else "transformers",
        pipeline_tag="text-generation",
        base_model=config.model if _on_hub(config.model) else None,
        license="apache-2.0" if config.model == SHIPPED else None,
        tags=["twofold", "reinforcement-learning", config.recipe.name],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _on_hub(model: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and not Path(model).exists()


def _facts(config: Config, checkpoint: Path, state: Mapping[str, Any]) -> list[list[str]]:
    local = config.model != SHIPPED and not _on_hub(config.model)
    base = f"{Path(config.model).name}, a local model" if local else config.model
    base += f", which comes with twofold {__version__}" if config.model == SHIPPED else ""
    recipe = ", ".join(f"{name} = {value}" for name, value in asdict(config.recipe).items() if not _nested(value))
    task = ", ".join(f"{name} = {value}" for name, value in asdict(config.task).items() if value is not None)
    rollouts = getattr(config.recipe, "rollouts", None)
    drawn = f"{config.rollout.problems} problems" + (f" x {rollouts} rollouts" if rollouts else "")
    return [
        ["Base", base],
        ["sha256 of the weights that training began with", state["inputs"]["model"]],
        ["Method", _without_folders(recipe)],
        ["Trained on", _without_folders(task)],
        [
            "Steps",
            f"{state['step']} of {config.train.steps}, each {drawn} of at most {config.rollout.max_tokens} tokens",
        ],
        ["Seed", f"{config.train.seed}; one run"],
        ["Licence", "Apache-2.0" if config.model == SHIPPED else "that of the base"],
    ]


def _nested(value: Any) -> bool:
    return value is None or isinstance(value, dict | list | tuple)


def _without_folders(text: str) -> str:
    """Return a text without the folders of this machine's absolute paths, which are nobody else's business."""
    return re.sub(r"(?<![\w.~:/-])/(?:[^/\s\"']+/)+", "", text)


def _metrics(e: Evaluation) -> list[str]:
    """Return pass@1 and every rule's accuracy at the largest k."""
    return [
        "pass@1",
        *(f"{rule}@{e.ks[-1]}" for rule in ("maj", "best", "weighted") if f"{rule}@{e.ks[-1]}" in e.accuracy),
    ]


def _figures(run: Path, found: list[Evaluation]) -> str:
    rows = []
    for e in found:
        about = f"{Path(e.header.model).name} on {e.header.task} ({e.header.split}), seed {e.header.seed}"
        sizes = f"{e.problems} x {e.samples}"
        rows += [[about, sizes, m, f"{(a := e.accuracy[m]).mean:.1%} [{a.low:.1%}, {a.high:.1%}]"] for m in _metrics(e)]
        if q := e.verifier:
            for name, value, (low, high) in (
                (f"AUROC of {_score(e)}", q.auroc, q.auroc_interval),
                ("balanced accuracy", q.balanced_accuracy, q.balanced_accuracy_interval),
                ("calibration error (ECE)", q.ece, q.ece_interval),
            ):
                rows.append([about, sizes, name, f"{value:.2f} [{low:.2f}, {high:.2f}]"])
    said = [
        _without_folders(
            _table(["evaluated", "problems x samples", "figure", "value [95% interval over problems]"], rows)
        )
    ]
    if not rows:
        said = [
            "No evaluation of this checkpoint was found in the run's directory, so nothing is claimed about how good it is."
        ]
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines() if (run / METRICS).is_file() else []
    if lines:
        last = json.loads(lines[-1])
        names = ("reward", "verifier/auroc", "verifier/balanced_accuracy", "completions/mean_length")
        seen = ", ".join(f"{name} {last[name]:.3g}" for name in names if last.get(name) is not None)
        said.append(f"On the training problems of its last step ({last['step']}), without an interval: {seen}.")
    return "\n\n".join(said)


def _score(e: Evaluation) -> str:
    return e.header.score if e.header.score == "P(Yes)" else f"the score ({e.header.judge})"


def _judging(config: Config, checkpoint: Path, name: str) -> str:
    tokenizer = load_tokenizer(checkpoint)
    chat = Chat(tokenizer, config.system, **chat_options(checkpoint))
    verify = getattr(config.recipe, "verify", None)
    if (method := verify or config.recipe.name) in OTHER_JUDGES:
        said, plan = OTHER_JUDGES[method]
        code = f'import twofold as tf\nfrom twofold.compute.plan import parse\n\nplan = parse("{plan}")\n'
        code += f'print(tf.solve(tf.load("{name}"), "a problem", plan))'
        return f"{said} Ask for it as it was trained, by this plan:\n\n```python\n{code}\n```"
    trained = (
        "The model was trained to answer it by one token, Yes or No."
        if verify == "generative"
        else f"This run did not train that answer (method {config.recipe.name}{f', verify = {verify}' if verify else ''})."
    )
    asked = f'After a solution the model is asked: "{chat.question}" {trained} P(Yes) is the score of the solution.'
    ours = f'```python\nimport twofold as tf\n\nprint(tf.solve(tf.load("{name}"), "a problem", tf.Plan(n=16)))\n```'
    own = chat.think_end or chat.opening or lora.base_of(checkpoint) or verify in ("bce", "regression")
    if own or tokenizer.chat_template is None:
        return f"{asked} Prompts of this model need more than its chat template, so let twofold ask:\n\n{ours}"
    system = '{"role": "system", "content": ' + repr(config.system) + "}, " if config.system else ""
    thinking = "" if chat.enable_thinking is None else f", enable_thinking={chat.enable_thinking}"
    code = f"""import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
# the tokens that end the solution's turn, ask the question and begin the reply, as they were trained
question = {chat.follow_up(chat.question)}


def p_yes(problem, solution):
    talk = [{system}{{"role": "user", "content": problem}}]
    prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True{thinking})["input_ids"]
    reply = tokenizer(solution, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *reply, *question]])).logits[0, -1].float()
    return logits.softmax(-1)[{chat.yes_no_ids[0]}].item()  # the token Yes"""
    return f"{asked} With plain transformers:\n\n```python\n{code}\n```\n\nOr sample, judge and vote with twofold:\n\n{ours}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
