"""No option is inert: each is changed, and something that a user sees must change with it.

Every field of a run's config, of an evaluation, of a plan and of the command line has a row here, so that a new option without one
fails. A row of a run says: a run, one more option, and what must differ. The parts of a run that are compared are

* ``tokens`` and ``credit`` (everything else) of the samples that are learnt from, and the ``weights`` after it;
* ``log`` (the metrics but for clocks), ``rollouts`` and ``evals``: the lines that are written; ``files``: which files there are;
* ``work``: the sizes of the forward passes, for options that only change memory and time;
* ``error``: the run is refused, or no longer refused.
"""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors.torch import save_file
from test_train import OPTIONS

from twofold import toml, training
from twofold.config import Config
from twofold.models.decoder import Decoder
from twofold.recipes import pretrain
from twofold.run import load, shipped
from twofold.trainer.learner import Learner

CLOCKS = {"step_time", "collect_time", "update_time", "seconds"}
MINE = """
from zlib import crc32

from twofold.engines.native import NativeEngine
from twofold.recipes.common import Recipe
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Letters, Sums
from twofold.types import Grade


def mixed(problem, text):
    right = crc32(text.encode()) % 3 == 0
    return Grade(float(right) + len(text) / 100, "correct" if right else "wrong")


def brief(problem, text):
    return 1 / (1 + len(text))


class Easy(Sums):
    pass


class Words(Letters):
    pass


class Loose(Sums):
    def grade(self, problem, text):
        return "any", mixed(problem, text)


class Plain(NativeEngine):
    pass


class Other(NativeEngine):
    def generate(self, prompts, sampling, *rest):
        from dataclasses import replace
        return super().generate(prompts, replace(sampling, seed=1), *rest)


def One(setup):
    return RLV(rollouts=2).build(setup)


def Two(setup):
    return RLV(rollouts=3).build(setup)
"""
THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
ROWS = [
    {"question": f"Start with {i}. Add {i}. What is the result?", "answer": str(2 * i), "other": f"Start with {i}.",
     "third": str(i), "work": f"{i} + {i} = {2 * i}\n\\boxed{{{2 * i}}}", "more": f"\\boxed{{{2 * i}}}"}
    for i in range(4, 9)
]  # fmt: skip

COMMON = [
    "task.level=1", "rollout.problems=2", "rollout.max_tokens=24", "optim.lr=1e-2", "optim.warmup=0", "train.steps=1",
    "train.save_every=0",
]  # fmt: skip
RUNS = {
    "rlv": "recipe.rollouts=3",
    "paid": "recipe.rollouts=3 task.choice=0",
    "laser": "recipe.rollouts=4 recipe.verify=last_token rollout.max_tokens=40 rollout.problems=6 recipe.last_token.reference=-22",
    "vine": "recipe.rollouts=1 recipe.estimator=vineppo recipe.vine_k=1",
    "off": "recipe.rollouts=4 train.epochs=3 rollout.problems=5",
    "clip": "recipe.rollouts=8 recipe.verify=none rollout.problems=5 rollout.max_tokens=40 train.epochs=4 optim.lr=1e-3 "
    "task.choices=2",
    "longer": "recipe.rollouts=3 recipe.verify=none train.steps=3 rollout.problems=5 optim.lr=1e-3",
    "data": "recipe.rollouts=3 recipe.verify=none task.name=data task.source=ROWS",
    "sft": "recipe.name=sft task.name=data task.source=ROWS task.solution_column=work",
    "mrt": "recipe.name=mrt recipe.rollouts=2 recipe.branches=2 task.choice=1 task.choices=3 rollout.max_tokens=48 "
    "recipe.prover.opening=OPENING recipe.prover.hurry= recipe.prover.answer=ANSWER "
    "recipe.prover.tokens=8 recipe.episodes.shortest=1 recipe.episodes.most=5",
    "rlcr": "recipe.name=rlcr recipe.rollouts=3 rollout.problems=6 rollout.temperature=1.5",
    "mrt_b": "recipe.name=mrt_b recipe.rollouts=2 recipe.branches=2 recipe.continuations=2 task.choice=0 task.level=3 "
    "rollout.problems=6 rollout.max_tokens=40",
    "generator": "recipe.name=tango recipe.rollouts=3 recipe.verifier_warmup=0 recipe.cut=lines recipe.verifier_tokens=40 "
    "task.choice=0 task.level=2 rollout.max_tokens=40 recipe.question=CHECK recipe.alpha=0.5",
    "python": "recipe.name=python recipe.source=MINE:One",
    "base": "recipe.name=base recipe.hidden=32 recipe.layers=1 recipe.heads=2 recipe.ffn=32 recipe.documents=24",
}
RUNS["verifier"] = (
    RUNS["generator"]
    + " recipe.verifier_warmup=1 recipe.rollouts=4 recipe.verifier_tokens=80 task.level=3 rollout.problems=6 "
    "rollout.temperature=1.2"
)
RUNS["turns"] = (
    RUNS["generator"] + " recipe.rollouts=2 recipe.generator_updates=1 recipe.verifier_updates=1 train.steps=3"
)
RUNS["two"] = RUNS["verifier"] + " recipe.share=false recipe.rollouts=2"

ROWS_OF_RUNS = """
model                          rlv    model=OTHER                                       tokens
model_backend                  rlv    model_backend=module                              work
system                         rlv    system=Brief.                                     tokens
reward                         paid   reward=["MINE:mixed"]                               credit
reward_weights                 paid   reward=["MINE:mixed","MINE:brief"] / reward_weights=[1,9]   credit
recipe                         rlv    recipe.name=mrt                                   credit
recipe[rlv].estimator          rlv    rollout.problems=6 / recipe.estimator=grpo         credit
recipe[rlv].verify             rlv    recipe.verify=none                                credit
recipe[rlv].lam                rlv    recipe.lam=0.5                                    credit
recipe[rlv].lam_warmup         rlv    recipe.lam_warmup=4                               credit
recipe[rlv].verify_warmup      rlv    recipe.verify_warmup=1                            credit
recipe[rlv].adversarial        rlv    recipe.adversarial=0.3                            credit
recipe[rlv].balance            rlv    recipe.balance=balanced                           credit
recipe[rlv].truncated          paid   rollout.max_tokens=12 / recipe.truncated=exclude  credit
recipe[rlv].rollouts           rlv    recipe.rollouts=2                                 tokens
recipe[rlv].refills            paid   recipe.refills=2                                  tokens
recipe[rlv].vine_k             vine   rollout.problems=6 / recipe.vine_k=3               credit
recipe[rlv].last_token.token     laser  recipe.last_token.token=<think>                 log
recipe[rlv].last_token.scale     laser  recipe.last_token.scale=0.2                     credit
recipe[rlv].last_token.reference  laser  recipe.last_token.reference=-20                credit
recipe[rlv].last_token.after     laser  recipe.last_token.after=1                       credit
recipe[rlv].last_token.mix       laser  recipe.last_token.scale=1 / recipe.last_token.mix=0.5   credit
recipe[rlv].last_token.mix_after  laser  recipe.last_token.scale=1 recipe.last_token.mix=0.5 / recipe.last_token.mix_after=1   credit
recipe[rlv].score_every        rlv    recipe.score_every=0                              log
recipe[rlcr].estimator         rlcr   recipe.estimator=grpo                             credit
recipe[rlcr].rollouts          rlcr   recipe.rollouts=2                                 tokens
recipe[rlcr].lam               rlcr   recipe.lam=0.5                                    credit
recipe[rlcr].credit            rlcr   recipe.credit=split                               credit
recipe[mrt].method             mrt    recipe.method=grpo                                tokens
recipe[mrt].rollouts           mrt    recipe.rollouts=3                                 tokens
recipe[mrt].alpha              mrt    recipe.alpha=0.5                                  credit
recipe[mrt].source             mrt    recipe.method=star train.steps=2 rollout.problems=6 / recipe.source=start   tokens
recipe[mrt].bonus              mrt    recipe.bonus=termination                          credit
recipe[mrt].branches           mrt    recipe.branches=4                                 tokens
recipe[mrt].where              mrt    rollout.problems=6 / recipe.where=late            tokens
recipe[mrt].answers            mrt    recipe.method=online / recipe.answers=2           credit
recipe[mrt].progress           mrt    recipe.method=online / recipe.progress=likelihood   credit
recipe[mrt].reward_to_go       mrt    recipe.method=online rollout.problems=8 rollout.max_tokens=96 / recipe.reward_to_go=true   credit
recipe[mrt].keep               mrt    recipe.method=mrt_star rollout.problems=6 / recipe.keep=problem   tokens
recipe[mrt].penalty            mrt    recipe.method=length rollout.problems=6 / recipe.penalty=0.9   credit
recipe[mrt].prover.opening     mrt    recipe.prover.opening=                            tokens
recipe[mrt].prover.hurry       mrt    rollout.problems=6 / recipe.prover.hurry=So       tokens
recipe[mrt].prover.end         mrt    recipe.prover.end=</step>                         tokens
recipe[mrt].prover.answer      mrt    recipe.prover.answer=So                           tokens
recipe[mrt].prover.tokens      mrt    recipe.prover.tokens=2                            tokens
recipe[mrt].episodes.shortest  mrt    recipe.method=online / recipe.episodes.shortest=9  credit
recipe[mrt].episodes.most      mrt    recipe.method=online / recipe.episodes.most=0     credit
recipe[mrt].episodes.group     mrt    recipe.method=online / recipe.episodes.group=3    credit
recipe[mrt].episodes.marks     mrt    recipe.method=online / recipe.episodes.marks=["never"]   credit
recipe[mrt_b].method           mrt_b  recipe.method=grpo                                tokens
recipe[mrt_b].rollouts         mrt_b  recipe.rollouts=3                                 tokens
recipe[mrt_b].alpha            mrt_b  recipe.alpha=0                                    tokens
recipe[mrt_b].bonus            mrt_b  task.name=python task.source=MINE:Loose rollout.temperature=3 / recipe.bonus=termination   credit
recipe[mrt_b].branches         mrt_b  recipe.branches=3                                 tokens
recipe[mrt_b].source           mrt_b  recipe.method=star train.steps=2 rollout.problems=6 / recipe.source=start   tokens
recipe[mrt_b].continuations    mrt_b  reward=["MINE:mixed"] recipe.method=warm / recipe.continuations=4   tokens
recipe[mrt_b].learn            mrt_b  recipe.method=warm / recipe.learn=turn            credit
recipe[tango].share            two    recipe.share=true                                 files
recipe[tango].verifier         two    recipe.verifier=OTHER                             weights
recipe[tango].estimator        generator  recipe.estimator=rloo                         credit
recipe[tango].rollouts         generator  recipe.rollouts=2                             tokens
recipe[tango].generator_updates  turns  recipe.generator_updates=2                      tokens
recipe[tango].verifier_updates   turns  recipe.verifier_updates=2                       tokens
recipe[tango].verifier_warmup    turns  recipe.verifier_warmup=1                        tokens
recipe[tango].alpha            generator  recipe.alpha=0.9                              credit
recipe[tango].alpha_min        generator  train.steps=2 rollout.problems=6 optim.lr=1e-5 / recipe.alpha_min=0.4   credit
recipe[tango].credit           generator  recipe.credit=first_error                     credit
recipe[tango].verifications    generator  recipe.verifications=3                        credit
recipe[tango].verifier_learns  verifier  recipe.verifier_learns=sft                     credit
recipe[tango].format           verifier  rollout.temperature=2 / recipe.format=0         credit
recipe[tango].class_weights    verifier  recipe.class_weights=false                     credit
recipe[tango].ema verifier recipe.verifier_warmup=2 train.steps=2 rollout.temperature=1.5 optim.lr=1e-5 / recipe.ema=0 credit
recipe[tango].consistency      verifier  rollout.temperature=2 / recipe.consistency=1    credit
recipe[tango].step_labels      verifier  rollout.temperature=2 / recipe.step_labels=1    credit
recipe[tango].continuations    verifier  recipe.step_labels=1 / recipe.continuations=1  log
recipe[tango].label_ratio      verifier  rollout.problems=10 recipe.rollouts=6 recipe.step_labels=1 / recipe.label_ratio=1   credit
recipe[tango].cut              generator  recipe.cut=tags                               credit
recipe[tango].question         verifier  recipe.question=Right?                         tokens
recipe[tango].verifier_tokens  verifier  recipe.verifier_tokens=8                       tokens
recipe[base].hidden            base   recipe.hidden=64                                  weights
recipe[base].layers            base   recipe.layers=2                                   weights
recipe[base].heads             base   recipe.heads=4                                    weights
recipe[base].ffn               base   recipe.ffn=64                                     weights
recipe[base].vocabulary        base   recipe.vocabulary=400                             tokens
recipe[base].documents         base   recipe.documents=4                                tokens
recipe[base].mix.countdown     base   recipe.mix.countdown=0.9                          tokens
recipe[base].mix.letters       base   recipe.mix.letters=0.9                            tokens
recipe[base].mix.choice        base   recipe.mix.choice=0                               tokens
recipe[base].mix.think         base   recipe.mix.think=0.9                              tokens
recipe[base].mix.critique      base   recipe.mix.critique=0.7                           tokens
recipe[base].mix.facts         base   recipe.mix.facts=0                                tokens
recipe[base].mix.words         base   recipe.mix.words=0.5                              tokens
recipe[base].mix.late          base   recipe.mix.late=0                                 tokens
recipe[base].mix.wrong_guess   base   recipe.mix.wrong_guess=0                          tokens
recipe[base].mix.slip          base   recipe.mix.slip=0.9                               tokens
recipe[base].mix.planted_guess base   recipe.mix.planted_guess=0                        tokens
recipe[base].mix.planted_slip  base   recipe.mix.planted_slip=0.9                       tokens
recipe[python].source          python recipe.source=MINE:Two                            tokens
task                           rlv    task.name=letters                                 tokens
task[sums].level               rlv    task.level=2                                      tokens
task[sums].choice              rlv    task.choice=0                                     tokens
task[sums].choices             rlv    task.choices=2                                    tokens
task[sums].operations          rlv    task.operations=+                                 tokens
task[sums].top                 rlv    task.top=40                                       tokens
task[sums].seed                rlv    task.seed=1                                       tokens
task[countdown].level          rlv    task.name=countdown task.level=2 / task.level=3   tokens
task[countdown].seed           rlv    task.name=countdown task.level=2 / task.seed=1    tokens
task[code].level               rlv    task.name=code rollout.max_tokens=4 / task.level=2   tokens
task[code].seed                rlv    task.name=code rollout.max_tokens=4 / task.seed=1    tokens
task[letters].level            rlv    task.name=letters / task.level=2                  tokens
task[letters].seed             rlv    task.name=letters / task.seed=1                   tokens
task[data].source              data   task.source=MORE                                  tokens
task[data].prompt_column       data   task.prompt_column=other                          tokens
task[data].answer_column       data   task.answer_column=third                          rollouts
task[data].solution_column     sft    task.solution_column=more                         tokens
task[data].extract             data   rollout.max_tokens=6 / task.extract=number        rollouts
task[data].skip_bad            data   task.source=BAD / task.skip_bad=true              error
task[data].skip_long           data   task.source=LONG / task.skip_long=true            error
task[gym].task                 rlv    task.name=gym task.task=chain_sum / task.task=leg_counting   tokens
task[gym].seed                 rlv    task.name=gym task.task=chain_sum / task.seed=1   tokens
task[python].source            rlv    task.name=python task.source=MINE:Easy / task.source=MINE:Words   tokens
rollout.problems               rlv    rollout.problems=3                                tokens
rollout.temperature            rlv    rollout.temperature=0.5                           tokens
rollout.max_tokens             rlv    rollout.max_tokens=12                             tokens
chat.enable_thinking           rlv    model=THINKING / chat.enable_thinking=true        tokens
chat.think_end                 rlv    model=THINKING chat.enable_thinking=true rollout.max_tokens=12 / chat.think_end=</think>   tokens
chat.opening                   rlv    chat.opening=Hm                                   tokens
judge.question                 rlv    judge.question=Right?                             tokens
engine                         rlv    engine.name=python engine.source=MINE:Other       tokens
engine[native].exact           rlv    engine.exact=true                                 log
engine[native].max_rows        rlv    engine.max_rows=3                                 work
engine[python].source          rlv    engine.name=python engine.source=MINE:Plain / engine.source=MINE:Other   tokens
optim.name                     rlv    optim.name=muon                                   weights
optim.lr                       rlv    optim.lr=1e-4                                     weights
optim.schedule                 longer  optim.schedule=linear                            weights
optim.warmup                   longer  optim.warmup=1                                   weights
optim.hold                     longer  optim.schedule=linear / optim.hold=0.7           weights
optim.final                    longer  optim.schedule=linear / optim.final=0.5          weights
optim.beta1                    longer  optim.beta1=0                                    weights
optim.beta2                    longer  optim.beta2=0.5                                  weights
optim.weight_decay             longer  optim.weight_decay=0.5                           weights
optim.clip                     longer  optim.clip=0.01                                  weights
loss.kind                      off    loss.kind=cispo                                   weights
loss.clip_low                  off    loss.clip_low=0.01                                weights
loss.clip_high                clip   loss.clip_high=0.01                               weights
loss.cap                       off    loss.kind=cispo / loss.cap=0.9                    weights
loss.normalise                 off    loss.normalise=sequence                           weights
loss.constant                  off    loss.normalise=constant / loss.constant=9         weights
loss.beta                      off    loss.beta=0.5                                     weights
loss.correction                rlv    loss.correction=token_truncate                    log
loss.correction_cap            paid   loss.correction=token_truncate / loss.correction_cap=0.5   log
lora.rank                      rlv    lora.rank=4                                       files
lora.alpha                     rlv    lora.rank=4 / lora.alpha=5                        log
lora.targets                   rlv    lora.rank=4 / lora.targets=["q_proj"]             log
train.steps                    longer  train.steps=2                                    files
train.seed                     rlv    train.seed=1                                      tokens
train.epochs                   rlv    train.epochs=2                                    weights
train.minibatches              rlv    train.minibatches=2                               weights
train.micro_tokens             rlv    train.micro_tokens=40                             work
train.precision                rlv    train.precision=bfloat16                          weights
train.checkpointing            rlv    train.checkpointing=true                          work
train.save_every               longer  train.save_every=1                               files
train.keep                     longer  train.save_every=1 / train.keep=1                files
eval.every                     rlv    eval.problems=2 eval.n=2 / eval.every=1           files
eval.task                      rlv    eval.problems=2 eval.n=2 eval.every=1 / eval.task=letters   evals
eval.problems                  rlv    eval.problems=2 eval.n=2 eval.every=1 / eval.problems=1   evals
eval.n                         rlv    eval.problems=2 eval.n=2 eval.every=1 / eval.n=1  evals
log.to                         rlv    log.to=["tensorboard"]                              files
log.rollouts                   rlv    log.rollouts=1                                    rollouts
"""


def table(text: str) -> dict[str, tuple[str, list[str], list[str], str]]:
    """Return option -> (run, words of both runs, words of the changed one, what must differ)."""
    found = {}
    for line in text.strip().splitlines():
        option, run, *words, must = line.split()
        both = words[: words.index("/")] if "/" in words else []
        found[option] = (run, both, words[len(both) + bool(both) :], must)
    return found


CASES = table(ROWS_OF_RUNS)
APART = (
    "engine[vllm].", "engine[vllm-server].", "engine[fleet].", "train.ahead", "task[data].split", "train.shard", "lora.quantise",
)  # fmt: skip
"""The options of engines that have environments of their own (make test-vllm, make test-fleet), the one of runs with them
(test_ahead.py), one of sets on the hub, one of runs in many processes (test_dist.py shows that each holds a part of the weights),
and one that needs a package (test_lora.py)."""


def leaves(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield every option of a class of options. Where a part is chosen by name: the choice, and each part's own, ``part[name].x``."""
    for field in fields(cls):
        hint = get_type_hints(cls, include_extras=True)[field.name]
        while get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        union = get_origin(hint) in (Union, types.UnionType)
        parts = [x for x in (get_args(hint) if union else [hint]) if is_dataclass(x)]
        place = f"{prefix}{field.name}"
        if len(parts) > 1:
            yield place
        elif field.name == "name" and len(get_args(hint)) == 1:
            continue  # which part this is
        elif not parts:
            yield place
        for part in parts:
            name = f"[{get_args(get_type_hints(part)['name'])[0]}]" if len(parts) > 1 else ""
            yield from leaves(part, f"{place}{name}.")


def some(options: Iterable[str]) -> list[Any]:
    """Return every twelfth of these for the quick suite; ``make torture`` takes the others."""
    return [o if i % 12 == 0 else pytest.param(o, marks=pytest.mark.torture) for i, o in enumerate(options)]


def test_every_option_of_a_run_has_a_row() -> None:
    every = sorted(leaves(Config))
    assert sorted(CASES) == [option for option in every if not option.startswith(APART)]
    flat = {option.replace(option[option.find("[") : option.find("]") + 1], "") for option in every}
    assert flat == {option.removesuffix(".name") if option.count(".") == 1 and not option.startswith("optim") else option
                    for option in OPTIONS}  # fmt: skip


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    root = tmp_path_factory.mktemp("options")
    places = files_for(root)
    cached = lru_cache(maxsize=None)(lambda words: trace(words, root / f"run-{abs(hash(words))}"))

    def act(name: str, *words: str) -> dict[str, Any]:
        written = [*COMMON, *RUNS[name].split(), *words]
        tasks = [word for word in written if word.startswith("task.name=")]
        if tasks and tasks[-1].endswith(("data", "gym", "python")):  # they have no level
            written = [word for word in written if not word.startswith(("task.level", "task.choice"))]
        return cached(tuple(replaced(word, places) for word in written))

    return act


def replaced(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


def files_for(root: Path) -> dict[str, str]:
    """Write what the runs read, and return the words that stand for it."""
    (root / "mine.py").write_text(MINE)
    bad, long = [*ROWS[:3], {"question": "What?"}], [*ROWS[:3], ROWS[3] | {"question": "Add 1. " * 900}]
    for name, rows in (("rows", ROWS), ("more", ROWS[::-1][:3]), ("bad", bad), ("long", long)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = shutil.copytree(shipped(), root / "other")
    model = load("tiny").engine.model
    noise = torch.Generator().manual_seed(0)
    weights = {
        k: v + 0.1 * v.std() * torch.randn(v.shape, generator=noise)
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    thinking = shutil.copytree(shipped(), root / "thinking")
    (thinking / "chat_template.jinja").write_text(THINKING)
    names = {name.upper(): str(root / f"{name}.jsonl") for name in ("rows", "more", "bad", "long")}
    return names | {
        "MINE": str(root / "mine.py"), "OTHER": str(other), "THINKING": str(thinking), "OPENING": "<think>\n",
        "ANSWER": "\n\\boxed{", "CHECK": "Check each step, then the whole solution.",
    }  # fmt: skip


def trace(words: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Train as the words say, and return what a user sees of it, by the names at the top of this file."""
    seen: dict[str, Any] = {name: [] for name in ("tokens", "credit", "work")}
    with pytest.MonkeyPatch.context() as patch:
        update, call, layer = Learner.update, Decoder.__call__, Decoder._run

        def updated(self: Learner, samples: Any) -> Any:
            seen["tokens"] += [s.tokens for s in samples]
            seen["credit"] += [(s.sampled, s.advantages, s.targets, s.values, s.fits) for s in samples]
            return update(self, samples)

        def called(self: Decoder, ids: Any, *rest: Any) -> Any:
            seen["work"].append(tuple(ids.shape))
            return call(self, ids, *rest)

        def ran(self: Decoder, *rest: Any) -> Any:
            seen["work"].append("layer")
            return layer(self, *rest)

        patch.setattr(Learner, "update", updated)
        patch.setattr(Decoder, "__call__", called)
        patch.setattr(Decoder, "_run", ran)
        if not any(word.startswith("recipe.vocabulary") for word in words):  # making one takes seconds
            patch.setattr(pretrain, "make_tokenizer", lambda config: load("tiny").tokenizer)
        try:
            last = training.train(toml.override(Config(), list(words)), out)
            seen["weights"] = {p.relative_to(last): p.read_bytes() for p in sorted(last.rglob("model.safetensors"))}
        except (ValueError, OSError, ImportError) as error:
            seen["error"] = str(error)
    rows = {p.relative_to(out): lines(p) for p in sorted(out.rglob("*.jsonl"))} if out.exists() else {}
    seen["files"] = sorted("events" if "events" in p.name else str(p.relative_to(out)) for p in out.rglob("*"))
    seen["evals"] = [rows[path] for path in rows if path.parts[0] == "evals"]
    return seen | {"log": rows.get(Path("metrics.jsonl")), "rollouts": rows.get(Path("rollouts.jsonl"))}


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


@pytest.mark.parametrize("option", some(CASES))
def test_an_option_of_a_run_changes_what_it_says(option: str, run: Callable[..., dict[str, Any]]) -> None:
    if "[gym]" in option:
        pytest.importorskip("reasoning_gym")
    name, both, changed, must = CASES[option]
    before, after = run(name, *both), run(name, *both, *changed)
    if must != "error":
        assert "error" not in before | after, before.get("error") or after.get("error")
    assert before.get(must) != after.get(must), f"{' '.join(changed)} leaves {must} as it is"


def test_two_runs_of_the_same_options_are_the_same(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """So what changed above is the option's doing."""
    words = tuple([*COMMON, "recipe.rollouts=2", "eval.every=1", "eval.problems=2", "eval.n=2"])
    first, again = (trace(words, tmp_path / name) for name in "ab")
    assert first == again and "error" not in first
