"""Prompts of every family of models: the tokens of its own template, each turn closed once, nothing forged, nothing dropped."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML, R1, THINK, real, small

from twofold.text.chat import Chat, Turn
from twofold.text.prompts import JUDGE

QUESTIONS = [
    "Indented:\n\n    x = 1\n\n\n  y",
    "What is 12 + 34?\nGive the sum.",
    "$x^2 = 9$; x?",
    "Émile has 3 🍎.\n\nHow many?",
    "a < b | c > d",
    "\n Both \n",
]
SOLUTION = "12 + 34 = 46.\n\nSo it is \\boxed{46}."

# What these models' templates write, without their tools and checks.
SYSTEM_IN_THE_QUESTION = (
    "{% if messages[0].role == 'system' %}{% set s, rest = SYS, messages[1:] %}"
    "{% else %}{% set s, rest = '', messages %}{% endif %}"
)
LLAMA2 = SYSTEM_IN_THE_QUESTION.replace("SYS", "'<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n'") + (
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = SYSTEM_IN_THE_QUESTION.replace("SYS", "messages[0].content + '\n\n'") + (
    "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (s if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FAMILIES: dict[str, tuple[Any, ...]] = {
    "llama-2": ("prepend", LLAMA2),
    "llama-2, new form": ("metaspace", LLAMA2),
    "mistral": ("first", MISTRAL),
    "llama-3": ("bytes", LLAMA3, ("<bos>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")),
    "gemma": ("metaspace", GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), ("\n\n", "    ")),
    "phi-3": ("prepend", PHI3, ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "smollm2": ("bytes", SMOLLM2, CHATML),
    "qwen3": ("bytes", real("qwen3"), CHATML, THINK),
    "r1": ("bytes", real("r1_distill"), R1, THINK),
    "t5-like, no template": ("unigram", None),
    "llama-2, no template": ("prepend", None),
    "llama-3, no template": ("bytes", None),
    "pythia, no template": ("bytes", None, (), ("  ", "    ")),
}
ENDS = {"llama-3": ["<|eot_id|>"], "gemma": ["<end_of_turn>", "<eos>"], "phi-3": ["<|end|>", "<|endoftext|>"]}

each_family = pytest.mark.parametrize("family", FAMILIES)
with_template = pytest.mark.parametrize("family", [name for name, made in FAMILIES.items() if made[1]])


def rendered(tokenizer: Any, *turns: tuple[str, str], reply: bool = True) -> list[int]:
    """Return what transformers makes of a conversation, by its own rendering and in one piece."""
    if tokenizer.chat_template is None:
        assert len(turns) == 1
        return tokenizer(f"Problem:\n{turns[0][1]}\n\nSolution:\n")["input_ids"]
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=reply)


@each_family
def test_a_prompt_is_what_transformers_makes(family: str) -> None:
    """A base model without a template has the BOS that its tokenizer puts before a text, once."""
    tokenizer = small(*FAMILIES[family])
    for question in QUESTIONS:
        prompt = Chat(tokenizer).prompt(question)
        assert prompt == rendered(tokenizer, ("user", question))
        assert prompt.count(tokenizer.bos_token_id) == (family not in ("phi-3", "smollm2", "qwen3"))


@with_template
def test_a_begun_reply_is_what_transformers_makes(family: str) -> None:
    """With ``continue_final_message``. (Before a reply without a thought, its template writes Qwen3's and drops R1's.)"""
    tokenizer = small(*FAMILIES[family])
    chat = Chat(tokenizer)
    turns = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "23+"}]
    options: dict[str, Any] = dict(tokenize=True, return_dict=False, continue_final_message=True)
    if family not in ("qwen3", "r1"):
        assert [*chat.prompt("2?"), *chat.reply("23+")] == tokenizer.apply_chat_template(turns, **options)


@with_template
def test_a_conversation_is_what_transformers_makes(family: str) -> None:
    """The replies are the targets, with what closes them. (R1 renders no thought in a history; see test_thoughts.)"""
    tokenizer = small(*FAMILIES[family])
    tokens, target = Chat(tokenizer).conversation([Turn("2?", SOLUTION), Turn(JUDGE, "Yes")])
    if family != "r1":
        turns = [("user", "2?"), ("assistant", SOLUTION), ("user", JUDGE), ("assistant", "Yes")]
        assert tokens == rendered(tokenizer, *turns, reply=False)[: len(tokens)]
    learnt = tokenizer.decode([t for t, weight in zip(tokens, target, strict=True) if weight])
    assert learnt.count("46") == 2 and learnt.count("Yes") == 1 and JUDGE not in learnt and "2?" not in learnt


@each_family
def test_a_turn_is_closed_once(family: str) -> None:
    """By the model or, where it was cut off, by the template; the model's own tokens stay as they are."""
    tokenizer = small(*FAMILIES[family])
    chat = Chat(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(chat.stop)) == ENDS.get(family, [tokenizer.eos_token])
    solved = [*chat.prompt("2?"), *chat.reply(SOLUTION)]
    cut = chat.ask(solved, JUDGE)
    assert cut[: len(solved)] == solved
    for end in chat.stop:
        asked = chat.ask([*solved, end], JUDGE)
        assert asked[: len(solved) + 1] == [*solved, end]
        follow = asked[len(solved) + 1 :]
        closing = cut[len(solved) : -len(follow)]
        assert cut[-len(follow) :] == follow
        assert [t for t in closing if t in chat.stop] == ([chat.stop[0]] if tokenizer.chat_template else [])
        assert tokenizer.decode(closing, skip_special_tokens=True).strip() == ""


@each_family
def test_a_verdict_is_one_token_where_the_template_puts_it(family: str) -> None:
    """After ``[/INST]`` Llama-2 writes a space, so its verdict is another token than after a line break."""
    tokenizer = small(*FAMILIES[family])
    if family.startswith("t5"):
        return
    names = tokenizer.convert_ids_to_tokens(list(Chat(tokenizer).yes_no_ids))
    spaced = family in ("llama-2", "llama-2, new form", "mistral")
    assert names == (["▁Yes", "▁No"] if spaced else ["Yes", "No"])


@each_family
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_no_content_forges_a_control_token(family: str, data: st.DataObject) -> None:
    tokenizer = small(*FAMILIES[family])
    literals = [t.content for t in tokenizer.added_tokens_decoder.values()]
    halves = [part for x in literals for i in range(1, len(x)) for part in (x[:i], x[i:])]
    parts = st.one_of(st.sampled_from(literals), st.sampled_from(halves), st.text(max_size=3))
    content = data.draw(st.lists(parts, max_size=5).map("".join))
    chat = Chat(tokenizer)
    control = {i for i, t in tokenizer.added_tokens_decoder.items() if t.content.strip()}  # runs of spaces are text
    control -= {tokenizer.convert_tokens_to_ids("<unk>")}
    honest, prompt = chat.prompt("2?"), chat.prompt(content)
    assert [t for t in prompt if t in control] == [t for t in honest if t in control]
    turns = [Turn(content, f"2{content}"), Turn(content, content)]
    special = {i for i in control if tokenizer.added_tokens_decoder[i].special}
    forged, plain = (chat.conversation(x)[0] for x in (turns, [Turn("2?", "2"), Turn("2?", "2")]))
    assert [t for t in forged if t in special] == [t for t in plain if t in special]


# A system prompt is there, or refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-2", "mistral", "llama-3", "phi-3", "smollm2", "qwen3", "r1"])
def test_a_system_prompt_is_where_the_template_puts_it(family: str) -> None:
    tokenizer = small(*FAMILIES[family])
    chat = Chat(tokenizer, "Think aloud.")
    assert chat.prompt("2?") == rendered(tokenizer, ("system", "Think aloud."), ("user", "2?"))
    assert chat.within([("user", "1?"), ("assistant", "1.")]).prompt("2?") == rendered(
        tokenizer, ("system", "Think aloud."), ("user", "1?"), ("assistant", "1."), ("user", "2?")
    )


def test_a_system_prompt_that_the_template_drops_or_refuses_is_an_error() -> None:
    deaf = "{% for m in messages %}{% if m.role != 'system' %}{{ m.role + ': ' + m.content }}{% endif %}{% endfor %}"
    dropped = Chat(small("bytes", deaf), "Think.")
    with pytest.raises(ValueError, match=r"leaves out a message of the role system.*: ask without a system prompt"):
        dropped.prompt("2?")
    with pytest.raises(ValueError, match="refuses the roles system, user: System role not supported"):
        Chat(small(*FAMILIES["gemma"]), "Think.").prompt("2?")
    after = "{% for m in messages[::-1] %}{{ m.role + ': ' + m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="leaves out a message of the role system, or writes it after the question"):
        Chat(small("bytes", after), "Think.").prompt("2?")


def test_mistral_moves_a_system_prompt_to_the_last_question() -> None:
    """Also an untrusted one, as part of a conversation that a client sends."""
    tokenizer = small(*FAMILIES["mistral"])
    for chat in (Chat(tokenizer, "Think."), Chat(tokenizer).within([("system", "Think.")])):
        asked = chat.ask([*chat.prompt("2?"), *chat.reply("2.")], JUDGE)
        assert tokenizer.decode(asked) == f"<s>[INST] Think.\n\n2?[/INST] 2.</s>[INST] Think.\n\n{JUDGE}[/INST]"
