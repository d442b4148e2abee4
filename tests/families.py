"""Which families of models are right, and which are refused and why: the check behind the table of docs/models.md.

    python tests/families.py          write the table again

A family is a random model of two layers. It is right if three things agree with the forward pass of ``transformers``, unchanged
and one text at a time: the log-probs of tokens that the native engine draws (prefill, fork, decode), those of given tokens that
continue such a text, and the learner's loss and gradient on a packed batch.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from twofold.engines.native import NativeEngine
from twofold.models.install import install
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample, Sampling

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->\n"

SHAPE: dict[str, Any] = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
SHAPE |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4)
SHAPE |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
SHORT = 14
"""The context of the families that have a shorter one than ``max_position_embeddings``. The texts below are as long."""

LLAMA3 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)
LONGROPE = dict(
    rope_type="longrope", rope_theta=1e4, short_factor=[1.1, 1.2, 1.3, 1.4], long_factor=[2.0, 3.0, 4.0, 5.0]
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(
    q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4
)
LATENT |= dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1)
HALVES = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=SHORT)
SEQ2SEQ = dict(
    d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, init_std=0.4, is_decoder=True
)

FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("Llama 1 and 2, SmolLM, SmolLM2", "llama", {}),
    ("Llama 3.1 to 3.3", "llama", dict(rope_parameters=LLAMA3 | dict(original_max_position_embeddings=32))),
    ("Llama with linear RoPE scaling", "llama", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))),
    ("Llama with dynamic NTK scaling", "llama", dict(
        rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4), max_position_embeddings=SHORT)),
    ("Llama 4, text", "llama4_text", dict(head_dim=8, num_local_experts=2, intermediate_size_mlp=64)),
    ("Mistral v0.1", "mistral", dict(sliding_window=SHORT)),
    ("Mistral v0.2 and later", "mistral", dict(sliding_window=None)),
    ("Ministral 3", "ministral3", dict(head_dim=8)),
    ("Mixtral", "mixtral", dict(num_local_experts=4)),
    ("Qwen2, Qwen2.5, Qwen2.5-Math", "qwen2", {}),
    ("Qwen2.5 with YaRN", "qwen2", dict(rope_parameters=YARN, max_position_embeddings=32)),
    ("Qwen2 MoE", "qwen2_moe", EXPERTS | dict(shared_expert_intermediate_size=16)),
    ("Qwen3", "qwen3", dict(head_dim=16)),
    ("Qwen3 MoE", "qwen3_moe", EXPERTS | dict(head_dim=8)),
    ("Qwen3-Next", "qwen3_next", EXPERTS | dict(head_dim=8, shared_expert_intermediate_size=16)),
    ("SmolLM3", "smollm3", {}),
    ("Phi-1.5, Phi-2", "phi", {}),
    ("Phi-3, Phi-4", "phi3", {}),
    ("Phi-3 128k, Phi-4-mini", "phi3", dict(rope_parameters=LONGROPE, original_max_position_embeddings=SHORT)),
    ("Phi-3.5 MoE", "phimoe", dict(num_local_experts=4)),
    ("Gemma", "gemma", dict(head_dim=8)),
    ("Gemma 2", "gemma2", dict(head_dim=8)),
    ("Gemma 3, text", "gemma3_text", dict(head_dim=8, **HALVES)),
    ("OLMo", "olmo", {}),
    ("OLMo 2", "olmo2", {}),
    ("OLMo 3", "olmo3", HALVES),
    ("OLMoE", "olmoe", dict(num_experts=4, num_experts_per_tok=2)),
    ("Granite", "granite", dict(logits_scaling=8.0)),
    ("Cohere Command R", "cohere", {}),
    ("Cohere Command R7B", "cohere2", HALVES),
    ("DeepSeek-V2", "deepseek_v2", LATENT),
    ("DeepSeek-V3", "deepseek_v3", LATENT),
    ("GLM-4", "glm", dict(head_dim=8)),
    ("GLM-4-0414", "glm4", dict(head_dim=8)),
    ("ERNIE 4.5", "ernie4_5", dict(head_dim=8)),
    ("EXAONE 4", "exaone4", HALVES),
    ("Seed-OSS", "seed_oss", dict(head_dim=8)),
    ("Apertus", "apertus", {}),
    ("Arcee", "arcee", {}),
    ("gpt-oss", "gpt_oss", dict(head_dim=8, num_local_experts=4)),
    ("BitNet", "bitnet", {}),
    ("StableLM", "stablelm", {}),
    ("Nemotron", "nemotron", {}),
    ("StarCoder2", "starcoder2", dict(sliding_window=SHORT)),
    ("GPT-2", "gpt2", {}),
    ("GPT-BigCode", "gpt_bigcode", {}),
    ("GPT-NeoX, Pythia", "gpt_neox", {}),
    ("GPT-J", "gptj", dict(rotary_dim=4)),
    ("CodeGen", "codegen", dict(rotary_dim=4)),
    ("OPT", "opt", dict(ffn_dim=64, word_embed_proj_dim=32, init_std=0.4)),
    ("BioGPT", "biogpt", {}),
    ("XGLM", "xglm", dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=64)),
    ("Falcon", "falcon", {}),
    ("BLOOM", "bloom", dict(n_layer=2, n_head=4)),
    ("MPT", "mpt", dict(d_model=32, n_layers=2, n_heads=4)),
    ("DiffLlama", "diffllama", {}),
    ("HRM", "hrm_text", dict(head_dim=8)),
    ("Doge", "doge", {}),
    ("BART's decoder", "bart", SEQ2SEQ),
    ("Pegasus' decoder", "pegasus", SEQ2SEQ),
    ("Marian's decoder", "marian", SEQ2SEQ),
    ("LFM2", "lfm2", dict(layer_types=["conv", "full_attention"])),
    ("Jamba", "jamba", dict(num_experts=2)),
    ("Mamba", "mamba", {}),
    ("RecurrentGemma", "recurrent_gemma", {}),
    ("RWKV", "rwkv", {}),
]  # fmt: skip
"""(name, type in transformers, options): in the table's order."""


def verdict(kind: str, options: dict[str, Any]) -> str:
    """Return "right", how long texts may be if that is less than the positions, or "refused" and why."""
    config = AutoConfig.for_model(kind, **copy.deepcopy(SHAPE | options))  # some change their arguments
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = AutoModelForCausalLM.from_config(config).float().eval()
    try:
        ours = install(copy.deepcopy(theirs))
    except ValueError as error:
        return f"refused: {reason(str(error))}"
    engine, texts = NativeEngine(ours), [[11, 12, 70, 18], [19, 20, 21, 22, 23, 24, 25, 26, 27, 28]]
    drawn = engine.generate(texts, Sampling(n=2, max_tokens=4, seed=1))
    texts = [
        [*p, *c.tokens] for p, group in zip(texts, drawn, strict=True) for c in group
    ]  # the longest has SHORT tokens
    expected = [logprobs(theirs, text) for text in texts]
    for (text, want), c in zip(zip(texts, expected, strict=True), (c for group in drawn for c in group), strict=True):
        assert c.logprobs == pytest.approx(want[-4:].tolist(), abs=1e-4)
        (again,) = engine.logprobs([text[:2]], [text[2:]])
        assert again == pytest.approx(want[1:].tolist(), abs=1e-4)
    (again,) = engine.logprobs([texts[0]], [[40, 41]])  # on the cache that sampling left
    assert again == pytest.approx(logprobs(theirs, [*texts[0], 40, 41])[-2:].tolist(), abs=1e-4)
    check_learner(ours, theirs, texts)
    if engine.context.tokens is None or engine.context.tokens > SHORT:
        return "right"
    with pytest.raises(ValueError, match=f"context is {SHORT} tokens"):
        engine.logprobs([texts[-1]], [[40]])
    return f"right, on texts of at most `{engine.context.by}` tokens"


def logprobs(model: Any, text: list[int]) -> Tensor:
    """Return log p of every token but the first."""
    logits = model(torch.tensor([text])).logits[0, :-1].float().log_softmax(-1)
    return logits.gather(1, torch.tensor(text[1:])[:, None])[:, 0]


def check_learner(ours: Any, theirs: Any, texts: list[list[int]]) -> None:
    """Every token but the first is a target. Adam's first moment, with beta1 = 0, is the gradient."""
    learner = Learner(ours, Optim(lr=0.0, warmup=0.0, clip=1e9, beta1=0.0), Loss(), steps=1)
    zeros = [[0.0] * len(t) for t in texts]
    samples = [
        Sample(t, [False] * len(t), z, z, [0.0] + [1.0] * (len(t) - 1)) for t, z in zip(texts, zeros, strict=True)
    ]
    stats = learner.update(samples)
    loss = -torch.cat([logprobs(theirs, text) for text in texts]).mean()
    loss.backward()
    assert stats["loss"] == pytest.approx(loss.item(), abs=1e-4)
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: learner.optimizer.state[p]["exp_avg"] for name, p in ours.named_parameters() if name in wanted}
    gap = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted) ** 0.5
    assert gap <= 1e-4 * sum(float(x.square().sum()) for x in wanted.values()) ** 0.5


def reason(message: str) -> str:
    """Return an error of ``install`` without class names and numbers, which other versions may change."""
    message = re.sub(r"^\w+ (cannot be used: )?", "", message)
    message = re.sub(r"fails in its own code: .*", "fails in its own code", message)
    message = re.sub(r"got no layout: .*", "does not pass the layout on to its attention", message)
    return re.sub(r"log-probs up to \S+ nats from", "other log-probs than", message)


def table(verdicts: dict[str, str]) -> str:
    rows = [f"| {name} | `{kind}` | {verdicts[name]} |" for name, kind, _ in FAMILIES]
    return "\n".join(["| family | model_type | verdict |", "|---|---|---|", *rows, ""])


def written() -> dict[str, str]:
    """Return the verdicts that the page has."""
    text = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    return dict(re.findall(r"^\| (.*?) \| `\w+` \| (.*) \|$", text, re.MULTILINE))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for name, kind, options in FAMILIES:
        found[name] = verdict(kind, options)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table(found) + END + rest.split(END)[1], encoding="utf-8")
