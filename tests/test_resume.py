"""What a resume must hold: every sample is trained on exactly once, and saving costs little.

``make torture`` flips ten thousand bits of a checkpoint, besides.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twofold import durable, toml, training
from twofold.config import Config, Data, LogOptions, Rollouts, Train
from twofold.models.checkpoints import MANIFEST, STATE, Damaged, newest_good, seal, steps, verify
from twofold.recipes.rlv import RLV
from twofold.tasks.procedural import Sums
from twofold.trainer import checkpoint
from twofold.trainer.log import Log
from twofold.trainer.optim import Optim

DIED = 9


def config(model: Path, rows: Path | None = None, **train: Any) -> Config:
    return Config(
        model=str(model), recipe=RLV(rollouts=2, verify="none"), optim=Optim(lr=1e-3), log=LogOptions(rollouts=9),
        task=Data(source=str(rows)) if rows else Sums(level=1), rollout=Rollouts(problems=2, max_tokens=6),
        train=Train(**train),
    )  # fmt: skip


def dies_at(at: int, act: Callable[[], object]) -> bool:
    """Do ``act`` in a child process that dies at its ``at``-th call of these: before and after a step's line, before and after a
    save. Return whether it died; it else came to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DIED
    left, status = [at], 1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            point()
            found = function(*args, **options)
            point()
            return found

        return call

    def point() -> None:
        left[0] -= 1
        if left[0] < 0:
            os._exit(DIED)

    try:
        Log.step, checkpoint.save = counted(Log.step), counted(checkpoint.save)  # type: ignore[method-assign]
        act()
        status = 0
    finally:
        os._exit(status)


def trained(run: Path) -> list[tuple[int, str, str]]:
    """Return (step, problem, text) of every rollout that was trained on, in order."""
    return [
        (line["step"], line["id"], sample["text"])
        for line in durable.read_lines(run / "rollouts.jsonl")
        for sample in line["rollouts"]
    ]


@pytest.mark.parametrize("save_every", [1, 3])
def test_every_sample_is_trained_on_exactly_once_wherever_a_run_dies(
    save_every: int, tiny_model: Path, tmp_path: Path
) -> None:
    """Three epochs of five rows, two a step, so that epochs end within a step and between two. The run dies at every boundary of a
    step, is resumed, and dies a little later again."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}+{i}?", "answer": str(2 * i)}) + "\n" for i in range(5)))
    how = config(tiny_model, rows, steps=8, save_every=save_every)
    straight = tmp_path / "straight"
    training.train(how, straight)
    expected = trained(straight)
    assert len(expected) == 8 * 2 * 2
    places = Counter(problem for _, problem, _ in expected)
    assert set(places.values()) == {6, 8}  # sixteen places: three whole epochs, and one more row
    out, deaths = tmp_path / "killed", 0
    while dies_at(deaths % 12, lambda: training.train(how, out, resume=(out / "config.toml").exists())):
        deaths += 1
        assert deaths < 60
    assert deaths >= 5 and trained(out) == expected
    assert [line["step"] for line in durable.read_lines(out / "metrics.jsonl")] == list(range(8))


def test_a_checkpoint_of_an_unknown_form_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    """It is whole, but its state is not what this version writes, as that of another version would be."""
    out = tmp_path / "run"
    training.train(config(tiny_model, steps=1), out)
    (folder,) = steps(out)
    for key in ("inputs", "learner_step", "skipped", "recipe"):
        whole = (folder / STATE).read_text()
        state = json.loads(whole)
        del state[key]
        (folder / STATE).write_text(json.dumps(state))
        (folder / MANIFEST).unlink()
        seal(folder, 1)
        with pytest.raises(ValueError, match=rf"trainer_state\.json has no {key}: another version wrote"):
            training.train(config(tiny_model, steps=2), out, resume=True)
        (folder / STATE).write_text(whole)


def test_saving_at_the_default_interval_takes_less_than_three_hundredths_of_the_time(tmp_path: Path) -> None:
    """Counted in this process's own seconds, which no other process can stretch, with an eighth of the demo's rollouts a step."""
    spent, whole = [0.0], [0.0]
    save, steps_of = checkpoint.save, training.run_steps

    def timed(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        found = save(*args, **options)
        spent[0] += time.process_time() - began
        return found

    def around(*args: Any, **options: Any) -> int:
        began = time.process_time()
        reached = steps_of(*args, **options)
        whole[0] += time.process_time() - began
        return reached

    how = Config(recipe=RLV(rollouts=2), rollout=Rollouts(problems=8, max_tokens=40), train=Train(steps=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", timed)
        patch.setattr(training, "run_steps", around)
        training.train(how, tmp_path / "run")
    step = whole[0] - spent[0]
    assert 0 < spent[0] <= 0.03 * Train().save_every * step, f"a save takes {spent[0]:.3f} s, a step {step:.3f} s"


# ---------------------------------------------------------------- in full


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_ten_thousand_flipped_bits_are_all_found(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    two = Config(
        model=str(tiny_model), recipe=RLV(rollouts=2, verify="separate"), task=Sums(level=1), train=Train(steps=2, save_every=1),
        rollout=Rollouts(problems=2, max_tokens=6),
    )  # fmt: skip
    training.train(two, out)
    before, last = steps(out)
    files = sorted(p for p in last.rglob("*") if p.is_file())
    rng = random.Random(0)
    for n in range(10_000):
        path = files[n % len(files)]
        whole = path.read_bytes()
        damaged, bit = bytearray(whole), rng.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match="step-2"):
            verify(last, resume=True)
        if n % 100 == 0:
            assert newest_good(out)[0] == before
        path.write_bytes(whole)
    verify(last, resume=True)


def test_a_death_between_a_save_and_its_clean_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train.steps=3", "train.save_every=1", "rollout.problems=1", "recipe.rollouts=2", "rollout.max_tokens=8"]
    config, out = toml.override(Config(), words), tmp_path / "run"
    thin_out = checkpoint.thin_out

    def dies(run: Path, keep: int) -> None:
        if (run / "checkpoints" / "step-3").exists():
            raise SystemExit("killed")
        thin_out(run, keep)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(checkpoint, "thin_out", dies)
        training.train(config, out)
    moments = [out / "checkpoints" / f"step-{i}" / checkpoint.OPTIMIZER for i in (1, 2, 3)]
    assert all(path.exists() for path in moments)
    training.train(config, out, resume=True)
    assert [path.exists() for path in moments] == [False, True, True]
