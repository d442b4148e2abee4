"""Models that think: with Qwen3's and R1's own templates, every question about a solution is asked with its thought closed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_models import random_model
from serving import serving
from small_tokenizers import CHATML, R1, THINK, real, small

import twofold as tf
from twofold import cli, toml
from twofold.compute.judge import p_yes, question
from twofold.compute.rollout import draw
from twofold.config import Config
from twofold.recipes.rlv import RLV, Recipe
from twofold.run import Model, connect, load
from twofold.tasks.procedural import Sums
from twofold.text.chat import Chat, Turn
from twofold.text.prompts import JUDGE
from twofold.types import Sampling

TOKENIZERS = {"qwen3": ("bytes", real("qwen3"), CHATML, THINK), "r1": ("bytes", real("r1_distill"), R1, THINK)}
THOUGHT, ANSWER = "12 + 34 = 46.", "The sum is 46."
ENDED = f"{THOUGHT}\n</think>\n\n{ANSWER}"
QWEN_ASKS = f"<|im_end|>\n<|im_start|>user\n{JUDGE}<|im_end|>\n<|im_start|>assistant\n"
R1_ASKS = f"<｜end▁of▁sentence｜><｜User｜>{JUDGE}<｜Assistant｜>"
EMPTY = "<think>\n\n</think>\n\n"


def chat(name: str, **options: Any) -> Chat:
    return Chat(small(*TOKENIZERS[name]), **options)


def text(chat: Chat, tokens: list[int]) -> str:
    return chat.tokenizer.decode(tokens)


def after(chat: Chat, solution: str, ended: bool, **options: Any) -> str:
    """Return the text from the solution on, asked the verdict question."""
    prompt = chat.prompt("2?")
    tokens = [*prompt, *chat.encode(solution, tags=True), *chat.stop[: int(ended)]]
    return text(chat, chat.ask(tokens, JUDGE, **options)[len(prompt) :])


def think_model(name: str, folder: Path) -> Path:
    """Save a random model with the tokenizer of a thinking one, and a generation config with more stop tokens."""
    tokenizer = small(*TOKENIZERS[name])
    random_model("Llama", folder, vocab_size=len(tokenizer), max_position_embeddings=512)
    for file in [*folder.glob("*token*"), *folder.glob("*.jinja")]:
        file.unlink()
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": [tokenizer.eos_token_id, 40, 41]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return think_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


# Prompts and questions ------------------------------------------------------------------------------------------------


def test_where_a_thought_begins() -> None:
    """R1's template opens it, Qwen3's model does; without thinking Qwen3's template writes an empty one."""
    for name, options, end in (
        ("qwen3", {}, "<|im_start|>assistant\n"),
        ("qwen3", {"enable_thinking": True}, "<|im_start|>assistant\n"),
        ("qwen3", {"enable_thinking": False}, f"<|im_start|>assistant\n{EMPTY}"),
        ("r1", {}, "<｜Assistant｜><think>\n"),
    ):
        one = chat(name, **options)
        wanted = one.tokenizer.apply_chat_template(
            [{"role": "user", "content": "2?"}], add_generation_prompt=True, return_dict=False, **options
        )
        assert one.prompt("2?") == wanted
        assert text(one, wanted).endswith(end)


def test_the_verdict_is_asked_outside_a_thought() -> None:
    for options in ({}, {"enable_thinking": False}):
        one = chat("qwen3", **options)
        assert after(one, f"<think>\n{ENDED}", True) == f"<think>\n{ENDED}{QWEN_ASKS}{EMPTY}"
        assert after(one, ANSWER, True) == f"{ANSWER}{QWEN_ASKS}{EMPTY}"
    assert after(chat("r1"), ENDED, True) == f"{ENDED}{R1_ASKS}{EMPTY}"


def test_a_thought_that_was_cut_off_is_closed() -> None:
    """Unless the model ended its turn within it: its tokens stay as they are, and the turn is over."""
    opened = f"<think>\n{THOUGHT}"
    assert after(chat("qwen3"), opened, False) == f"{opened}\n</think>\n\n{QWEN_ASKS}{EMPTY}"
    assert after(chat("r1"), THOUGHT, False) == f"{THOUGHT}\n</think>\n\n{R1_ASKS}{EMPTY}"
    assert after(chat("r1"), THOUGHT, True) == f"{THOUGHT}{R1_ASKS}{EMPTY}"
    for name, solution in (("qwen3", f"<think>\n{ENDED}"), ("qwen3", THOUGHT), ("r1", ENDED)):
        assert after(chat(name), solution, False).startswith(f"{solution}{chat(name).tokenizer.eos_token}")
    closed = chat("qwen3", enable_thinking=False)
    assert after(closed, THOUGHT, False).startswith(f"{THOUGHT}<|im_end|>")


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_earlier_replies_are_kept_as_the_template_keeps_them(name: str) -> None:
    """Without their thoughts; the reply to a question about a solution has none."""
    turns = [("user", "1?"), ("assistant", f"<think>\n{ENDED}"), ("user", "Sure?"), ("assistant", "Yes.")]
    inside = chat(name).within(turns)
    messages = [{"role": role, "content": content} for role, content in [*turns, ("user", "2?")]]
    wanted = inside.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert inside.prompt("2?") == wanted
    assert THOUGHT not in text(inside, wanted) and ANSWER in text(inside, wanted)


def test_no_question_opens_a_thought() -> None:
    one = chat("qwen3")
    asked = one.ask([*one.prompt("What does <think> mean?"), *one.encode(ANSWER)], JUDGE)
    assert text(one, asked).count("</think>") == 1


def test_another_solution_is_thought_about() -> None:
    assert after(chat("qwen3"), ANSWER, True, again=True) == f"{ANSWER}{QWEN_ASKS}"
    assert after(chat("r1"), ENDED, True, again=True) == f"{ENDED}{R1_ASKS}<think>\n"


def test_what_transformers_renders_of_a_solution_without_a_thought() -> None:
    one = chat("qwen3", enable_thinking=False)
    turns = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": ANSWER}]
    wanted = one.tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": JUDGE}],
        add_generation_prompt=True, enable_thinking=False, return_dict=False,
    )  # fmt: skip
    solved = chat("qwen3").prompt("2?") + one.encode(ANSWER)
    assert one.ask(solved, JUDGE) == wanted


def test_replies_to_learn_continue_the_thought_that_the_prompt_opened() -> None:
    """A reply with its whole thought, with the thought's end alone, or with none."""
    one = chat("r1")
    for reply, learnt in ((f"<think>\n{ENDED}", ENDED), (ENDED, ENDED), (ANSWER, f"\n</think>\n\n{ANSWER}")):
        tokens, target = one.conversation([Turn("2?", reply), Turn(JUDGE, "Yes")])
        prompt = one.prompt("2?")
        assert tokens[: len(prompt)] == prompt
        assert text(one, tokens[len(prompt) :]) == f"{learnt}{R1_ASKS}{EMPTY}Yes{one.tokenizer.eos_token}"
        weights = [int(w) for w in target]
        assert text(one, [t for t, w in zip(tokens, weights, strict=True) if w]) == (
            f"{learnt}{one.tokenizer.eos_token}Yes{one.tokenizer.eos_token}"
        )
    other = chat("qwen3")
    tokens, _ = other.conversation([Turn("2?", f"<think>\n{ENDED}")])
    assert text(other, tokens).endswith(f"assistant\n<think>\n{ENDED}<|im_end|>")


def test_a_reply_that_begins_with_its_thought_is_in_it() -> None:
    """Where the prompt has opened the thought, it is not opened again."""
    begun = f"<think>\n{THOUGHT}"
    r1, qwen3 = chat("r1"), chat("qwen3")
    assert text(r1, r1.reply(begun)) == THOUGHT
    assert text(qwen3, qwen3.reply(begun)) == begun
    assert text(r1, r1.reply("23+")) == "\n</think>\n\n23+"


def test_a_model_whose_template_knows_no_thoughts() -> None:
    """The shipped model's prompts are unchanged, unless ``think_end`` says how its thoughts end."""
    tiny = load("tiny")
    solved = [*tiny.chat.prompt("2?"), *tiny.chat.encode("<think>\n1", tags=True)]
    assert text(tiny.chat, tiny.chat.ask(solved, JUDGE)).endswith(
        f"<think>\n1<|end|><|user|>{JUDGE}<|end|><|assistant|>"
    )
    told = Chat(tiny.tokenizer, think_end="</think>")
    assert text(told, told.ask(solved, JUDGE)).endswith(
        f"1\n</think>\n\n<|end|><|user|>{JUDGE}<|end|><|assistant|>{EMPTY}"
    )
    other = Chat(tiny.tokenizer, think_end="[/T]")
    assert text(other, other.ask(other.prompt("2?"), JUDGE)).endswith("<|assistant|>[T]\n\n[/T]\n\n")
    with pytest.raises(ValueError, match="does not read enable_thinking"):
        Chat(tiny.tokenizer, enable_thinking=False)


def test_an_opening_begins_every_solution_and_no_verdict() -> None:
    tiny, opened = load("tiny").chat, load("tiny", opening="<think>\n").chat
    assert opened.prompt("2?") == [*tiny.prompt("2?"), *tiny.encode("<think>\n", tags=True)]
    assert opened.follow_up(JUDGE) == tiny.follow_up(JUDGE)
    assert text(opened, opened.follow_up("Again.", again=True)).endswith("<|assistant|><think>\n")
    turns, begun = [Turn("2?", "<think>\n1</think>2"), Turn(JUDGE, "Yes")], len(opened.prompt("2?"))
    tokens, weights = opened.conversation(turns)
    assert text(opened, tokens) == text(tiny, tiny.conversation(turns)[0])  # a reply's own opening is not written twice
    assert set(weights[:begun]) == {0.0} and weights[begun] == 1.0


# Training, evaluation and serving -------------------------------------------------------------------------------------


def test_training_and_evaluation_ask_alike(model: Model) -> None:
    """The verdict that RL^V learns stands where P(Yes) is read, also after a thought that the token limit cut."""
    recipe = Recipe(RLV(rollouts=2, score_every=0), Sums(), model.chat, Sampling(max_tokens=6, seed=3))
    collected = recipe.collect(model.engine, [Sums().problem("train", 0)], 0)
    (group,) = collected.groups
    assert any(r.completion.finish == "length" for r in group)
    for sample, rollout in zip(collected.samples["policy"], group, strict=True):
        assert sample.tokens[:-1] == question(model.chat, rollout)
        assert sample.tokens[-1] in model.chat.yes_no_ids
        assert text(model.chat, sample.tokens[:-1]).endswith(EMPTY)
    scores = p_yes(model.engine, model.chat, group)
    prompts, yes = [question(model.chat, r) for r in group], [[model.chat.yes_no_ids[0]]] * 2
    wanted = [math.exp(row[0]) for row in model.engine.logprobs(prompts, yes)]
    assert scores == pytest.approx(wanted)


def test_a_server_asks_and_stops_alike(folder: Path, model: Model) -> None:
    """The same stop tokens and the same verdicts, whether the model is here or upstream."""
    with serving(model) as upstream:
        remote = connect(upstream.url, folder)
        try:
            assert remote.chat.stop == model.chat.stop and {40, 41} <= {*model.chat.stop}
            sampling = Sampling(4, max_tokens=60, stop=model.chat.stop, seed=1)
            (group,) = draw(model.engine, model.chat, ["2?"], sampling)
            assert {"stop", "length"} >= {c.completion.finish for c in group}
            assert p_yes(remote.engine, remote.chat, group) == pytest.approx(
                p_yes(model.engine, model.chat, group), rel=1e-3
            )
            greedy = replace(sampling, n=1, temperature=0.0)
            here, there = (draw(x.engine, x.chat, ["2?", "3?"], greedy) for x in (model, remote))
            assert [c.completion.tokens for (c,) in here] == [c.completion.tokens for (c,) in there]
        finally:
            remote.engine.close()


def test_a_checkpoint_thinks_as_it_was_trained(tmp_path: Path) -> None:
    path = think_model("qwen3", tmp_path / "model")
    small_run = ["train.steps=1", "rollout.problems=1", "recipe.rollouts=2", "rollout.max_tokens=8", f"model={path}"]
    config = toml.override(
        Config(), [*small_run, "chat.enable_thinking=false", "chat.think_end=</think>", "chat.opening=Hm"]
    )
    last = tf.train(config, tmp_path / "run")
    trained = load(last).chat
    assert (trained.enable_thinking, trained.think_end, trained.opening) == (False, "</think>", "Hm")
    assert text(trained, trained.prompt("2?")).endswith(f"{EMPTY}Hm")
    other = load(last, enable_thinking=True, opening="").chat
    assert text(trained, other.prompt("2?")).endswith("<|im_start|>assistant\n")
    assert trained.stop == load(path).chat.stop
    (line,) = [json.loads(x) for x in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()][:1]
    assert line["rollouts"]


def test_the_command_line_says_how_to_think(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(think_model("r1", tmp_path))
    assert cli.main(["solve", path, "2?", "--plan", "majority-1:max_tokens=4", "--enable-thinking", "false"]) == 2
    assert "does not read enable_thinking" in capsys.readouterr().err
    assert cli.main(["solve", path, "2?", "--plan", "best-1:max_tokens=4", "--think-end", "</think>"]) == 0
