"""Pretraining: make a tokenizer and a small Llama and train it on the corpus, as the shipped base model was made.

``twofold train configs/base.toml`` runs it.

The architecture is standard, so the result loads in ``transformers.AutoModelForCausalLM`` as it is. It is deep
for its width: to spot a slip takes layers after the ones that predict the right digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twofold.engines.base import Engine
from twofold.recipes import common
from twofold.recipes.common import Setup
from twofold.recipes.corpus import Mix, document
from twofold.recipes.sft import sample
from twofold.text.chat import Chat
from twofold.types import Collected, Problem

SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
WHOLE = [
    "Yes",
    "No",
    "<think>",
    "</think>",
    "<step>",
    "</step>",
    "<step_verification>",
    "</step_verification>",
    "<final_verification>",
    "</final_verification>",
    "\\boxed{",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Base:
    """Options of a model from scratch. ``documents`` is how many documents of the corpus a step has."""

    name: Literal["base"] = "base"
    hidden: int = 128
    layers: int = 8
    heads: int = 4
    ffn: int = 256
    vocabulary: int = 512
    documents: int = 48
    mix: Mix = field(default_factory=Mix)

    def build(self, setup: Setup) -> Recipe:
        setup.begin(*create(self, setup.seed))
        return Recipe(self, setup.chat, setup.seed)


class Recipe(common.Recipe):
    """Fresh documents at every step, none of them twice. It takes no problems."""

    def __init__(self, config: Base, chat: Chat, seed: int) -> None:
        self.config, self.chat, self.seed = config, chat, seed

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        first = step * self.config.documents
        documents = [document(self.seed, i, self.config.mix) for i in range(first, first + self.config.documents)]
        return Collected({"policy": [sample(self.chat, d) for d in documents]}, {})


def create(config: Base, seed: int) -> tuple[Any, Any]:
    """Return (model, tokenizer); the weights are random, from ``seed``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(config)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            intermediate_size=config.ffn,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return model, tokenizer


def make_tokenizer(config: Base) -> Any:
    """Make a byte-level BPE tokenizer (it can encode any text) with one token per digit, learnt on the corpus itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = (text for i in range(8000) for turn in document(999, i, config.mix) for text in (turn.question, turn.reply))
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(WHOLE),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in WHOLE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
