"""Small tokenizers in the forms of real ones: SentencePiece as Llama-2 and T5 use it, and byte-level BPE."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from conftest import TEXT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SOME = "Try 3 + 4 = 8. But wait, it is 7.\n\nBut wait\nBacktrack to line 2\nWhat is the sum of 1569? So it is 0."
TEXTS = [TEXT, SOME, "Yes", "No", "So"] * 20
TEMPLATES = Path(__file__).parent / "data" / "templates"
CHATML = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
THINK = ("<think>", "</think>")
"""Control tokens of ChatML and of R1, and the tags around their thoughts."""
FORMS = ("prepend", "metaspace", "first", "unigram", "bytes")


@cache
def small(form: str, template: str | None = None, specials: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> Any:
    """Return a tokenizer of one of the FORMS, with BOS ``<s>`` and EOS ``</s>`` or, if given, the first two of ``specials``.

    ``prepend`` is Llama-2's older form, in which normalizers write the ``▁``; ``metaspace`` is its newer form; ``first``
    writes a ``▁`` at the beginning of a text only (Mistral); ``unigram`` is T5's; ``bytes`` is byte-level BPE (Qwen, Llama-3).
    """
    specials = specials or ("<s>", "</s>")
    make = {"bytes": _bytes, "unigram": _unigram}.get(form, _sentencepiece)
    tokenizer = make(form)
    bos, eos = specials[:2]
    tokenizer.add_special_tokens([*specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, chat_template=template)
    made.add_tokens([*tags])
    return made


def real(name: str) -> str:
    """Return a real chat template (tests/data/templates/README.md says whose)."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def _bytes(form: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _unigram(form: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    lines = pre_tokenizers.Split("\n", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="first")])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=320, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _sentencepiece(form: str) -> Tokenizer:
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    learnt.train_from_iterator(
        [t.replace("\n", " ") for t in TEXTS], trainers.BpeTrainer(vocab_size=500, show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    pieces = sorted(learnt.get_vocab(), key=learnt.get_vocab().__getitem__)
    names = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    vocab = {piece: i for i, piece in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if form == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = "always" if form == "metaspace" else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer
