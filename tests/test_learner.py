"""The learner against plain PyTorch: padded batches, a loop over tokens, the formulas as published.

Gradients are read from Adam's first moment, which with beta1 = 0 is the gradient of the last step.
"""

from __future__ import annotations

import copy
import logging
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from random_models import random_model
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers import AutoModelForCausalLM

from twofold.engines.native import NativeEngine
from twofold.maths.schedule import learning_rate
from twofold.models.attention import Packing
from twofold.models.head import attach
from twofold.models.io import load_model
from twofold.trainer.learner import Diverged, Learner, Loss
from twofold.trainer.optim import Muon, Optim, make, moments, remember
from twofold.types import Sample, Sampling

FREE = Optim(lr=0.0, warmup=0.0, clip=math.inf, beta1=0.0)
"""An update with it changes no weight and leaves the gradient in Adam's first moment."""
PROMPT, SUFFIX = [20, 21, 22], [30, 31, 32]
ATTENTION = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Any:
    return load_model(tiny_model)[0]


@pytest.fixture(scope="module")
def qwen(tiny_qwen: Path) -> Any:
    return load_model(tiny_qwen)[0]


def learner(model: Any, optim: Optim = FREE, loss: Loss | None = None, **options: Any) -> Learner:
    return Learner(copy.deepcopy(model), optim, loss or Loss(), **({"steps": 100} | options))


def gradients(learned: Learner) -> dict[str, Tensor]:
    state = learned.optimizer.state
    return {name: state[p]["exp_avg"].clone() for name, p in learned.model.named_parameters() if p in state}


def gradient(
    model: Any, samples: list[Sample], optim: Optim = FREE, loss: Loss | None = None, **options: Any
) -> dict[str, Tensor]:
    learned = learner(model, optim, loss, **options)
    learned.update(samples)
    return gradients(learned)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten().double() for name in sorted(gradients)])


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """|a - b| / |b| over all parameters."""
    assert a.keys() == b.keys()
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


def policy_logprobs(model: Any, tokens: list[int], temperature: float = 1.0) -> list[float]:
    return [0.0, *NativeEngine(model).logprobs([tokens[:1]], [tokens[1:]], temperature)[0]]


def make_samples(model: Any, n: int = 6, temperature: float = 1.0, seed: int = 0) -> list[Sample]:
    """Ragged samples with end tokens in the middle and at the end, forced tokens, off-policy log-probs and targets.

    The last two are one without a sampled token (pure SFT) and one without a target.
    """
    rng, eos = random.Random(seed), model.config.eos_token_id
    samples = []
    for i in range(n):
        before, size = rng.randint(1, 5), rng.randint(2, 9)
        tokens = [rng.randrange(1, 500) for _ in range(before + size)] + [eos] + SUFFIX
        tokens[before] = eos
        sampled = [before <= t < before + size + 1 and rng.random() < 0.9 for t in range(len(tokens))]
        if i == n - 2:
            sampled = [False] * len(tokens)
        behaviour = [
            p + rng.gauss(0, 0.3) if s else 0.0
            for p, s in zip(policy_logprobs(model, tokens, temperature), sampled, strict=True)
        ]
        advantages = [rng.gauss(0, 1) if s else 0.0 for s in sampled]
        targets = [0.0] * (len(tokens) - 1) + [0.7 if i < n - 1 else 0.0]
        samples.append(Sample(tokens, sampled, behaviour, advantages, targets))
    return samples


def sequence_ratio(logits: Tensor, s: Sample, temperature: float) -> Tensor:
    """(pi(y) / pi_old(y)) ** (1 / |y|) over the sampled tokens of one sample."""
    at = [t for t, drawn in enumerate(s.sampled) if drawn]
    logps = [(logits[t - 1] / temperature).log_softmax(-1)[s.tokens[t]] for t in at]
    return torch.exp((sum(logps) - sum(s.logprobs[t] for t in at)) / len(at))


def oracle(path: Path, samples: list[Sample], loss: Loss, temperature: float = 1.0) -> dict[str, Tensor]:
    """Return the objective's gradients, token by token, from a right-padded batch and an unchanged transformers model."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    pad, longest = model.config.eos_token_id, max(len(s.tokens) for s in samples)
    ids = torch.tensor([s.tokens + [pad] * (longest - len(s.tokens)) for s in samples])
    mask = torch.tensor([[1] * len(s.tokens) + [0] * (longest - len(s.tokens)) for s in samples])
    logits = model(ids, attention_mask=mask).logits
    per_sample, nll = [], []
    for b, s in enumerate(samples):
        terms = []
        for t, token in enumerate(s.tokens):
            if s.targets[t]:
                nll.append(-s.targets[t] * logits[b, t - 1].log_softmax(-1)[token])
            if s.sampled[t]:
                logp = (logits[b, t - 1] / temperature).log_softmax(-1)[token]
                ratio, a = torch.exp(logp - s.logprobs[t]), s.advantages[t]
                if loss.kind == "gspo":
                    ratio = sequence_ratio(logits[b], s, temperature)
                term = -torch.minimum(ratio * a, torch.clamp(ratio, 1 - loss.clip_low, 1 + loss.clip_high) * a)
                if loss.kind == "cispo":
                    term = -min(ratio.item(), loss.cap) * a * logp
                if loss.beta and s.reference is not None:
                    r = torch.exp(s.reference[t] - logp)
                    term = term + loss.beta * (r - torch.log(r) - 1)
                terms.append(term)
        if terms:
            per_sample.append(torch.stack(terms))
    policy = {
        "token": lambda: torch.cat(per_sample).mean(),
        "sequence": lambda: torch.stack([x.mean() for x in per_sample]).mean(),
        "constant": lambda: torch.stack([x.sum() / loss.constant for x in per_sample]).mean(),
    }[loss.normalise]()
    (policy + torch.stack(nll).mean()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_gradient_equals_plain_pytorch(llama, tiny_model, normalise):
    loss, samples = Loss(normalise=normalise, constant=7), make_samples(llama)
    assert distance(gradient(llama, samples, loss=loss), oracle(tiny_model, samples, loss)) < 1e-4


def test_gradient_equals_plain_pytorch_where_pad_is_eos_and_embeddings_are_tied(qwen, tiny_qwen):
    assert qwen.config.pad_token_id == qwen.config.eos_token_id
    samples = make_samples(qwen)
    assert distance(gradient(qwen, samples), oracle(tiny_qwen, samples, Loss())) < 1e-4


def test_gradient_equals_plain_pytorch_at_another_temperature(llama, tiny_model):
    samples = make_samples(llama, temperature=0.7)
    assert distance(gradient(llama, samples, temperature=0.7), oracle(tiny_model, samples, Loss(), 0.7)) < 1e-4


def test_gradient_with_a_kl_to_the_reference_equals_plain_pytorch(llama, tiny_model):
    rng = random.Random(3)
    samples = [replace(s, reference=[p + rng.gauss(0, 0.5) for p in s.logprobs]) for s in make_samples(llama)]
    loss = Loss(beta=0.3)
    with_kl = gradient(llama, samples, loss=loss)
    assert distance(with_kl, oracle(tiny_model, samples, loss)) < 1e-4
    assert distance(with_kl, gradient(llama, samples)) > 1e-2


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_micro_batches_and_order_do_not_change_the_gradient(llama, normalise):
    samples, loss = make_samples(llama), Loss(normalise=normalise)
    whole = gradient(llama, samples, loss=loss)
    assert distance(gradient(llama, samples, loss=loss, micro_tokens=1), whole) < 1e-5
    assert distance(gradient(llama, samples, loss=loss, micro_tokens=30), whole) < 1e-5
    assert distance(gradient(llama, samples[::-1], loss=loss), whole) < 1e-5


KINDS = {
    "clip": Loss(),
    "cispo": Loss("cispo", cap=1.2),
    "gspo": Loss("gspo", clip_low=0.05, clip_high=0.05, normalise="sequence"),
}


def one_advantage_each(samples: list[Sample]) -> list[Sample]:
    return [replace(s, advantages=[(-1.0) ** i * m for m in s.sampled]) for i, s in enumerate(samples)]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_every_kind_equals_plain_pytorch(llama, tiny_model, kind):
    """For GSPO the oracle differentiates the ratio of the whole sequence."""
    samples, loss = one_advantage_each(make_samples(llama, temperature=0.7)), KINDS[kind]
    learned = learner(llama, loss=loss, temperature=0.7)
    assert 0.1 < learned.update(samples)["clip_ratio"] < 0.9
    assert distance(gradients(learned), oracle(tiny_model, samples, loss, 0.7)) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_neither_micro_batches_nor_shared_prompts_change_the_gradient_of_any_kind(llama, kind):
    """A sample alone in its micro-batch shares no prefix. In a larger one, GSPO's ratio must be that of its own tokens."""
    loss, rng, group = KINDS[kind], random.Random(2), []
    for tokens in ([*PROMPT, *s.tokens] for s in make_samples(llama, 5)):
        sampled = [len(PROMPT) <= t < len(tokens) - len(SUFFIX) and t % 4 != 2 for t in range(len(tokens))]
        behaviour = [(p + rng.gauss(0, 0.3)) * m for p, m in zip(policy_logprobs(llama, tokens), sampled, strict=True)]
        targets = [0.0] * (len(tokens) - 1) + [0.5]
        group.append(Sample(tokens, sampled, behaviour, [rng.gauss(0, 1) * m for m in sampled], targets))
    whole = learner(llama, loss=loss)
    assert whole.update(group)["clip_ratio"] > 0.1
    for budget in (1, 40):
        assert distance(gradient(llama, group, loss=loss, micro_tokens=budget), gradients(whole)) < 1e-5
    assert distance(gradient(llama, group[::-1], loss=loss), gradients(whole)) < 1e-5


def test_kinds_share_their_gradient_on_policy_and_only_there(llama):
    off = one_advantage_each(make_samples(llama))
    on = [
        replace(s, logprobs=[p * m for p, m in zip(policy_logprobs(llama, s.tokens), s.sampled, strict=True)])
        for s in off
    ]
    first, *others = [replace(loss, normalise="sequence") for loss in KINDS.values()]
    for loss in others:
        assert distance(gradient(llama, on, loss=loss), gradient(llama, on, loss=first)) < 1e-5
        assert distance(gradient(llama, off, loss=loss), gradient(llama, off, loss=first)) > 1e-2


def test_two_threads_give_the_same_bits_again(llama):
    """All samples read the hidden state of one prompt's last token, so its gradient is a sum over the threads' samples."""
    rng = random.Random(0)
    texts = [[*PROMPT, *(rng.randrange(1, 500) for _ in range(40))] for _ in range(64)]
    samples = [
        Sample(t, [False] * 3 + [True] * 40, [0.0] * 3 + [-6.0] * 40, [0.0] * 3 + [rng.gauss(0, 1)] * 40, [0.0] * 43)
        for t in texts
    ]
    torch.set_num_threads(2)
    try:
        found = {flat(gradient(llama, samples)).numpy().tobytes() for _ in range(20)}
    finally:
        torch.set_num_threads(1)
    assert len(found) == 1


def test_metrics_are_of_the_whole_batch_not_of_the_last_micro_batch(llama):
    samples = make_samples(llama)
    whole, split = (learner(llama, micro_tokens=m).update(samples) for m in (10_000, 1))
    assert (
        whole.keys()
        == split.keys()
        >= {"loss", "policy_loss", "target_loss", "entropy", "clip_ratio", "mismatch", "grad_norm", "lr"}
    )
    assert split == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_one_forward_pass_for_both_streams_equals_two(llama):
    """RL^V: the verdict after the solution does not change the policy's gradient."""
    both = make_samples(llama)
    solutions = [
        Sample(*(x[: -len(SUFFIX)] for x in (s.tokens, s.sampled, s.logprobs, s.advantages, s.targets))) for s in both
    ]
    verdicts = [replace(s, sampled=[False] * len(s.tokens), advantages=[0.0] * len(s.tokens)) for s in both]
    separate = [gradient(llama, s) for s in (solutions, verdicts)]
    assert distance(gradient(llama, both), {name: separate[0][name] + separate[1][name] for name in separate[0]}) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_sampled_is_what_is_scored(llama, temperature):
    """Log-probs of the engine and of the learner agree at step 0, with the judgement after the solution and without."""
    model = copy.deepcopy(llama)
    stop = (model.config.eos_token_id,)
    completions = NativeEngine(model).generate([PROMPT, PROMPT[:2]], Sampling(3, temperature, max_tokens=12, stop=stop))
    for suffix in ([], SUFFIX):
        samples = []
        for prompt, c in zip([PROMPT] * 3 + [PROMPT[:2]] * 3, completions[0] + completions[1], strict=True):
            before, behind = [0.0] * len(prompt), [0.0] * len(suffix)
            targets = [0.0] * (len(prompt) + len(c.tokens)) + ([0.0, 0.0, 1.0] if suffix else [])
            samples.append(
                Sample(
                    [*prompt, *c.tokens, *suffix],
                    [False] * len(prompt) + c.sampled + [False] * len(suffix),
                    before + c.logprobs + behind,
                    before + [1.0] * len(c.tokens) + behind,
                    targets,
                )
            )
        stats = learner(model, temperature=temperature).update(samples)
        assert stats["mismatch"] < 1e-5
        assert stats["clip_ratio"] == 0
        assert stats["policy_loss"] == pytest.approx(-1, abs=1e-4)  # every ratio is 1
    assert learner(model, temperature=1.5).update(samples)["mismatch"] > 0.01


def test_the_stop_token_gets_credit(llama):
    eos = llama.config.eos_token_id
    tokens = [*PROMPT, 40, eos]
    behaviour = policy_logprobs(llama, tokens)
    sample = Sample(tokens, [False] * 3 + [True] * 2, behaviour, [0.0, 0.0, 0.0, 0.0, 1.0], [0.0] * 5)
    learned = learner(llama, Optim(lr=1e-3, warmup=0.0))
    learned.update([sample])
    assert policy_logprobs(learned.model, tokens)[-1] > behaviour[-1] + 1e-3


def test_forced_tokens_carry_no_policy_gradient(llama):
    samples = make_samples(llama)
    loud = [
        replace(s, advantages=[a if p else 100.0 for a, p in zip(s.advantages, s.sampled, strict=True)])
        for s in samples
    ]
    assert distance(gradient(llama, loud), gradient(llama, samples)) < 1e-6


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Qwen2", dict(tie_word_embeddings=True)),
        ("Qwen3", dict(head_dim=16)),
        ("Mistral", dict(sliding_window=None)),
        ("Phi3", {}),  # its own module is run
    ],
)
def test_gradient_of_any_family_equals_plain_pytorch(family, options, tmp_path):
    """In fp32 closely; in bfloat16 as closely as the model itself under autocast (0.02 to 0.16 with three seeds)."""
    path = random_model(family, tmp_path, **options)
    model, loss = load_model(path)[0], Loss()
    samples = make_samples(model)
    exact = oracle(path, samples, loss)
    assert distance(gradient(model, samples), exact) < 1e-4
    assert 1e-3 < distance(gradient(model, samples, precision="bfloat16"), exact) < 0.1


# ---------------------------------------------------------------- the scalar head


@pytest.mark.parametrize("kind", ["bce", "regression"])
def test_value_head_gradient_equals_plain_pytorch(llama, tiny_model, kind):
    model = copy.deepcopy(llama)
    torch.manual_seed(0)
    attach(model, kind)
    torch.nn.init.normal_(model.value_head.weight)
    labels = [1.0, 0.0, 1.0]
    rows = [[*PROMPT, 50, 51], [*PROMPT, 60], [70, 71]]
    samples = [
        Sample(r, [False] * len(r), *([0.0] * len(r) for _ in range(3)), values=[(len(r) - 1, y, 0.5)])
        for r, y in zip(rows, labels, strict=True)
    ]
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager", dtype=torch.float32)
    head = copy.deepcopy(model.value_head)
    scores = torch.stack([head(plain.model(torch.tensor([r])).last_hidden_state[0, -1])[0] for r in rows])
    loss = 0.5 * (binary_cross_entropy_with_logits if kind == "bce" else mse_loss)(scores, torch.tensor(labels))
    loss.backward()
    expected = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    expected |= {f"value_head.{name}": p.grad for name, p in head.named_parameters()}
    learned = learner(model, micro_tokens=5)
    stats = learned.update(samples)
    found = gradients(learned)
    assert stats["value_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert distance({name: found[name] for name in expected}, expected) < 1e-4
    assert all(not g.any() for name, g in found.items() if name not in expected)


# ---------------------------------------------------------------- clipping


def clipped_by_hand(g: dict[str, Tensor], bound: float) -> dict[str, Tensor]:
    return {name: x * min(1.0, bound / float(flat(g).norm())) for name, x in g.items()}


def test_a_strange_verdict_cannot_drown_the_policy(llama):
    """Each stream is bounded on its own: a target loss 1000 times too large leaves the policy's share as it was."""
    both = [replace(s, targets=[1000 * t for t in s.targets]) for s in make_samples(llama)]
    policy = gradient(llama, [replace(s, targets=[0.0] * len(s.tokens)) for s in both])
    targets = gradient(llama, [replace(s, sampled=[False] * len(s.tokens)) for s in both])
    bound = 0.5 * float(flat(policy).norm())  # both norms exceed it
    assert float(flat(targets).norm()) > 100 * bound
    a, b = clipped_by_hand(policy, bound), clipped_by_hand(targets, bound)
    learned = learner(llama, replace(FREE, clip=bound))
    stats = learned.update(both)
    assert distance(gradients(learned), {name: a[name] + b[name] for name in a}) < 1e-3
    assert stats["grad_norm/policy"] == pytest.approx(2 * bound, rel=1e-3)
    assert stats["grad_norm/targets"] == pytest.approx(float(flat(targets).norm()), rel=1e-3)


def test_streams_are_told_apart_by_their_credit_not_by_their_loss(llama):
    """On policy the loss is minus the mean advantage: 0 in a balanced group, whose gradient is anything but 0."""
    samples = [replace(s, targets=[0.0] * (len(s.tokens) - 1) + [1000.0]) for s in make_samples(llama, 2)]
    size = 6
    balanced = []
    for s, sign in zip(samples, (1.0, -1.0), strict=True):
        sampled = [1 <= t < size for t in range(len(s.tokens))]
        behaviour = [p if m else 0.0 for p, m in zip(policy_logprobs(llama, s.tokens), sampled, strict=True)]
        balanced.append(replace(s, sampled=sampled, logprobs=behaviour, advantages=[sign * m for m in sampled]))
    stats = learner(llama, replace(FREE, clip=0.1)).update(balanced)
    assert stats["policy_loss"] == pytest.approx(0, abs=1e-6)
    assert stats["grad_norm/policy"] > 0.1
    exact = [
        replace(s, logprobs=[math.nan if m else 0.0 for m in s.sampled], advantages=[0.0] * len(s.tokens))
        for s in balanced
    ]
    assert math.isnan(learner(llama).update(exact)["loss"])  # a loss of NaN does not count as 0


def test_one_stream_is_clipped_as_usual(llama):
    samples = [replace(s, targets=[0.0] * len(s.tokens)) for s in make_samples(llama)]
    whole = gradient(llama, samples)
    assert distance(gradient(llama, samples, replace(FREE, clip=0.1)), clipped_by_hand(whole, 0.1)) < 1e-4


def test_how_often_norms_are_logged_does_not_change_the_training(llama):
    """This includes streams that cancel: the joint norm is below the bound, and the norm of each stream is above it."""
    s = make_samples(llama, 3)[0]
    at = len(PROMPT)
    tokens = [*PROMPT, 40]
    behaviour = [0.0] * at + [policy_logprobs(llama, tokens)[-1]]
    cancel = Sample(tokens, [False] * at + [True], behaviour, [0.0] * at + [-1.0], [0.0] * at + [1.0 + 1e-4])
    for samples in ([cancel], [s]):
        optim = replace(FREE, clip=0.05)
        often, seldom = (learner(llama, optim, norms_every=every) for every in (1, 1000))
        for learned in (often, seldom):
            learned.update([])
            learned.step = 1  # at step 0 the norms are always due
        stats = [learned.update(samples) for learned in (often, seldom)]
        assert "grad_norm/policy" in stats[0]
        assert all(
            torch.equal(x, y) for x, y in zip(gradients(often).values(), gradients(seldom).values(), strict=True)
        )


# ---------------------------------------------------------------- what must not crash, and what must not pass


def everything(learned: Learner) -> list[Tensor]:
    moments = [x for state in learned.optimizer.state.values() for x in state.values()]
    return [x.clone() for x in (*learned.model.parameters(), *moments)]


@pytest.mark.parametrize("stream", ["advantages", "logprobs", "targets"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_one_bad_number_leaves_weights_and_moments_untouched(llama, stream, poison, caplog):
    samples = make_samples(llama)
    learned = learner(llama, Optim(lr=1e-3, warmup=0.0))
    learned.update(samples)
    before = everything(learned)
    values = list(getattr(samples[0], stream))
    at = len(values) - 1 if stream == "targets" else samples[0].sampled.index(True)
    values[at] = poison
    if stream == "logprobs":
        samples[0].advantages[at] = -1.0  # with a positive advantage the clip would hide an overflow
    with caplog.at_level(logging.WARNING):
        stats = learned.update([replace(samples[0], **{stream: values}), *samples[1:]])
    assert stats["skipped"] == 1
    assert "update skipped" in caplog.text and "not finite" in caplog.text
    assert all(torch.equal(x, y) for x, y in zip(before, everything(learned), strict=True))
    assert learned.update(samples)["skipped"] == 0


def test_three_bad_updates_in_a_row_stop_the_run(llama):
    good = make_samples(llama, 3)
    bad = [replace(good[0], advantages=[math.nan] * len(good[0].tokens))]
    learned = learner(llama)
    for samples in (bad, bad, good, bad, bad):
        learned.update(samples)
    with pytest.raises(Diverged, match="three updates in a row"):
        learned.update(bad)


def test_an_improbable_verdict_does_not_disturb_the_policy_terms(llama):
    """No ratio may be formed at a target, which is not a policy token: 1 / p overflows for p = exp(-200)."""
    model = copy.deepcopy(llama)
    with torch.no_grad():
        model.lm_head.weight *= 200
    samples = make_samples(model, 3)
    samples = [replace(s, reference=[0.0] * len(s.tokens), logprobs=policy_logprobs(model, s.tokens)) for s in samples]
    samples = [
        replace(s, reference=[p if m else 0.0 for p, m in zip(s.logprobs, s.sampled, strict=True)]) for s in samples
    ]
    stats = learner(model, loss=Loss(beta=0.1)).update(samples)
    assert stats["target_loss"] > 100
    assert stats["skipped"] == 0
    assert stats["kl"] == pytest.approx(0, abs=1e-3)


def test_a_kl_without_a_reference_is_refused(llama):
    """It is refused where only some samples lack a reference, too."""
    samples = make_samples(llama, 3)
    samples[0] = replace(samples[0], reference=samples[0].logprobs)
    with pytest.raises(ValueError, match=r"beta.*reference"):
        learner(llama, loss=Loss(beta=0.1)).update(samples)


def test_no_samples_is_no_update(llama):
    learned = learner(llama, Optim(lr=1.0))
    before = everything(learned)
    assert learned.update([]) == {}
    assert all(torch.equal(x, y) for x, y in zip(before, everything(learned), strict=True))


def test_samples_with_nothing_to_learn_are_harmless(llama):
    idle = Sample([*PROMPT, 5], [False] * 4, *([0.0] * 4 for _ in range(3)))
    stats = learner(llama).update([idle, idle])
    assert stats["loss"] == 0 and stats["skipped"] == 0 and stats["grad_norm"] == 0
    samples = make_samples(llama)
    with_idle = gradient(llama, [idle, *samples], micro_tokens=1)
    assert distance(with_idle, gradient(llama, samples)) < 1e-5


# ---------------------------------------------------------------- an engine that is not the learner


def test_truncated_importance_sampling_has_cispos_gradient(llama):
    """Both weigh A grad log p by min(p / p_engine, cap). PPO's clip alone has another gradient: it stops some tokens."""
    samples = make_samples(llama)
    tis = gradient(llama, samples, loss=Loss(correction="token_truncate", correction_cap=1.3))
    assert distance(tis, gradient(llama, samples, loss=Loss("cispo", cap=1.3))) < 1e-5
    assert distance(tis, gradient(llama, samples)) > 0.01


def test_a_masked_sample_has_no_policy_gradient_but_its_target_has(llama):
    """Of the sample with the greatest product of ratios the verdict alone is learnt; micro-batches change nothing."""
    samples = make_samples(llama)
    products = [
        math.exp(
            sum(p - b for p, b, m in zip(policy_logprobs(llama, s.tokens), s.logprobs, s.sampled, strict=True) if m)
        )
        for s in samples
    ]
    worst = max(range(len(samples)), key=products.__getitem__)
    second = sorted(products)[-2]
    assert products[worst] > 1.1 * second
    masked = Loss(correction="sequence_mask", correction_cap=(products[worst] + second) / 2)
    found = gradient(llama, samples, loss=masked, micro_tokens=1)
    weighed = [
        replace(s, advantages=[0.0 if i == worst else a * products[i] for a in s.advantages], logprobs=behaviour)
        for i, s in enumerate(samples)
        for behaviour in [[p if m else 0.0 for p, m in zip(policy_logprobs(llama, s.tokens), s.sampled, strict=True)]]
    ]
    assert distance(found, gradient(llama, weighed)) < 1e-5
    stats = learner(llama, loss=masked).update(samples)
    drawn = [sum(s.sampled) for s in samples]
    assert stats["correction_capped"] == pytest.approx(drawn[worst] / sum(drawn), abs=1e-6)
    kept = sum(n * products[i] for i, n in enumerate(drawn) if i != worst)
    assert stats["correction"] == pytest.approx(kept / sum(drawn), rel=1e-4)
    assert "correction" not in learner(llama).update(samples)


def test_a_correction_needs_one_update_per_step(llama):
    with pytest.raises(ValueError, match="needs one update per step"):
        learner(llama, loss=Loss(correction="token_truncate"), minibatches=2)


# ---------------------------------------------------------------- epochs, minibatches, metrics


def test_epochs_and_minibatches_are_optimiser_steps_on_one_set_of_rollouts(llama):
    samples = [replace(s, targets=[0.0] * len(s.tokens)) for s in make_samples(llama) if any(s.sampled)]
    fresh = []
    for s in samples:
        fresh.append(
            replace(
                s, logprobs=[p if m else 0.0 for p, m in zip(policy_logprobs(llama, s.tokens), s.sampled, strict=True)]
            )
        )
    one = learner(llama, Optim(lr=1e-2, warmup=0.0)).update(fresh)
    assert one["clip_ratio"] == 0 and one["mismatch"] < 1e-5
    learned = learner(llama, Optim(lr=1e-2, warmup=0.0), epochs=2, minibatches=2)
    many = learned.update(fresh)
    assert all(state["step"] == 4 for state in learned.optimizer.state.values())
    assert many["clip_ratio"] > 0 and many["mismatch"] > 0.01  # the policy has moved away from the one that sampled
    again = learner(llama, Optim(lr=1e-2, warmup=0.0), epochs=2, minibatches=2)
    assert again.update(fresh) == many
    assert all(torch.equal(x, y) for x, y in zip(everything(again), everything(learned), strict=True))


def test_more_minibatches_than_samples(llama):
    learned = learner(llama, minibatches=5)
    assert learned.update(make_samples(llama, 2))["skipped"] == 0
    assert all(state["step"] == 2 for state in learned.optimizer.state.values())


def test_a_metric_is_the_mean_over_the_steps_that_have_it(llama):
    """Norms per stream are measured in steps where a gradient is clipped. The other steps must not count as norms of 0."""
    loud, quiet = (make_samples(llama, 3, seed=seed)[0] for seed in (0, 1))
    quiet = replace(quiet, advantages=[1e-6 * a for a in quiet.advantages], targets=[1e-6 * t for t in quiet.targets])
    alone, both = learner(llama, replace(FREE, clip=0.1)), learner(llama, replace(FREE, clip=0.1), minibatches=2)
    alone.step = both.step = 1  # at step 0 the norms are always due
    expected = alone.update([loud])["grad_norm/policy"]
    assert both.update([loud, quiet])["grad_norm/policy"] == pytest.approx(expected, rel=1e-4)


def test_metrics_per_token_do_not_depend_on_dr_grpos_constant(llama):
    samples = make_samples(llama)
    stats = [
        learner(llama, loss=loss).update(samples)
        for loss in (Loss(), Loss(normalise="constant", constant=7), Loss(normalise="constant", constant=1000))
    ]
    for name in ("entropy", "mismatch", "clip_ratio"):
        assert stats[1][name] == pytest.approx(stats[0][name], rel=1e-4)
        assert stats[2][name] == pytest.approx(stats[0][name], rel=1e-4)
    assert 0 < stats[0]["clip_ratio"] < 1


# ---------------------------------------------------------------- precision and memory


def test_bfloat16_runs_in_autocast_over_float32_weights(llama):
    samples = make_samples(llama)
    learned = learner(llama, replace(FREE, lr=1e-3), precision="bfloat16")
    assert learned.update(samples)["skipped"] == 0
    assert all(p.dtype == torch.float32 for p in learned.model.parameters())
    low, full = flat(gradients(learned)), flat(gradient(llama, samples))
    assert 0.9 < torch.nn.functional.cosine_similarity(low, full, dim=0) < 1 - 1e-9


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_gradient_checkpointing_runs_layers_twice_and_changes_nothing(family, tmp_path):
    model = load_model(random_model(family, tmp_path))[0]
    samples = make_samples(model)
    plain, saving = learner(model), learner(model, checkpointing=True)
    runs, attend = [], Packing.attend
    for learned in (plain, saving):
        with patch.object(Packing, "attend", autospec=True, side_effect=attend) as attending:
            learned.update(samples)
        runs.append(attending.call_count)
    assert runs[1] == 2 * runs[0]  # every layer is computed again in the backward pass
    assert distance(gradients(saving), gradients(plain)) < 1e-5
    assert not any(m.training for m in saving.model.modules())  # the engine finds the model as it was


# ---------------------------------------------------------------- schedule and optimisers


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Optim(lr=1.0, warmup=0.0), {0: 1.0, 9: 1.0}),
        (Optim(lr=3.0, warmup=0.3), {0: 1.0, 1: 2.0, 2: 3.0, 3: 3.0, 9: 3.0}),
        (Optim(lr=1.0, warmup=0.01), {0: 1.0}),  # one step of warm-up out of one
        (Optim(lr=1.0, warmup=0.2, schedule="linear"), {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 9: 0.125}),
        (Optim(lr=1.0, warmup=0.2, schedule="cosine"), {2: 1.0, 6: 0.5, 4: 0.5 + 0.5 * math.cos(math.pi / 4)}),
        (Optim(lr=1.0, warmup=0.0, schedule="cosine", final=0.1), {0: 1.0, 5: 0.55}),
        (Optim(lr=1.0, warmup=0.0, schedule="linear", hold=0.6), {5: 1.0, 6: 1.0, 8: 0.5}),
        (Optim(lr=1.0, warmup=0.0, final=0.1), {9: 1.0}),
    ],
)
def test_learning_rate_by_hand(config, expected):
    assert {step: learning_rate(config, step, 10) for step in expected} == pytest.approx(expected)


def test_the_learner_follows_the_schedule(llama):
    samples = make_samples(llama, 2)
    learned = learner(llama, Optim(lr=1e-3, warmup=0.5), steps=4)
    assert [learned.update(samples)["lr"] for _ in range(3)] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_weight_decay_falls_on_matrices_only(llama):
    groups = make(Optim(weight_decay=0.1), llama).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in llama.parameters() if p.ndim == 2}


MUON = Optim("muon", lr=0.02, warmup=0.0, schedule="linear", clip=math.inf)


def test_muon_takes_orthogonal_steps_in_hidden_matrices_and_adams_elsewhere(llama):
    samples = make_samples(llama)
    learned = learner(llama, MUON)
    learned.update(samples)
    for name, before in llama.named_parameters():
        change = (before - learned.model.get_parameter(name)).detach()
        if before.ndim == 2 and "layers" in name:
            singular = torch.linalg.svdvals(change / (0.02 * 0.2 * math.sqrt(max(before.shape))))
            assert singular.median() > 0.5 and singular.max() < 1.3, name
        else:  # Adam's first step is the learning rate; embedding and output layer are not hidden matrices
            assert change.abs().max().item() == pytest.approx(0.02, rel=1e-3), name


@pytest.mark.parametrize("shape", [(8, 8), (16, 8), (8, 16)])
def test_muon_orthogonalises(shape):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.zeros(shape))
    other = torch.nn.Parameter(torch.zeros(3))
    optimiser = Muon([w], torch.optim.AdamW([other], lr=0.1), Optim(lr=0.1))
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spectrum = torch.linspace(0.2, 1.0, 8)
    goal = u @ torch.diag(spectrum) @ v
    before = ((w - goal) ** 2).sum() + ((other - 1) ** 2).sum()
    before.backward()
    optimiser.step()
    singular = torch.linalg.svdvals(w.detach()) / (0.1 * 0.2 * math.sqrt(max(shape)))
    assert singular.min() > 0.6 and singular.max() < 1.3  # the gradient's own singular values are 0.2 to 1
    assert torch.allclose(other, torch.full((3,), 0.1), atol=1e-4)
    assert ((w - goal) ** 2).sum() + ((other - 1) ** 2).sum() < before
    with torch.no_grad():  # it minimises a quadratic
        for _ in range(60):
            w.grad, other.grad = 2 * (w - goal), 2 * (other - 1)
            optimiser.step()
    assert (w - goal).norm() < 0.3 * goal.norm()


def test_muon_state_survives_a_round_trip_and_the_schedule_continues(llama):
    samples = make_samples(llama, 3)
    straight = learner(llama, MUON, steps=5)
    for _ in range(3):
        straight.update(samples)
    resumed = learner(straight.model, MUON, steps=5)
    remember(resumed.optimizer, resumed.model, copy.deepcopy(moments(straight.optimizer, straight.model)))
    resumed.step = straight.step
    for learned in (straight, resumed):
        learned.update(samples)
        learned.update(samples)
    pairs = zip(straight.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_known_by_their_parameters_names(llama, kind):
    """The order of the parameters does not matter: another program may have written the model's file."""
    learned = learner(llama, replace(MUON, name=kind))
    assert not moments(learned.optimizer, learned.model)
    learned.update(make_samples(llama))
    found = moments(learned.optimizer, learned.model)
    name = "model.layers.1.mlp.up_proj.weight"
    kinds = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "muon": {"momentum"}}[kind]
    assert {k.split("/")[1] for k in found if k.startswith(name)} == kinds
    assert {k.split("/")[0] for k in found} == {n for n, _ in learned.model.named_parameters()}
    other = learner(learned.model, replace(MUON, name=kind))
    remember(other.optimizer, other.model, dict(reversed(found.items())))
    again = moments(other.optimizer, other.model)
    assert again.keys() == found.keys() and all(torch.equal(again[k], found[k]) for k in found)
    with pytest.raises(ValueError, match="it has '12"):
        remember(other.optimizer, other.model, {"12.exp_avg": torch.zeros(3)})
