"""``twofold plan``: sizes, memory and FLOPs by hand or by the real thing, the fit to what was measured, and what it prints."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from twofold import cli, planning, run, toml
from twofold.config import Config
from twofold.estimate.cost import RELIEF, SPACE, Estimate, estimate
from twofold.estimate.machines import GIB, MACHINES
from twofold.estimate.measured import ROWS, errors, fit, typical
from twofold.estimate.memory import Layout, activations, logits
from twofold.estimate.seconds import RATES, learning, token_step
from twofold.estimate.shapes import KNOWN, Shape, shape_of
from twofold.estimate.work import JUDGEMENT, Lengths, laid_out, work_of
from twofold.models import lora
from twofold.models.decoder import network
from twofold.models.io import load_model
from twofold.trainer.learner import Learner, Loss
from twofold.trainer.optim import Optim
from twofold.types import Sample

ROOT = Path(__file__).parents[1]
QWEN = ROOT / "configs" / "rlv-qwen2.5-math-1.5b.toml"
SEVEN = ROOT / "configs" / "rlv-qwen2.5-math-7b.toml"
H100 = MACHINES["h100"]


def found(
    path: Path, *settings: str, devices: int = 1, machine: str = "h100", lengths: Lengths | None = None
) -> Estimate:
    config = toml.override(toml.load(Config, path), settings)
    return estimate(config, shape_of(config.model), MACHINES[machine], Layout(devices), lengths or Lengths())


def seconds(cost: Estimate) -> float:
    return cost.times["counted"].step


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("meta-llama/Llama-3.3-70B-Instruct", 70_553_706_496),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_the_weights_of_known_models_are_as_many_as_their_cards_say(name: str, parameters: int) -> None:
    assert shape_of(name).parameters == parameters


def test_the_sizes_of_a_directory_are_those_of_its_weights(tiny_qwen: Path) -> None:
    for folder in (run.shipped(), tiny_qwen):
        model, _ = load_model(folder)
        assert shape_of(str(folder)).parameters == sum(p.numel() for p in model.parameters())
    assert shape_of(str(run.shipped())) == KNOWN["tiny"] == shape_of("tiny")


def test_an_adapter_has_as_many_weights_as_a_real_one() -> None:
    model, _ = load_model(run.shipped())
    targets = Config().lora.targets
    for some in (targets, targets[:2]):
        view = lora.attach(model, lora.Lora(4, 8.0, some, "tiny"), 0)
        assert KNOWN["tiny"].adapter(4, some) == sum(p.numel() for p in view.parameters() if p.requires_grad)


def test_sizes_may_be_given_as_numbers() -> None:
    given = shape_of("hidden=1536,layers=28,heads=12,kv_heads=2,ffn=8960,vocabulary=151936,tied=true,biases=true")
    assert given == KNOWN["qwen2.5-1.5b"]


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        ("acme/Big-9B", None, "the sizes of acme/Big-9B are not known: give --model a directory"),
        ("hidden=64,layers=2", None, "--model: heads is required"),
        ("hidden=64,layers=x", None, "must be sizes such as hidden=1536"),
        ("DIR", '{"hidden_size": 64', "not valid JSON"),
        ("DIR", '{"num_experts": 8}', "a mixture of experts, whose cost is not modelled"),
        ("DIR", '{"n_embd": 64}', "config.json has no hidden_size"),
        ("DIR", "[]", "must hold an object"),
    ],
)
def test_sizes_that_are_not_known_are_an_error(model: str, config: str | None, words: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=re.escape(words)):
        shape_of(str(tmp_path) if model == "DIR" else model)


# ---------------------------------------------------------------- work


def test_the_tokens_of_a_step_by_hand() -> None:
    """64 problems x 8 rollouts of 500 tokens, prompts of 100, each with a question and a verdict."""
    work = work_of(toml.load(Config, QWEN), Lengths(prompt=100, completion=500))
    assert work.sampled == 64 * 8 * 500
    assert work.judged == 64 * 8 * JUDGEMENT
    assert work.learnt.laid == 64 * 100 + 64 * 8 * (500 + JUDGEMENT)
    assert work.learnt.read == 64 * 8 * 501
    plain = work_of(toml.override(toml.load(Config, QWEN), ["recipe.verify=none"]), Lengths(100, 500))
    assert (plain.judged, plain.learnt.laid) == (0, 64 * 100 + 64 * 8 * 500)


def test_a_stated_confidence_and_a_likelihood_cost_what_they_read() -> None:
    """RLCR writes a token behind each question, and learns as many tokens as RL^V. A likelihood draws no answer."""
    base = toml.load(Config, ROOT / "configs" / "rlv-sums.toml")
    how = {r: work_of(toml.override(base, [f"recipe.name={r}"]), Lengths(100, 30)) for r in ("rlv", "rlcr")}
    assert how["rlcr"].learnt == how["rlv"].learnt and how["rlcr"].judged == 0
    assert how["rlcr"].sampled == how["rlv"].sampled + 16 * 8
    base = toml.override(toml.load(Config, ROOT / "configs" / "mrt-sums.toml"), ["recipe.method=online"])
    drawn, read = (
        work_of(toml.override(base, [f"recipe.progress={p}"]), Lengths(100, 60, parts=2))
        for p in ("sampled", "likelihood")
    )
    probes = 16 * 4 * 2
    assert drawn.sampled - read.sampled == probes * 4 * 32 and read.prefilled == probes * 64


def test_the_last_token_score_costs_no_token_of_the_learner() -> None:
    config = toml.load(Config, QWEN)
    how = {v: work_of(toml.override(config, [f"recipe.verify={v}"]), Lengths(100, 500)) for v in ("none", "last_token")}
    assert how["last_token"].learnt.laid == how["none"].learnt.laid
    assert how["last_token"].judged == 64 * 8  # a token each


def test_tango_is_the_mean_of_its_turn_by_hand() -> None:
    """Three updates of the generator, one of the verifier: 2 problems, groups of 5, solutions of 40, verifications of 50 tokens."""
    words = ["recipe.name=tango", "rollout.problems=2", "recipe.verifier_tokens=100"]
    work = work_of(toml.override(Config(), words), Lengths(prompt=10, completion=40))
    generator = 2 * 5 * 40 + 2 * 5 * 50  # solutions, and a verification of each
    verifier = 2 * 40 + 2 * 5 * 50
    assert work.sampled == pytest.approx((3 * generator + verifier) / 4)
    assert work.learnt.read == pytest.approx((3 * 2 * 5 * 40 + 2 * 5 * 50) / 4)
    asked = 200  # tokens of the question to the verifier
    assert work.judged == pytest.approx((3 * (10 * 50 + 10 * asked) + 10 * 50 + 2 * asked) / 4)


def test_the_products_of_an_update_are_counted_as_they_are_computed() -> None:
    """FLOPs of matrix products of the real learner's passes on the shipped model; attention's are apart."""
    model, _ = load_model(run.shipped())
    shape, prompt, own, n = KNOWN["tiny"], 16, 32, 4
    samples = [
        Sample(
            [*range(10, 10 + prompt), *[20 + i] * own], [False] * prompt + [True] * own, [-1.0] * (prompt + own),
            [1.0] * (prompt + own), [0.0] * (prompt + own),
        )
        for i in range(n)
    ]  # fmt: skip
    learner = Learner(model, Optim(), Loss(), steps=1)
    with FlopCounterMode(display=False) as counter:
        learner.accumulate(samples)
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    learnt = laid_out(1, prompt, n, own, own, 1, 1)
    assert learnt.laid == 144 and learnt.read == 128  # multiples of 16: nothing is padded
    assert products == replace(learnt, seen=0).flops(shape)
    assert network(model, torch.float32).vocabulary == shape.vocabulary


@pytest.mark.parametrize("name", ["base", "mrt_b", "python"])
def test_a_recipe_that_is_not_modelled_is_refused(name: str) -> None:
    more = ["recipe.source=mine.py:Recipe"] if name == "python" else []
    with pytest.raises(ValueError, match=f"cannot estimate recipe '{name}', only rlv, rlcr, tango, mrt, sft"):
        work_of(toml.override(Config(), [f"recipe.name={name}", *more]), Lengths())


# ---------------------------------------------------------------- memory


def test_the_memory_of_a_1_5b_run_by_hand() -> None:
    cost = found(QWEN)
    weights = 1_543_714_304
    matrices = weights - 57 * 1536 - 28 * 2048  # all but norms and biases; the tied embeddings are the head
    assert cost.memory.learning == pytest.approx(
        {
            "weights": 4 * weights,
            "moments": 8 * weights,
            "gradients": 4 * weights,
            "copy for products": 2 * matrices,
            # a layer's input in float32 for each of 28 layers, and one layer: twice the residual in float32; in bfloat16 two norms
            # and the input of the last product (3 x 1536), queries, keys and values twice (2 x 2048), attention's result, three
            # rows of the MLP
            "activations": 16384 * (28 * 4 * 1536 + 8 * 1536 + 2 * (3 * 1536 + 2 * 2048 + 1536 + 3 * 8960)),
            "logits": 2**27 * 14,
            "libraries": GIB,
        }
    )
    # 512 rows of up to 1,024 tokens, and 64 prompts of 128; keys and values of 28 layers, 2 heads of 128, in bfloat16
    assert cost.memory.sampling["keys and values"] == (512 * 1024 + 64 * 128) * 28 * 2 * 2 * 128 * 2
    assert cost.memory.sampling["logits"] == 512 * 151_936 * 6
    assert cost.fits


def test_the_memory_of_an_update_is_what_an_h100_took() -> None:
    """27.9 and 12.1 GiB with checkpointing, Qwen2.5-0.5B, micro-batches of 16,384 tokens; that code kept no logits."""
    shape = KNOWN["qwen2.5-0.5b"]
    for checkpointing, measured in ((False, 27.9), (True, 12.1)):
        items = [16 * shape.parameters, 2 * shape.matrices, activations(shape, 16384, "bfloat16", checkpointing)]
        items.append(logits(shape, 16384, "bfloat16", H100, checkpointing=True))
        assert sum(items) / GIB == pytest.approx(measured, rel=0.02)


def test_what_does_not_fit_says_so_and_an_adapter_or_parts_fit() -> None:
    whole, adapter = found(SEVEN, "lora.rank=0", devices=8), found(SEVEN, devices=8)
    assert not whole.fits and whole.fullest == "moments" and "train.shard = true" in SPACE["moments"]
    assert adapter.fits and adapter.memory.learning["moments"] < whole.memory.learning["moments"] / 40
    assert found(SEVEN, "lora.rank=0", "train.shard=true", devices=8).fits


def test_the_memory_and_exchange_of_sharded_devices_by_hand() -> None:
    """Each of 8 holds an eighth; all of them gather embeddings, output and one layer to learn, and everything to sample."""
    cost, shape = found(SEVEN, "lora.rank=0", "train.shard=true", devices=8), KNOWN["qwen2.5-7b"]
    items, head, layers = cost.memory.learning, 3584 * 152_064, shape.matrices - 3584 * 152_064
    for item, each in (("weights", 4), ("moments", 8), ("gradients", 4)):
        assert items[item] == each * shape.parameters / 8
    assert items["copy for products"] == pytest.approx(2 * 6 * head + 2 * 2 * layers / 28)
    assert cost.memory.sampling["copy for products"] == 6 * head + 2 * layers
    plain = found(SEVEN, "lora.rank=0", "train.shard=true", "train.checkpointing=false", devices=8).memory.learning
    assert plain["copy for products"] == pytest.approx(2 * 6 * head + 2 * layers + 2 * layers / 28)
    batches = math.ceil(cost.work.learnt.laid / 8 / 16384)
    moved = batches * (2 * 2 * layers + 4 * shape.parameters) + 6 * head + 6 * head + 2 * layers
    assert cost.times["counted"].of("exchange") == pytest.approx(moved / 0.45e12)
    assert found(SEVEN, "train.shard=true").memory == found(SEVEN).memory  # one device has nothing to share


def test_a_base_in_four_bits_takes_half_a_byte_a_weight() -> None:
    """An 8-bit scale for 64 weights, a float32 one for 256 of these: 0.516 bytes for each weight in the layers' matrices."""
    shape, plain, four = KNOWN["qwen2.5-7b"], found(SEVEN), found(SEVEN, "lora.quantise=nf4")
    saved = plain.memory.learning["weights"] - four.memory.learning["weights"]
    assert saved == pytest.approx((4 - 0.5 - 1 / 64 - 1 / 4096) * shape.layer_matrices)
    with pytest.raises(ValueError, match="keeps the base of an adapter in four bits"):
        found(SEVEN, "lora.rank=0", "lora.quantise=nf4")


def test_a_float32_learner_with_an_adapter_lays_out_the_matrices_of_all_layers() -> None:
    """Without one it has only queries, keys and values twice: they are joined. In bfloat16 it has a copy of all in any case."""
    shape, whole = KNOWN["tiny"], ["train.precision=float32", "lora.rank=0"]
    copies = [
        found(ROOT / "configs" / "rlv-sums.toml", *options, machine="cpu").memory.learning["copy for products"]
        for options in (whole, [*whole, "lora.rank=4"], [*whole, "lora.rank=4", "lora.quantise=nf4"])
    ]
    every = 8 * (128 * (4 * 128 + 3 * 256)) * 4
    assert every == 4 * shape.layer_matrices and copies == [8 * 128 * 3 * 128 * 4, every, every]


def test_the_plan_says_that_it_leaves_out_sampling_ahead() -> None:
    said = [" ".join(found(QWEN, "engine.name=vllm", f"train.ahead={n}").notes) for n in (0, 1)]
    assert ["train.ahead" in notes for notes in said] == [False, True]


def test_two_trained_models_take_twice_the_weights() -> None:
    one, two = (found(QWEN, f"recipe.verify={verify}").memory.learning for verify in ("generative", "separate"))
    assert [two[x] / one[x] for x in ("weights", "moments")] == [2, 2]


def test_vllm_sleeps_while_the_learner_works() -> None:
    vllm = ["engine.name=vllm", "engine.kv_gib=10"]
    asleep, awake = found(QWEN, *vllm).memory, found(QWEN, *vllm, "engine.sleep=false").memory
    assert asleep.sampling["keys and values"] == awake.learning["keys and values"] == 10 * GIB
    assert "keys and values" not in asleep.learning
    assert asleep.sampling["vLLM's weights"] == 2 * 1_543_714_304


# ---------------------------------------------------------------- seconds


def test_what_a_user_changes_moves_the_cost_in_the_right_direction() -> None:
    base = found(QWEN)
    assert seconds(found(QWEN, "rollout.problems=128")) > seconds(base) * 1.5
    assert seconds(found(QWEN, lengths=Lengths(completion=256))) < seconds(base)
    assert seconds(found(QWEN, devices=4)) < seconds(base) / 2  # more than a quarter: token steps stay as many
    assert seconds(found(QWEN, "train.checkpointing=false")) < seconds(base)
    assert found(QWEN, "train.checkpointing=false").memory.peak > base.memory.peak
    assert found(QWEN, "train.micro_tokens=4096").memory.peak <= base.memory.peak
    assert found(QWEN, "recipe.verify=none").times["counted"].of("learning") < base.times["counted"].of("learning")
    assert seconds(found(QWEN, machine="a100")) > seconds(base) > seconds(found(QWEN, machine="h200"))
    assert base.money["counted"] == pytest.approx(300 * seconds(base) / 3600 * 3.0)
    assert found(QWEN, "train.steps=600").hours["counted"] == pytest.approx(2 * base.hours["counted"])
    assert found(QWEN, "loss.beta=0.1").memory.peak > base.memory.peak


def test_a_small_prefix_cache_of_vllm_slows_sampling_and_is_named() -> None:
    wide, narrow = (found(QWEN, "engine.name=vllm", "engine.max_rows=512", f"engine.kv_gib={x}") for x in (16, 2))
    assert narrow.times["counted"].of("sampling") > wide.times["counted"].of("sampling")
    held = 2 * GIB // (28 * 2 * 2 * 128 * 2) / (128 + 512)
    assert any(note.startswith(f"vLLM's cache holds {held:.0f} texts") for note in narrow.notes)
    assert not any("cache holds" in note for note in wide.notes)


def test_few_rows_wait_for_the_weights_and_many_for_products() -> None:
    rates, shape = RATES["gpu", "counted"], KNOWN["qwen2.5-7b"]
    few, many = (token_step(shape, H100, "bfloat16", rates, rows, rows * 500) for rows in (8, 2048))
    assert few["weights"] == pytest.approx(2 * shape.matrices / 3.35e12 / 0.6)
    assert "products" in many and many["products"] > few["weights"]


def test_every_bottleneck_has_a_remedy() -> None:
    paths = [p for p in sorted((ROOT / "configs").glob("*.toml")) if p.stem.startswith(("rlv", "tango-", "mrt"))]
    for path in paths:
        config = toml.load(Config, path)
        cut = toml.override(config, ["train.shard=true", "engine.name=native"])
        for chosen, layout in ((config, Layout()), (config, Layout(16)), (cut, Layout(16)), (cut, Layout(16, 8))):
            cost = estimate(chosen, KNOWN["qwen2.5-1.5b"], H100, layout, Lengths(completion=40))
            assert all(times.longest in RELIEF for times in cost.times.values()) and cost.fullest in SPACE
            for times in cost.times.values():
                assert {f"{p}: {c}" if c != "all" else p for p, cs in times.phases.items() for c in cs} <= set(RELIEF)
            assert set(cost.memory.learning) | set(cost.memory.sampling) <= set(SPACE) | {"libraries"}


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize("group", RATES)
def test_the_rates_are_those_that_fit_the_measured_rows(group: tuple[str, str]) -> None:
    rates = RATES[group]
    away = replace(rates, gap=2 * rates.gap) if group[1] == "counted" else replace(rates, narrow=2 * rates.narrow)
    rates = fit([row for row in ROWS if row.group == group], away)
    assert [rates.narrow, rates.gap, rates.passes] == pytest.approx(
        [RATES[group].narrow, RATES[group].gap, RATES[group].passes], rel=0.01
    )


def test_the_stated_errors_are_those_of_the_rows() -> None:
    groups = {group: errors(group) for group in dict.fromkeys(row.group for row in ROWS)}
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    rows = [
        f"| {e.row.title} | {e.row.seconds:.3g} | {e.fitted:.3g} | {e.fitted / e.row.seconds - 1:+.0%} | "
        f"{e.left_out / e.row.seconds - 1:+.0%} |"
        for each in groups.values()
        for e in each
    ]
    assert [row for row in rows if row not in page] == []
    stated = [f"{typical(each):.2f} ({where}, {len(each)}" for each, where in zip(
        groups.values(), ("CPU in bfloat16", "CPU in float32", "GPU, older code", "GPU, present code"), strict=True
    )]  # fmt: skip
    assert [words for words in stated if words not in " ".join(page.split())] == []
    assert "factor of 1.3" in planning.BASES["fitted"] and round(typical(groups["cpu", "bfloat16"]), 1) == 1.3
    assert "6 measurements" in planning.BASES["measured"] and round(typical(groups["gpu", "measured"]), 1) == 1.3
    assert "two draws" in planning.BASES["counted"] and len(groups["gpu", "counted"]) == 2


def test_the_counted_rates_say_what_was_counted() -> None:
    """The lab book's predictions for an H100: milliseconds of a token step of 512 rows, and the products' share of an update.

    The predicted step has the gap that was counted; the one that was measured is in the rates.
    """
    rates = replace(RATES["gpu", "counted"], gap=15e-6)
    for name, low, high, least, most in (("0.5b", 2.0, 2.7, 0.49, 0.54), ("1.5b", 4.4, 5.8, 0.58, 0.63)):
        shape = KNOWN[f"qwen2.5-{name}"]
        step = token_step(shape, H100, "bfloat16", rates, 512, 512 * 128 + 32 * 64)
        assert low <= 1e3 * sum(step.values()) <= high
        parts = learning(shape, H100, "bfloat16", rates, laid_out(16, 64, 16, 1024, 1024, 1, 1))
        assert least - 0.03 <= parts["products"] / sum(parts.values()) <= most + 0.03


# ---------------------------------------------------------------- the command


def said(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["plan", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [str(QWEN)],
        [
            str(QWEN),
            "--machine",
            "a100",
            "--devices",
            "8",
            "recipe.estimator=vineppo",
            "train.steps=1000000",
            "--price",
            "1e6",
        ],
        [str(ROOT / "configs/rlv-sums.toml"), "--machine", "cpu"],
        [str(ROOT / "configs/tango-sums.toml"), "--machine", "h200"],
        [str(ROOT / "configs/mrt-sums.toml"), "recipe.method=online"],
        [str(ROOT / "configs/rlv-sums.toml"), "recipe.name=sft"],
        [str(SEVEN), "--model", "llama-3.3-70b", "--devices", "256", "train.shard=true", "--tensor-parallel", "8"],
    ],
)
def test_the_tables_fit_80_columns_and_their_sums_are_right(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(*words, capsys=capsys).splitlines()
    assert max(map(len, lines)) <= 80 and all(line == line.rstrip() for line in lines)
    both = json.loads(said(*words, "--json", capsys=capsys))
    for basis, phases in both["seconds"].items():
        total = sum(sum(causes.values()) for causes in phases.values())
        assert both["step"][basis] == pytest.approx(total) and total > 0
    (step,) = [line.split()[1:] for line in lines if re.match(r"  step +\d", line)]
    assert [float(x) for x in step] == [float(f"{x:.3g}") for x in both["step"].values()]
    assert both["memory"]["peak"] == max(sum(both["memory"][phase].values()) for phase in ("sampling", "learning"))


def test_a_machines_numbers_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    usual = json.loads(said(str(QWEN), "--json", capsys=capsys))
    own = json.loads(said(str(QWEN), "--tflops", "1580", "--price", "6", "--memory", "20", "--json", capsys=capsys))
    assert own["seconds"]["counted"]["learning"]["products"] == usual["seconds"]["counted"]["learning"]["products"] / 2
    assert own["money"]["counted"] / own["hours"]["counted"] == pytest.approx(6)
    assert usual["memory"]["fits"] and not own["memory"]["fits"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--devices", "0"], "--devices: must be at least 1, got 0"),
        (["--devices", "6", "--tensor-parallel", "4"], "--tensor-parallel 4 must divide --devices 6"),
        (["--completion", "2000"], "--completion: 2000 is more than rollout.max_tokens, 1024"),
        (["--price", "0"], "--price: must be more than 0"),
        (["--machine", "tpu"], "invalid choice: 'tpu'"),
        (["engine.name=fleet"], "twofold plan cannot estimate engine 'fleet'"),
        (["rollout.problem=3"], "unknown option --rollout.problem; did you mean --rollout.problems?"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(QWEN), *words]) == 2
    assert error in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_planning_loads_no_torch() -> None:
    code = "import sys; from twofold.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "plan", str(QWEN)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_tables_of_the_page_are_what_the_commands_print(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    shown = re.findall(r"```sh\n(twofold plan [^`]*)\n```\n\n```text\n(.*?)\n```", page, re.DOTALL)
    assert len(shown) == 3
    for command, text in shown:
        words = shlex.split(command.replace("\\\n", " "))[2:]
        assert said(str(ROOT / words[0]), *words[1:], capsys=capsys).rstrip() == text


@pytest.mark.parametrize(
    ("words", "basis", "step", "peak"),
    [
        (["rlv-vllm-qwen2.5-math-1.5b", "train.checkpointing=false"], "counted", 11, 68),
        (["rlv-qwen2.5-math-7b", "--devices", "8", "lora.rank=0"], "counted", 16, 138),
        (["rlv-qwen2.5-math-7b", "--devices", "8", "rollout.problems=512"], "counted", 40, 73),
    ],
)
def test_the_numbers_in_the_pages_prose(
    words: list[str], basis: str, step: float, peak: float, capsys: pytest.CaptureFixture[str]
) -> None:
    both: dict[str, Any] = json.loads(
        said(str(ROOT / "configs" / f"{words[0]}.toml"), *words[1:], "--json", capsys=capsys)
    )
    assert (round(both["step"][basis]), math.floor(both["memory"]["peak"] / GIB)) == (step, peak)


@pytest.mark.parametrize("name", ["rlv-vllm-qwen2.5-math-1.5b", "rlv-qwen2.5-math-7b"])
def test_the_configs_of_large_runs_print_themselves_and_fit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "configs" / f"{name}.toml"
    assert cli.main(["train", str(path), "--dry-run"]) == 0
    capsys.readouterr()
    assert found(path, devices=8 if "7b" in name else 1).fits


def test_a_shape_must_have_positive_sizes() -> None:
    with pytest.raises(ValueError, match="layers must be at least 1"):
        Shape(64, 0, 4, 4, 128, 100)
