"""Prompts as token ids: they are the template's own, and no content can forge a control token."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from twofold.text.chat import Chat, Turn
from twofold.text.prompts import JUDGE

QUESTION = "What is 12 + 34?\nGive the sum in \\boxed{}."
SOLUTION = "12 + 34 = 46.\n\nSo the sum is \\boxed{46}."
NFC = partial(normalize, "NFC")
CONTROL = {
    "tiny_model": ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "tiny_qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}


@pytest.fixture(scope="module", params=list(CONTROL))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    found = AutoTokenizer.from_pretrained(request.getfixturevalue(request.param))
    assert sorted(t.content for t in found.added_tokens_decoder.values()) == sorted(CONTROL[request.param])
    return found


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Chat:
    return Chat(tokenizer)


@pytest.fixture
def plain(tokenizer: Any) -> Any:
    """The same tokenizer as it comes with a base model: without a chat template."""
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    return bare


def rendered(tokenizer: Any, *turns: tuple[str, str], reply: bool = True) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=reply)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# The template's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", [QUESTION, "Is 7 even?", "$x^2 = 9$; x?", "Émile has 3 🍎.\n\nHow many?", "a < b | c > d"]
)
def test_a_prompt_is_the_templates(chat: Chat, tokenizer: Any, question: str) -> None:
    assert chat.prompt(question) == rendered(tokenizer, ("user", question))


def test_a_system_message_goes_first(tokenizer: Any) -> None:
    chat = Chat(tokenizer, system="Think aloud.")
    assert chat.prompt(QUESTION) == rendered(tokenizer, ("system", "Think aloud."), ("user", QUESTION))
    solved = [*chat.prompt(QUESTION), *chat.encode(SOLUTION)]
    turns = [("system", "Think aloud."), ("user", QUESTION), ("assistant", SOLUTION), ("user", JUDGE)]
    assert chat.ask(solved, JUDGE) == rendered(tokenizer, *turns)


def test_a_question_about_a_solution_is_the_templates(chat: Chat, tokenizer: Any) -> None:
    """Whether the model closed its turn or ran out of room, the prompt has the same three messages."""
    want = rendered(tokenizer, ("user", QUESTION), ("assistant", SOLUTION), ("user", JUDGE))
    unclosed = [*chat.prompt(QUESTION), *chat.encode(SOLUTION)]
    assert [*unclosed, *chat.follow_up(JUDGE)] == want
    assert chat.ask(unclosed, JUDGE) == want
    assert chat.ask([*unclosed, chat.stop[0]], JUDGE) == want


def test_the_turn_is_closed_once_by_whichever_end(chat: Chat) -> None:
    """Every token stays as it was sampled, with its cache and its credit; exactly one end of turn follows."""
    unclosed = [*chat.prompt(QUESTION), *chat.encode(SOLUTION)]
    for end in chat.stop:
        asked = chat.ask([*unclosed, end], JUDGE)
        assert asked[: len(unclosed) + 1] == [*unclosed, end]
        assert asked[len(unclosed) + 1 :] == chat.follow_up(JUDGE)[1:]
    again = chat.ask([*asked, *chat.encode("No")], JUDGE)
    assert again == [*asked, *chat.encode("No"), *chat.follow_up(JUDGE)]


def test_both_ends_of_a_solution_stop_it(tiny_model: Path, tiny_qwen: Path) -> None:
    """The token that closes a turn in the template first, then the tokenizer's own end."""
    for folder, ends in ((tiny_model, ["<|end|>"]), (tiny_qwen, ["<|im_end|>", "<|endoftext|>"])):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert list(Chat(tokenizer).stop) == tokenizer.convert_tokens_to_ids(ends)


BEFORE = [("system", "Think aloud."), ("user", "Is 7 even?"), ("assistant", "No: 7 = 2*3 + 1."), ("user", "Sure?")]


def test_a_chat_within_a_conversation(chat: Chat, tokenizer: Any) -> None:
    """Prompts and judgements follow the earlier messages, whose system message replaces the chat's."""
    turns = [*BEFORE[:3], ("user", QUESTION)]
    inside = Chat(tokenizer, system="Never seen.").within(BEFORE[:3])
    assert inside.prompt(QUESTION) == rendered(tokenizer, *turns)
    solved = [*inside.prompt(QUESTION), *chat.encode(SOLUTION)]
    assert inside.ask(solved, JUDGE) == rendered(tokenizer, *turns, ("assistant", SOLUTION), ("user", JUDGE))
    assert inside.stop == chat.stop
    assert chat.within([]).prompt(QUESTION) == chat.prompt(QUESTION)
    kept = Chat(tokenizer, system="Think aloud.").within(BEFORE[1:3])
    assert kept.prompt(QUESTION) == inside.prompt(QUESTION)


def test_no_earlier_message_forges_a_control_token(tokenizer: Any) -> None:
    literals = "".join(t.content for t in tokenizer.added_tokens_decoder.values())
    for i, (role, content) in enumerate(BEFORE[:3]):
        forged = [*BEFORE[:i], (role, content + literals), *BEFORE[i + 1 : 3]]
        prompt, honest = (Chat(tokenizer).within(b).prompt("2?") for b in (forged, BEFORE[:3]))
        control = set(tokenizer.added_tokens_decoder)
        assert [t for t in prompt if t in control] == [t for t in honest if t in control]
        assert literals in tokenizer.decode(prompt)


def test_messages_that_the_template_leaves_out_or_refuses(tokenizer: Any) -> None:
    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ValueError, match="leaves out a message"):
        Chat(deaf).within(BEFORE[:3]).prompt("2?")
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses the roles system, user, assistant, user: roles must alternate"):
        Chat(strict).within(BEFORE[:3]).prompt("2?")


@pytest.mark.parametrize("learn", [10.0, 0.0])
def test_a_conversation_marks_exactly_the_replies_to_learn(chat: Chat, tokenizer: Any, learn: float) -> None:
    tokens, target = chat.conversation([Turn(QUESTION, SOLUTION, learn), Turn(JUDGE, "Yes")])
    want = rendered(
        tokenizer, ("user", QUESTION), ("assistant", SOLUTION), ("user", JUDGE), ("assistant", "Yes"), reply=False
    )
    assert tokens == want[: len(tokens)]
    assert tokenizer.decode(want[len(tokens) :]).strip() == ""  # ChatML puts a line break after the last turn
    first, second = [*ids(tokenizer, SOLUTION), chat.stop[0]], [*ids(tokenizer, "Yes"), chat.stop[0]]
    opening = len(chat.prompt(QUESTION))
    between = len(tokens) - opening - len(first) - len(second)
    assert target == [0.0] * opening + [learn] * len(first) + [0.0] * between + [1.0] * len(second)
    assert tokens[opening : opening + len(first)] == first and tokens[-len(second) :] == second


# Without a template ---------------------------------------------------------------------------------------------------


def test_without_a_template_the_layout_is_plain_text(plain: Any) -> None:
    chat = Chat(plain)
    prompt = chat.prompt(QUESTION)
    assert plain.decode(prompt) == f"Problem:\n{QUESTION}\n\nSolution:\n"
    asked = chat.ask([*prompt, *chat.encode(SOLUTION)], JUDGE)
    assert plain.decode(asked) == f"Problem:\n{QUESTION}\n\nSolution:\n{SOLUTION}\n\n{JUDGE}\n"
    assert plain.decode(Chat(plain, system="Think.").prompt("2?")) == "Think.\n\nProblem:\n2?\n\nSolution:\n"


def test_without_a_template_a_conversation_is_paragraphs(plain: Any) -> None:
    prompt = Chat(plain).within(BEFORE[:3]).prompt("2?")
    assert plain.decode(prompt) == "Think aloud.\n\nProblem:\nIs 7 even?\n\nSolution:\nNo: 7 = 2*3 + 1.\n\n2?\n"


def test_without_a_template_eos_alone_ends_a_solution(plain: Any) -> None:
    chat = Chat(plain)
    assert chat.stop == (plain.eos_token_id,)
    solved = [*chat.prompt(QUESTION), *chat.encode(SOLUTION), plain.eos_token_id]
    assert chat.ask(solved, JUDGE) == [*solved, *ids(plain, "\n\n"), *chat.encode(JUDGE), *ids(plain, "\n")]
    tokens, target = chat.conversation([Turn(QUESTION, SOLUTION)])
    assert tokens == solved
    assert sum(target) == len(chat.encode(SOLUTION)) + 1


# Untrusted content ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skeleton:
    """Return what a template puts around a user's message, and the ids of the tokenizer's control tokens."""

    head: list[int]
    tail: list[int]
    control: frozenset[int]


@cache
def skeleton(tokenizer: Any) -> Skeleton:
    messages = [{"role": "user", "content": "QQ"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, tail = (ids(tokenizer, part) for part in text.split("QQ"))
    return Skeleton(head, tail, frozenset(tokenizer.added_tokens_decoder))


def assert_is_content(chat: Chat, tokenizer: Any, content: str) -> None:
    """Check that a prompt's control tokens are the skeleton's alone, and that ``content`` reads as it was."""
    around = skeleton(tokenizer)
    prompt = chat.prompt(content)
    start, end = len(around.head), len(prompt) - len(around.tail)
    assert prompt[:start] == around.head and prompt[end:] == around.tail
    inside = prompt[start:end]
    assert not around.control & set(inside), repr(content)
    # Qwen's tokenizer reads text in normal form C, so a character may come back as the one it stands for
    assert NFC(tokenizer.decode(inside)) == NFC(content)
    assert NFC(chat.decode(inside)) == NFC(content)


def test_every_control_token_at_every_place_and_split(chat: Chat, tokenizer: Any) -> None:
    literals = [t.content for t in tokenizer.added_tokens_decoder.values()]
    carrier = "ab 1.\n"
    for literal in literals:
        for i in range(len(carrier) + 1):
            assert_is_content(chat, tokenizer, carrier[:i] + literal + carrier[i:])
        for other in literals:
            for i in range(len(literal) + 1):  # cutting one out must not leave the other
                assert_is_content(chat, tokenizer, literal[:i] + other + literal[i:])


LITERALS = sorted({literal for group in CONTROL.values() for literal in group})
SPLIT = [part for x in LITERALS for i in range(1, len(x)) for part in (x[:i], x[i:])]
PARTS = st.one_of(st.sampled_from(LITERALS), st.sampled_from(SPLIT), st.text(max_size=3))


@settings(max_examples=500, deadline=None)
@given(content=st.lists(PARTS, max_size=6).map("".join))
@example(content="\U0002f800")
def test_no_content_forges_a_control_token(chat: Chat, tokenizer: Any, content: str) -> None:
    assert_is_content(chat, tokenizer, content)


def test_no_reply_of_a_data_set_closes_its_own_turn(chat: Chat, tokenizer: Any) -> None:
    for literal in (t.content for t in tokenizer.added_tokens_decoder.values()):
        tokens, target = chat.conversation([Turn("2?", f"2{literal}3")])
        reply = [t for t, mine in zip(tokens, target, strict=True) if mine]
        assert [t for t in reply if t in tokenizer.added_tokens_decoder] == [chat.stop[0]]
        assert tokenizer.decode(reply[:-1]) == f"2{literal}3"


def test_a_reply_may_use_tags_but_a_question_may_not(tokenizer: Any) -> None:
    """Added tokens that are not special, such as Qwen3's think tags, stay whole in a reply."""
    tagged = copy.deepcopy(tokenizer)
    tagged.add_tokens(["<think>", "</think>"])
    opening, closing = tagged.convert_tokens_to_ids(["<think>", "</think>"])
    chat, reply = Chat(tagged), "<think>2</think>2"
    tokens, target = chat.conversation([Turn(reply, reply)])
    said = [t for t, mine in zip(tokens, target, strict=True) if mine]
    assert said == [opening, *ids(tagged, "2"), closing, *ids(tagged, "2"), chat.stop[0]]
    assert not {opening, closing} & set(chat.prompt(reply))
    assert_is_content(chat, tagged, reply)


# Verdicts and what is refused -----------------------------------------------------------------------------------------


def test_verdicts_are_the_tokens_of_yes_and_no(chat: Chat, tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(list(chat.yes_no_ids)) == ["Yes", "No"]


def test_decode_drops_control_tokens(chat: Chat, tokenizer: Any) -> None:
    assert chat.decode([*ids(tokenizer, SOLUTION), *chat.stop]) == SOLUTION


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Any) -> None:
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        Chat(endless)


def test_verdicts_of_several_tokens_are_refused() -> None:
    """The tokenizer has one token per byte, so Yes is three tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(vocab=letters, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    chat = Chat(PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<|end|>"))
    with pytest.raises(ValueError, match="Yes and No must be single, distinct tokens"):
        _ = chat.yes_no_ids


def test_verdicts_that_no_reply_could_hold_are_refused(tokenizer: Any) -> None:
    """If Yes and No were special tokens, they would be missing from every decoded reply."""
    strange = copy.deepcopy(tokenizer)
    strange.add_special_tokens({"additional_special_tokens": ["Yes", "No"]})
    with pytest.raises(ValueError, match="Yes and No must be single, distinct tokens"):
        _ = Chat(strange).yes_no_ids
