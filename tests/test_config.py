"""Configs: reading back gives what was written, and every error names the mistake, its place and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import twofold as tf
from twofold import cli
from twofold.evals.critic import Critic
from twofold.ranges import Count, Positive, Range, Share, checked, ranges_in
from twofold.toml import ConfigError, from_dict, load, options, override, to_toml

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class RLV:
    name: Literal["rlv"] = "rlv"
    credit: Literal["grpo", "rloo"] = "rloo"
    weight: float = 1.0


@dataclass(frozen=True)
class Tango:
    name: Literal["tango"] = "tango"
    weight: float = 0.5
    verifier: str = "self"


@checked
class Train:
    lr: Positive = 1e-6
    steps: Count = 100
    bf16: bool = False
    levels: tuple[Count, ...] = (3, 4)
    stop_at: Share | None = None

    def __post_init__(self) -> None:
        if self.stop_at and self.bf16:
            raise ValueError("stop_at does not go with bf16")


@dataclass(frozen=True)
class Config:
    model: str
    out: str | None = None
    recipe: RLV | Tango = RLV()
    train: Train = field(default_factory=lambda: Train(lr=3e-4))
    warmup: Train | None = None


BASE = Config(model="m")
ALIASES = {"learning_rate": "train.lr", "rollout.n": "train.levels"}


def complaint(call) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def test_load_fills_in_defaults_of_the_place_not_of_the_class(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('model = "qwen"\n[train]\nsteps = 5\nstop_at = 1\n[recipe]\nname = "tango"\nweight = 2\n')
    # lr comes from Config's Train(lr=3e-4); weight and stop_at were whole numbers and are floats now
    assert load(Config, path) == Config(
        "qwen", recipe=Tango(weight=2.0), train=Train(lr=3e-4, steps=5, stop_at=1.0), warmup=None
    )
    assert type(load(Config, path).train.stop_at) is float


@pytest.mark.parametrize("words", [["train.lr=1e-5"], ["--train.lr", "1e-5"], ["--train.lr=1e-5"]])
def test_three_spellings_of_an_override(words: list[str]) -> None:
    assert override(BASE, words) == replace(BASE, train=Train(lr=1e-5))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.steps=7", "train.steps=8"], replace(BASE, train=Train(lr=3e-4, steps=8))),
        (["train.levels=[5]"], replace(BASE, train=Train(lr=3e-4, levels=(5,)))),
        (["train.bf16=true"], replace(BASE, train=Train(lr=3e-4, bf16=True))),
        (["--train.bf16", "True"], replace(BASE, train=Train(lr=3e-4, bf16=True))),
        (["--train.stop-at", "1"], replace(BASE, train=Train(lr=3e-4, stop_at=1.0))),
        (["model=1e-6"], replace(BASE, model="1e-6")),  # text stays text, whatever it looks like
        (["model=true"], replace(BASE, model="true")),
        (["model='quoted'"], replace(BASE, model="quoted")),
        (["model=a=b"], replace(BASE, model="a=b")),
        (["recipe.credit=grpo"], replace(BASE, recipe=RLV(credit="grpo"))),
        (["recipe.verifier=v", "recipe.name=tango"], replace(BASE, recipe=Tango(verifier="v"))),  # in any order
        (["warmup.steps=2"], replace(BASE, warmup=Train(steps=2))),
        ([], BASE),
    ],
)
def test_override_values(words: list[str], expected: Config) -> None:
    assert override(BASE, words) == expected


def test_a_table_with_a_name_may_be_given_by_its_name(tmp_path: Path) -> None:
    assert override(BASE, ["recipe=tango"]).recipe == override(BASE, ["--recipe", "tango"]).recipe == Tango()
    kept = replace(BASE, recipe=RLV(weight=7.0))
    assert override(kept, ["recipe=rlv"]) == kept  # the one that is there keeps its options
    assert from_dict(Config, {"model": "m", "recipe": "tango"}).recipe == Tango()


def test_override_keeps_what_it_does_not_name() -> None:
    config = Config("m", "runs/a", Tango(weight=9.0), Train(steps=3, stop_at=0.5), Train(steps=1))
    assert override(config, ["recipe.verifier=v"]) == replace(config, recipe=Tango(weight=9.0, verifier="v"))
    assert override(config, ["recipe.name=rlv"]).recipe == RLV()  # another recipe starts from its own defaults
    assert override(config, ["out=none", "train.stop_at=None", "warmup=none"]) == replace(
        config, out=None, warmup=None, train=Train(steps=3)
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"train": {"learning_rate": 1}}, "unknown option train.learning_rate; twofold calls it train.lr"),
        ({"rollout": {"n": 8}}, "unknown option rollout.n; twofold calls it train.levels"),
        ({"train": {"step": 1}}, "unknown option train.step; did you mean train.steps?"),
        ({"steps": 1}, "unknown option steps; did you mean train.steps or warmup.steps?"),
        ({"trainer": {"lr": 1}}, "unknown option trainer.lr; did you mean train.lr or warmup.lr?"),
        ({"recipe": {"verifier": "v"}}, "unknown option recipe.verifier; it is an option of another recipe.name"),
        ({"zzz": 1}, "unknown option zzz; the options are model, out, "),
        ({"train": {"lr": "fast"}}, "train.lr must be a number, got 'fast' (str)"),
        ({"train": {"steps": 1.5}}, "train.steps must be a whole number, got 1.5 (float)"),
        ({"train": {"steps": True}}, "train.steps must be a whole number, got True (bool)"),
        ({"train": {"lr": True}}, "train.lr must be a number, got True (bool)"),
        ({"train": {"bf16": 1}}, "train.bf16 must be true or false, got 1 (int)"),
        ({"train": {"levels": [1, "x"]}}, "train.levels[1] must be a whole number, got 'x' (str)"),
        ({"train": {"levels": 3}}, "train.levels must be a list such as [1, 2], got 3 (int)"),
        ({"train": 3}, "train must be a table (set its options, such as train.lr), got 3 (int)"),
        ({"train": {"steps": 0}}, "train.steps must be at least 1, got 0"),
        ({"train": {"lr": float("inf")}}, "train.lr must be more than 0, got inf"),
        ({"train": {"stop_at": 0.5, "bf16": True}}, "train.stop_at does not go with bf16"),
        ({"model": 3}, "model must be text, got 3 (int)"),
        ({"recipe": {"credit": "ppo"}}, "recipe.credit must be one of 'grpo', 'rloo', got 'ppo' (str)"),
        ({"recipe": {"name": "mrt"}}, "recipe.name must be one of 'rlv', 'tango', got 'mrt' (str)"),
        ({"recipe": "mrt"}, "recipe.name must be one of 'rlv', 'tango', got 'mrt' (str)"),
        ({"recipe": 3}, "recipe must be a table (set its options, such as recipe.name), got 3 (int)"),
    ],
)
def test_a_mistake_in_a_file_is_named(values: dict, expected: str) -> None:
    message = complaint(lambda: from_dict(Config, {"model": "m"} | values, "run.toml", ALIASES))
    assert message.startswith(f"run.toml: {expected}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["learning_rate=1"], "unknown option --learning_rate; twofold calls it --train.lr"),
        (["train.lr=fast"], "--train.lr must be a number, got 'fast' (str)"),
        (["train.levels=3"], "--train.levels must be a list such as [1, 2], got 3 (int)"),
        (["recipe=mrt"], "--recipe.name must be one of 'rlv', 'tango', got 'mrt' (str)"),
        (["recipe=3"], "--recipe.name must be one of 'rlv', 'tango', got 3 (int)"),
        (["train=1", "train.lr=1"], "train is given both as a value and as a table, by train.lr"),
        (["--train.bf16", "--train.lr=1"], "--train.bf16 needs a value"),
        (["--train.bf16"], "--train.bf16 needs a value"),
        (["train.lr", "1"], "'train.lr' is not an option; write name=value"),
        (["--train.stop-at=-1"], "--train.stop_at must be from 0 to 1, got -1"),
        (["train.levels=[1, 0]"], "--train.levels[1] must be at least 1, got 0"),
        (["train.lr=nan"], "--train.lr must be more than 0, got nan"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(words: list[str], expected: str) -> None:
    assert complaint(lambda: override(BASE, words, ALIASES)).startswith(f"command line: {expected}")


def test_missing_files_bad_toml_and_missing_options(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    assert complaint(lambda: load(Config, path)) == f"{path}: cannot read this config: No such file or directory"
    path.write_text("model = qwen\n")
    assert re.search(r"run.toml: not a valid TOML file: .*line 1", complaint(lambda: load(Config, path)))
    path.write_text("")
    assert complaint(lambda: load(Config, path)) == f"{path}: model is required"


def test_options_are_flat_and_ordered() -> None:
    train = ["lr", "steps", "bf16", "levels", "stop_at"]
    recipe = ["name", "credit", "weight", "verifier"]
    assert options(Config) == [
        *("model", "out"),
        *(f"recipe.{name}" for name in recipe),
        *(f"train.{name}" for name in train),
        *(f"warmup.{name}" for name in train),
    ]


def test_an_optional_field_with_another_default_is_refused() -> None:
    @dataclass(frozen=True)
    class Bad:
        limit: int | None = 3

    with pytest.raises(TypeError, match=r"Bad\.limit is optional, so its default must be None"):
        from_dict(Bad, {})


def test_to_toml_writes_every_field() -> None:
    assert to_toml(Config("m", train=Train(levels=()))).splitlines() == [
        'model = "m"',
        "",
        "[recipe]",
        'name = "rlv"',
        'credit = "rloo"',
        "weight = 1.0",
        "",
        "[train]",
        "lr = 1e-06",
        "steps = 100",
        "bf16 = false",
        "levels = []",
    ]


floats = st.floats(allow_nan=False)
trains = st.builds(
    Train,
    lr=st.floats(0, exclude_min=True, allow_infinity=False),
    steps=st.integers(1),
    bf16=st.just(False),
    levels=st.lists(st.integers(1)).map(tuple),
    stop_at=st.none() | st.floats(0, 1),
)
recipes = st.builds(RLV, credit=st.sampled_from(["grpo", "rloo"]), weight=floats) | st.builds(
    Tango, weight=floats, verifier=st.text()
)
configs = st.builds(
    Config, model=st.text(), out=st.none() | st.text(), recipe=recipes, train=trains, warmup=st.none() | trains
)


@given(configs)
def test_a_written_config_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert load(Config, path) == config


# ---------------------------------------------------------------- the ranges of all options


def numbers(cls: type, found: set[type] | None = None) -> Iterator[tuple[type, str, object]]:
    """Yield (class, field, type) of every number that a config class holds, in the classes that it holds too."""
    found = set() if found is None else found
    found.add(cls)
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for part in parts(hint):
            if is_dataclass(part) and part not in found:
                yield from numbers(part, found)
            elif part in (int, float):
                yield cls, name, hint


def parts(hint: object) -> Iterator[object]:
    """Yield the types that a type is made of, such as int for ``tuple[int, ...] | None``."""
    inner = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
    yield from (part for arg in inner for part in parts(arg))
    if not inner:
        yield hint


NUMBERS = list(dict.fromkeys(n for root in (tf.Config, tf.Eval, tf.Plan, Critic) for n in numbers(root)))


@pytest.mark.parametrize(("cls", "name", "hint"), NUMBERS, ids=lambda x: getattr(x, "__name__", str(x))[:20])
def test_every_number_has_a_range_and_is_refused_outside_it(cls: type, name: str, hint: object) -> None:
    (allowed,) = ranges_in(hint)
    outside = [float("nan"), *(bound - 1 for bound in (allowed.ge, allowed.gt) if bound is not None)]
    outside += [bound + 1 for bound in (allowed.le, allowed.lt) if bound is not None]
    for number in outside:
        with pytest.raises(ValueError, match=f"^{name} must be {re.escape(str(allowed))}, got "):
            cls(**{name: (number,) if get_origin(hint) is tuple else number})


def test_a_range() -> None:
    inf = float("inf")
    assert [x in Range(gt=0, le=1) for x in (-1, 0, 1e-9, 1, 1.1, inf)] == [False, False, True, True, False, False]
    assert [x in Range(gt=0, lt=None) for x in (0, inf)] == [False, True]
    assert [x in Range() for x in (-inf, -1e300, inf)] == [False, True, False]
    said = [Range(), Range(ge=0, le=1), Range(gt=0, le=1), Range(ge=0, lt=16), Range(ge=1), Range(gt=0, lt=None)]
    assert [str(x) for x in said] == [
        "a finite number", "from 0 to 1", "more than 0 and at most 1", "at least 0 and less than 16", "at least 1",
        "more than 0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("recipe.rollouts=1", "--recipe.rollouts must be at least 2 for rloo"),
        ("recipe.lam=-1", "--recipe.lam must be at least 0, got -1"),
        ("rollout.temperature=0", "--rollout.temperature must be at least 0.001, got 0"),
        ("loss.clip_low=1.5", "--loss.clip_low must be from 0 to 1, got 1.5"),
        ("loss.constant=0", "--loss.constant must be at least 1, got 0"),
        ("train.steps=0", "--train.steps must be at least 1, got 0"),
        ("train.steps=-5", "--train.steps must be at least 1, got -5"),
        ("task.choices=40", "--task.choices must be at most a quarter of top, 24; got 40"),
    ],
)
def test_a_dry_run_refuses_numbers_that_make_no_sense(option: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["train", str(ROOT / "configs" / "rlv-sums.toml"), option, "--dry-run"]) == 2
    assert f"command line: {said}" in capsys.readouterr().err
