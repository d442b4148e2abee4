"""Two tiny models, saved as Hugging Face model directories, and settings for a machine with few cores."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

os.environ["OMP_NUM_THREADS"] = "1"  # for new processes, too; see THREADS
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
if not shutil.which("nvidia-smi"):  # no GPU: our kernels run in Triton's interpreter, which is chosen before its import
    os.environ["TRITON_INTERPRET"] = "1"

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

THREADS = 1
"""Tiny tensors run slower on many threads. The tests that compare whole runs bit for bit need the same number in each."""
torch.set_num_threads(THREADS)

VOCABULARY = 512
TEXT = """Please reason step by step, and put your final answer within \\boxed{}. Is this solution correct?
Answer Yes or No. Start with one, two, three, four, five, six, seven, eight, nine, ten, eleven or twelve.
Add twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety, a hundred or a thousand. Multiply the first
number by the second, subtract the remainder. The sum of two even numbers is even; the product of any integer and
zero equals zero. Divide both sides of an equation by the same quantity. Check each step, then the whole solution.
Wait, that was wrong: let me try again from the beginning, more carefully. Therefore no triangle has four corners.
"""

TINY_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# As in Qwen2.5-Math: ChatML, and a system turn that asks for \boxed{} if the messages have none.
QWEN_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."
QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
    + QWEN_SYSTEM.replace("\\", "\\\\")
    + "<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TINY = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
TINY |= dict(num_key_value_heads=2, max_position_embeddings=1024)
if find_spec("vllm"):  # on a CPU it has no heads narrower than 32
    TINY |= dict(hidden_size=128)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a Llama of random weights (fp32): 512 tokens, a chat template, Yes and No as single tokens, pad and eos distinct."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = small_tokenizer(
        ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"], TINY_TEMPLATE, "<|end|>", "<|pad|>"
    )
    save(LlamaForCausalLM, LlamaConfig(**TINY, initializer_range=0.4), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a Qwen2 of random weights with tied embeddings and the chat format of Qwen2.5-Math-1.5B.

    As in that model, eos and pad are the same token, <|endoftext|>, and a chat turn ends with another one, <|im_end|>.
    """
    folder = tmp_path_factory.mktemp("tiny_qwen")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = small_tokenizer(specials, QWEN_TEMPLATE, "<|endoftext|>", "<|endoftext|>")
    save(Qwen2ForCausalLM, Qwen2Config(**TINY, tie_word_embeddings=True, initializer_range=0.4), tokenizer, folder)
    return folder


def save(kind: Any, config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a model of widely spread random weights (``initializer_range``), whose distributions are far from flat."""
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_tokenizer(specials: list[str], template: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of exactly VOCABULARY tokens, trained on TEXT. Each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] + ["Yes", "No"] * 100, trainer)  # so that the verdicts are single tokens
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert all(tokenizer.token_to_id(word) is not None for word in ("Yes", "No"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
