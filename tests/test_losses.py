"""The loss terms on numbers worked out by hand, and their gradients against finite differences and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofold.maths.losses import READS, Kind, Loss, cispo, clipped, corrected, gspo, k3, policy_loss
from twofold.maths.packing import micro_batches
from twofold.maths.weights import policy_weights, target_weights
from twofold.models import logprobs
from twofold.models.norm import RMSNorm, replace_norms


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def finite_differences(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-6) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros_like(x).view(-1)
        step[i] = h
        step = step.view_as(x)
        out.view(-1)[i] = (f(x + step) - f(x - step)) / (2 * h)
    return out


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


# ---------------------------------------------------------------- PPO's clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [  # slope: of the loss in logp, which is -ratio * advantage where not clipped
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 1.0, -1.2, 0.0),  # more than 20% likelier already: nothing more to gain
        (1.5, -1.0, 1.5, 1.5),  # the pessimistic side is never clipped
        (0.5, -1.0, 0.8, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_on_hand_numbers(ratio, advantage, loss, slope):
    behaviour = numbers(-1.3)
    f = lambda logp: clipped(logp, behaviour, numbers(advantage))[0].sum()  # noqa: E731
    logp = behaviour + math.log(ratio)
    assert f(logp).item() == pytest.approx(loss)
    assert gradient(f, logp).item() == pytest.approx(slope)
    assert clipped(logp, behaviour, numbers(advantage))[1].item() == (slope == 0 and advantage != 0)


def test_clip_bounds_are_apart():
    high, _ = clipped(numbers(math.log(1.5)), numbers(0), numbers(1), low=0.2, high=0.28)
    low, _ = clipped(numbers(math.log(0.5)), numbers(0), numbers(-1), low=0.1, high=0.28)
    assert (high.item(), low.item()) == pytest.approx((-1.28, 0.9))


def test_clipped_gradient_equals_finite_differences():
    rng = torch.Generator().manual_seed(0)
    behaviour, advantages = torch.randn(2, 200, generator=rng, dtype=torch.float64)
    logp = behaviour + 0.3 * torch.randn(200, generator=rng, dtype=torch.float64)
    f = lambda x: clipped(x, behaviour, advantages)[0].sum()  # noqa: E731
    exact, numeric = gradient(f, logp), finite_differences(f, logp)
    assert 20 < (exact == 0).sum() < 180  # both branches are met
    assert ((exact - numeric).norm() / exact.norm()).item() < 1e-6


# ---------------------------------------------------------------- CISPO and GSPO


@pytest.mark.parametrize(
    ("ratio", "advantage", "logp", "loss", "slope", "cut"),
    [  # slope: minus the weight min(ratio, 5) times the advantage
        (6.0, 1.0, -1.0, 5.0, -5.0, True),
        (6.0, -1.0, -1.0, -5.0, 5.0, True),
        (2.0, 1.0, -3.0, 6.0, -2.0, False),
        (0.1, -2.0, -1.0, -0.2, 0.2, False),  # there is no lower bound
        (6.0, 0.0, -1.0, 0.0, 0.0, False),  # no gradient to cut
    ],
)
def test_cispo_on_hand_numbers(ratio, advantage, logp, loss, slope, cut):
    x, behaviour = numbers(logp), numbers(logp - math.log(ratio))
    f = lambda logp: cispo(logp, behaviour, numbers(advantage), cap=5.0)[0].sum()  # noqa: E731
    assert f(x).item() == pytest.approx(loss)
    assert gradient(f, x).item() == pytest.approx(slope)
    assert cispo(x, behaviour, numbers(advantage), cap=5.0)[1].item() == cut


def test_gspo_on_hand_numbers():
    """Two samples, their tokens mixed: log ratios 0.1, -0.2, 0.4 (mean 0.1, s 1.10517) and 1, 0 (mean 0.5, s 1.64872)."""
    sample = torch.tensor([0, 1, 0, 0, 1])
    behaviour = numbers(-1.0, -2.0, -3.0, -0.5, -4.0)
    logp = behaviour + numbers(0.1, 1.0, -0.2, 0.4, 0.0)

    def f(x: Tensor, sign: float) -> Tensor:
        return gspo(x, behaviour, sign * torch.ones_like(x), sample, low=3e-4, high=4e-4)[0]

    s0, s1 = 1.10517, 1.64872
    assert f(logp, 1.0).tolist() == pytest.approx([-1.0004] * 5)
    assert not gradient(lambda x: f(x, 1.0).sum(), logp).any()
    assert f(logp, -1.0).tolist() == pytest.approx([s0, s1, s0, s0, s1], rel=1e-5)
    assert gradient(lambda x: f(x, -1.0).sum(), logp).tolist() == pytest.approx([s0, s1, s0, s0, s1], rel=1e-5)
    for sign in (1.0, -1.0):
        assert gspo(logp, behaviour, sign * torch.ones(5), sample)[1].tolist() == [sign > 0] * 5
    assert f(2 * behaviour - logp, -1.0).tolist() == pytest.approx([0.9997] * 5)  # 1 / s is below the lower bound


def test_gspo_gradient_is_that_of_the_ratio_of_sequences():
    """Averaged over a sample of one advantage: the gradient of -min(s A, clip(s) A), s = (pi / pi_old) ** (1 / T)."""
    rng = torch.Generator().manual_seed(0)
    behaviour = -torch.rand(12, generator=rng, dtype=torch.float64)
    logp = behaviour + 0.2 * torch.randn(12, generator=rng, dtype=torch.float64)
    sample = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    advantages = numbers(1.0, -1.0, 2.0, 0.5)

    def naive(x: Tensor) -> Tensor:
        total = numbers(0.0)
        for i, a in enumerate(advantages):
            s = (x - behaviour)[sample == i].mean().exp()
            total = total - torch.minimum(s * a, s.clamp(0.95, 1.05) * a)
        return total.sum()

    def ours(x: Tensor) -> Tensor:
        each, _ = gspo(x, behaviour, advantages[sample], sample, 0.05, 0.05)
        return (each / torch.bincount(sample)[sample]).sum()

    assert ours(logp).item() == pytest.approx(naive(logp).item())
    expected = gradient(naive, logp)
    assert 0 < (expected == 0).sum() < 12
    assert torch.allclose(gradient(ours, logp), expected, rtol=1e-12, atol=1e-15)


KINDS: list[Kind] = [*get_args(Kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_on_policy_every_kind_has_the_gradient_of_minus_advantage_times_logp(kind):
    rng = torch.Generator().manual_seed(0)
    logp, advantages = torch.randn(2, 20, generator=rng, dtype=torch.float64)
    sample = torch.arange(20) // 3
    assert not policy_loss(Loss(kind), logp, logp, advantages, sample)[1].any()
    behaviour = logp.clone()
    found = gradient(lambda x: policy_loss(Loss(kind), x, behaviour, advantages, sample)[0].sum(), logp)
    assert torch.allclose(found, -advantages, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_cut_where_its_gradient_is_not_that_of_its_weight(kind):
    """The share of these tokens is the metric ``clip_ratio``."""
    rng = torch.Generator().manual_seed(0)
    behaviour, advantages, noise = torch.randn(3, 300, generator=rng, dtype=torch.float64)
    advantages[::7] = 0
    logp, sample = behaviour + 0.3 * noise, torch.arange(300) // 4
    options = {"clip": Loss(), "cispo": Loss("cispo", cap=1.2), "gspo": Loss("gspo", 0.1, 0.1)}[kind]
    ratio = (logp - behaviour).exp()
    if kind == "gspo":
        ratio = (logp - behaviour).view(-1, 4).mean(1).exp().repeat_interleave(4)
    slopes = gradient(lambda x: policy_loss(options, x, behaviour, advantages, sample)[0].sum(), logp)
    _, cut = policy_loss(options, logp, behaviour, advantages, sample)
    assert 20 < cut.sum() < 200
    assert torch.equal(cut, ~torch.isclose(slopes, -ratio * advantages, rtol=1e-9, atol=0))


def test_every_kind_says_what_it_reads_and_refuses_the_rest():
    assert [*READS] == KINDS
    with pytest.raises(ValueError, match='"cispo" does not read clip_high'):
        Loss("cispo", clip_high=0.28)
    for kind in ("clip", "gspo"):
        with pytest.raises(ValueError, match=f'"{kind}" does not read cap'):
            Loss(kind, cap=2.0)
    assert Loss("cispo", cap=2.0).cap == 2.0 and Loss("gspo", 3e-4, 4e-4).clip_high == 4e-4


# ---------------------------------------------------------------- importance correction


def test_corrections_on_hand_numbers():
    """One sample of four tokens with log ratios 0.5 (product 7.389), and one of two with -0.2 and 0.9 (product 2.0138)."""
    logp, sample = numbers(*[-1.0] * 6), torch.tensor([0, 0, 0, 0, 1, 1])
    behaviour = numbers(-1.5, -1.5, -1.5, -1.5, -0.8, -1.9)

    def weights(correction, cap):
        old, weight, capped = corrected(
            Loss(correction=correction, correction_cap=cap), logp.requires_grad_(), behaviour, sample
        )
        assert old.tolist() == logp.tolist() and not old.requires_grad and not weight.requires_grad
        return weight.tolist(), capped.tolist()

    assert weights("token_truncate", 2.0) == (
        pytest.approx([*[1.6487] * 4, 0.8187, 2.0], abs=1e-4),
        [*[False] * 5, True],
    )
    assert weights("sequence_mask", 3.0) == (
        pytest.approx([0, 0, 0, 0, 2.0138, 2.0138], abs=1e-4),
        [True] * 4 + [False] * 2,
    )
    assert weights("sequence_mask", 8.0)[0] == pytest.approx([*[7.3891] * 4, 2.0138, 2.0138], abs=1e-4)
    old, weight, capped = corrected(Loss(), logp, behaviour, sample)
    assert old is behaviour and weight.tolist() == [1] * 6 and not capped.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_replaces_the_clip_of_the_engines_error(kind):
    """The engine is off by 0.5: without a correction PPO's clip stops the token (-1.2, no gradient); with one it is weighed."""
    behaviour, advantage, sample = numbers(-1.5), numbers(1.0), torch.tensor([0])

    def loss(logp, **options):
        old, weight, _ = corrected(Loss(kind, **options), logp, behaviour, sample)
        return (weight * policy_loss(Loss(kind, **options), logp, old, advantage, sample)[0]).sum()

    slope = gradient(lambda logp: loss(logp, correction="token_truncate"), numbers(-1.0))
    assert slope.item() == pytest.approx(-math.exp(0.5))
    assert gradient(loss, numbers(-1.0)).item() == (pytest.approx(-math.exp(0.5)) if kind == "cispo" else 0)


def test_a_cap_without_a_correction_is_refused():
    with pytest.raises(ValueError, match='correction = "none" does not read correction_cap'):
        Loss(correction_cap=3.0)


# ---------------------------------------------------------------- KL


def test_k3_on_hand_numbers():
    # p = 1/2, reference 1/4: r = 1/2, so 1/2 + ln 2 - 1; and p = 1/4, reference 1/2: r = 2, so 2 - ln 2 - 1
    kl = k3(numbers(0.5, 0.25, 0.3).log(), numbers(0.25, 0.5, 0.3).log())
    assert kl.tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2), 0.0])


def test_k3_is_an_unbiased_estimate_of_the_kl():
    p, reference = numbers(0.5, 0.3, 0.2), numbers(0.2, 0.2, 0.6)
    assert (p * k3(p.log(), reference.log())).sum().item() == pytest.approx((p * (p / reference).log()).sum().item())


def test_k3_gradient_on_a_softmax_equals_its_closed_form():
    """d/dlogits of k3 at token a is (1 - r) (onehot(a) - p): the policy is drawn to the reference at token a."""
    logits, reference = numbers(0.3, -1.2, 0.9, 0.1), numbers(-0.5, 0.4, 0.2, 1.1).log_softmax(-1)
    p = logits.softmax(-1)
    for a in range(4):

        def f(x: Tensor, a: int = a) -> Tensor:
            return k3(x.log_softmax(-1)[a], reference[a])

        ratio = (reference[a] - p[a].log()).exp()
        closed = (1 - ratio) * (torch.nn.functional.one_hot(torch.tensor(a), 4) - p)
        assert torch.allclose(gradient(f, logits), closed, rtol=1e-12, atol=1e-12)
        numeric = finite_differences(f, logits)
        assert ((closed - numeric).norm() / closed.norm()).item() < 1e-6


# ---------------------------------------------------------------- the denominator is data

SAMPLED = [[False, True, True, False, True], [True], [False, False]]  # 3 and 1 sampled tokens, and none


def test_token_weights():
    assert policy_weights(SAMPLED, "token") == [[0, 1 / 4, 1 / 4, 0, 1 / 4], [1 / 4], [0, 0]]


def test_sequence_weights_count_samples_that_take_part():
    assert policy_weights(SAMPLED, "sequence") == [[0, 1 / 6, 1 / 6, 0, 1 / 6], [1 / 2], [0, 0]]


def test_constant_weights_ignore_length():
    assert policy_weights(SAMPLED, "constant", constant=10) == [[0, 1 / 20, 1 / 20, 0, 1 / 20], [1 / 20], [0, 0]]


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_no_sampled_token_anywhere_is_no_weight(how):
    assert policy_weights([[False], [False, False]], how) == [[0], [0, 0]]


def test_target_weights_are_a_mean_over_targets_each_times_its_weight():
    assert target_weights([[0, 1.0], [0, 0.5], [0, 0]]) == [[0, 0.5], [0, 0.25], [0, 0]]
    assert target_weights([[0, 0], []]) == [[0, 0], []]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=6).filter(lambda x: any(map(any, x)))
)
def test_token_and_sequence_weights_sum_to_one(sampled):
    for how in ("token", "sequence"):
        assert sum(map(sum, policy_weights(sampled, how))) == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=30), st.integers(1, 64))
def test_micro_batches_keep_every_sample_once_and_within_budget(samples, budget):
    """Prefixes have 0 to 3 tokens; those of one length are equal."""
    prefixes = [[size] * size for _, size in samples]
    lengths = [size + more for more, size in samples]
    groups = micro_batches(lengths, prefixes, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for g in groups:
        once = sum({len(prefixes[i]): len(prefixes[i]) for i in g}.values())
        assert sum(lengths[i] - len(prefixes[i]) for i in g) + once <= budget or len(g) == 1


# ---------------------------------------------------------------- log-probs without the logits of a whole batch


@pytest.fixture
def case() -> tuple[torch.nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    temperature = torch.tensor([1.0, 0.7] * 6)
    return torch.nn.Linear(8, 20, bias=False), torch.randn(12, 8), torch.randint(20, (12,)), temperature


def test_token_logprobs_equal_log_softmax(case):
    head, hidden, tokens, temperature = case
    logp, entropy = logprobs.token_logprobs(head, 20, hidden, tokens, temperature)
    oracle = torch.distributions.Categorical(logits=head(hidden) / temperature[:, None])
    assert torch.allclose(logp, oracle.log_prob(tokens), atol=1e-6)
    assert torch.allclose(entropy, oracle.entropy(), atol=1e-6)
    assert not entropy.requires_grad


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_chunks_change_neither_values_nor_gradients(case, chunk, monkeypatch):
    head, hidden, tokens, temperature = case
    results = []
    rows: list[int] = []
    head.register_forward_hook(lambda module, args, logits: rows.append(len(logits)))
    for size in (4096, chunk):
        monkeypatch.setattr(logprobs, "LOGITS", size * 20)
        rows.clear()
        x = hidden.clone().requires_grad_()
        logp, entropy = logprobs.token_logprobs(head, 20, x, tokens, temperature)
        head.zero_grad()
        (logp * torch.arange(12)).sum().backward()
        results.append((logp.detach(), entropy, x.grad, head.weight.grad.clone()))
        assert max(rows) <= size, "the backward pass has more logits at once"
    for whole, chunked in zip(*results, strict=True):
        assert torch.allclose(whole, chunked, atol=1e-5)


def test_no_token_at_all_is_no_logprob(case):
    head, hidden, tokens, temperature = case
    logp, entropy = logprobs.token_logprobs(head, 20, hidden[:0], tokens[:0], temperature[:0])
    assert logp.shape == entropy.shape == (0,)


# RMSNorm --------------------------------------------------------------------------------------------------------------


def test_the_norm_and_its_gradients_are_the_plain_ones() -> None:
    """1 and 7 have a mean square of 25, so they become 0.2 and 1.4, times the weights 10 and 1."""
    weight = torch.nn.Parameter(torch.tensor([10.0, 1.0]))
    torch.testing.assert_close(RMSNorm(weight, 0.0)(torch.tensor([[1.0, 7.0]])), torch.tensor([[2.0, 1.4]]))
    torch.manual_seed(0)
    x, w, g = torch.randn(3, 5, 16, requires_grad=True), torch.rand(16, requires_grad=True), torch.randn(3, 5, 16)
    plain = w * x * (x.square().mean(-1, keepdim=True) + 0.1).rsqrt()
    ours = RMSNorm(torch.nn.Parameter(w.detach().clone()), 0.1)
    y = x.detach().clone().requires_grad_()
    (plain * g).sum().backward()
    (ours(y) * g).sum().backward()
    torch.testing.assert_close(ours(y), plain)
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(ours.weight.grad, w.grad)


@pytest.mark.parametrize(("config", "replaced"), [("LlamaConfig", True), ("Qwen3Config", True), ("GemmaConfig", False)])
def test_only_a_norm_that_computes_the_same_is_replaced(config: str, replaced: bool) -> None:
    """Gemma's norm multiplies by 1 + weight."""
    import transformers

    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    made = getattr(transformers, config)(**sizes, num_key_value_heads=2, head_dim=8)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    ids = torch.arange(5)[None]
    with torch.no_grad():
        before = model(ids).logits
        replace_norms(model)
        torch.testing.assert_close(model(ids).logits, before)
    assert any(isinstance(m, RMSNorm) for m in model.modules()) == replaced
    assert not any(m.training for m in model.modules())
