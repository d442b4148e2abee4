"""Pretraining: make a tokenizer and a small Llama, and train it on the corpus. The shipped base model was made like this.

``twofold train configs/base.toml`` runs it.

The architecture is standard, so ``transformers.AutoModelForCausalLM`` loads the result. The model is deep for its width,
because spotting a slip takes further layers after those that predict the right digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from twofold.engines.base import Engine
from twofold.ranges import Count, Range, checked
from twofold.recipes import common
from twofold.recipes.common import Setup
from twofold.recipes.corpus import Mix, document
from twofold.recipes.sft import sample
from twofold.text.chat import Chat
from twofold.types import Collected, Problem

SPECIAL = ["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"]
SINGLE = [
    "Yes", "No", "same", "differ", "clean", "slip", "<think>", "</think>", "<step>", "</step>", "<step_verification>",
    "</step_verification>", "<final_verification>", "</final_verification>", "\\boxed{",
]  # fmt: skip
"""Texts that are single tokens."""
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@checked
class Pretrain:
    """Options of the recipe: the size of the new model, and its corpus."""

    name: Literal["base"] = "base"
    hidden: Count = 128
    layers: Count = 8
    heads: Count = 4
    ffn: Count = 256
    vocabulary: Annotated[int, Range(ge=256 + len(SPECIAL) + len(SINGLE))] = 512
    documents: Count = 48
    """Documents of the corpus per step."""
    mix: Mix = field(default_factory=Mix)

    def build(self, setup: Setup) -> Recipe:
        setup.begin(*create(self, setup.seed))
        return Recipe(self, setup.chat, setup.seed)


class Recipe(common.Recipe):
    """Train on new documents at every step. No document is used twice, and the run's problems are ignored."""

    def __init__(self, config: Pretrain, chat: Chat, seed: int) -> None:
        self.config, self.chat, self.seed = config, chat, seed

    def collect(self, engine: Engine, problems: Sequence[Problem], step: int) -> Collected:
        first = step * self.config.documents
        documents = [document(self.seed, i, self.config.mix) for i in range(first, first + self.config.documents)]
        return Collected({"policy": [sample(self.chat, d) for d in documents]}, {})


def create(config: Pretrain, seed: int) -> tuple[Any, Any]:
    """Return (model, tokenizer). The weights are random and depend on ``seed`` only."""
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


def make_tokenizer(config: Pretrain) -> Any:
    """Train a byte-level BPE tokenizer on the corpus. It can encode any text, and each digit is a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = (text for i in range(8000) for turn in document(999, i, config.mix) for text in (turn.question, turn.reply))
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(SINGLE),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in SINGLE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
