"""What a process asks of the machine: threads that sleep on a busy one, the faster precision, and few modules at the start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_train import small

from twofold import run, toml, training
from twofold.config import Config, Train
from twofold.models.precision import choose_precision, product_seconds
from twofold.runtime import CALM, Load, thread_times

ROOT = Path(__file__).parents[1]


def said(code: str, **environment: str) -> str:
    """Return what a new process prints (stderr too) that has the variables given and no other word on threads."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    env |= {"PYTHONPATH": str(ROOT / "src")} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# ---------------------------------------------------------------- threads


def test_load_is_seen_at_once_and_forgotten_after_a_while():
    """Two threads of a quiet machine, then beside one process: the thread on its core runs for half of the time."""
    load = Load()
    assert not load.look(ran=0.5, waited=0.0, turns=10)
    assert not load.look(ran=0.99, waited=0.01, turns=20)
    assert load.look(ran=1.365, waited=0.135, turns=60)
    calm = [load.look(ran=1.365 + 0.5 * i, waited=0.135 + 0.01 * i, turns=60) for i in range(1, CALM + 1)]
    assert calm == [True] * (CALM - 1) + [False]
    assert load.look(ran=5.5, waited=0.5, turns=100)


def test_waking_up_often_is_no_load():
    """Threads that sleep while they wait are woken thousands of times a second, which takes some 30 microseconds each."""
    load = Load()
    assert not load.look(ran=0.4, waited=0.03, turns=1000)
    assert load.look(ran=0.7, waited=0.23, turns=1400)


def test_a_process_that_hardly_computes_sees_no_load():
    load = Load()
    assert not any(load.look(ran=i * 1e-3, waited=i * 1e-3, turns=i) for i in range(20))


def test_the_times_of_threads_are_counted():
    (ran, waited, turns), began = thread_times(), time.process_time()
    while time.process_time() < began + 0.2:
        pass
    more_ran, more_waited, more_turns = thread_times()
    assert 0.15 < more_ran - ran < 2 and more_waited >= waited and more_turns >= turns > 0


BURNT = """
import ctypes, os, threading, time, torch
from twofold.runtime import oversubscribe
torch.set_num_threads(2)
numbers, quiet = torch.ones(400_000), threading.Event()

def burnt():
    began = time.process_time()
    for _ in range(20):
        numbers.add(1)
        time.sleep(0.02)
    return time.process_time() - began

burnt()
spinning = burnt()
sleeper = threading.Thread(target=oversubscribe, args=(ctypes.CDLL(None), quiet))
sleeper.start()
time.sleep(0.1)
sleeping = burnt()
quiet.set()
sleeper.join()
print(os.cpu_count() == 1 or (sleeping < spinning / 4 and sleeping < burnt() / 4), sleeping, spinning)
"""


def test_threads_sleep_while_they_wait_and_spin_again():
    """Processor time of 20 short sums with pauses. In the pauses the second thread of a team spins for milliseconds, or sleeps."""
    assert said(BURNT).startswith("True"), "spinning threads were not told to sleep"


WATCHES = """
import os, threading, torch, twofold as tf
from twofold.runtime import share_cores

def watching():
    return [thread.name for thread in threading.enumerate()].count("twofold-load")

torch.set_num_threads(2)
for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
    os.environ[name] = "1"
    share_cores()
    share_cores.cache_clear()
    del os.environ[name]
torch.set_num_threads(1)
share_cores()
share_cores.cache_clear()
before = watching()
torch.set_num_threads(2)
tf.load("tiny"), tf.load("tiny")
print(before, watching())
"""


def test_one_thread_looks_at_the_load_unless_the_user_has_chosen_or_nothing_waits():
    assert said(WATCHES).startswith("0 1\n")


# ---------------------------------------------------------------- precision

ASKS = """
from twofold.models.precision import choose_precision as choose
print(choose("auto"), choose("bfloat16"), choose("bfloat16"), choose("float32"))
"""


def test_without_units_for_bfloat16_auto_is_float32_and_the_other_is_called_slow_once():
    words = said(ASKS, ONEDNN_MAX_CPU_ISA="AVX2")
    assert words.splitlines()[0] == "float32 bfloat16 bfloat16 float32"
    assert words.count('bfloat16" is slower') == 1


@pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()), reason="no units for bfloat16"
)
def test_with_units_for_bfloat16_auto_is_bfloat16():
    assert said(ASKS) == "bfloat16 bfloat16 bfloat16 float32\n"


def test_the_measured_seconds_are_of_both_types():
    assert set(product_seconds()) == {"float32", "bfloat16"} and min(product_seconds().values()) > 0


def test_a_run_keeps_the_precision_that_it_began_with(tiny_model, tmp_path):
    """Whatever is faster where it is resumed: so its bits stay the same."""
    other = "float32" if choose_precision("auto") == "bfloat16" else "bfloat16"

    def config(precision: str) -> Config:
        return replace(small(tiny_model), train=Train(steps=2, save_every=1, precision=precision))

    new, old = tmp_path / "new", tmp_path / "old"
    training.train(config("auto"), new)
    training.train(config(other), old)
    training.train(config("auto"), old, resume=True)
    recorded = [toml.load(Config, out / "config.toml").train.precision for out in (new, old)]
    assert recorded == [choose_precision("auto"), other]
    with pytest.raises(ValueError, match=r"another config \(train.precision = "):
        training.train(config(choose_precision("auto")), old, resume=True)


def test_a_loaded_model_multiplies_as_auto_says(tiny_model):
    assert run.load(tiny_model, precision="auto").engine.precision == choose_precision("auto")
    assert run.load(tiny_model).engine.precision == "float32"


# ---------------------------------------------------------------- the start

MODULES = """
import sys
{work}
heavy = {{"torch", "transformers", "tokenizers", "safetensors", "rich", "datasets", "math_verify"}} & set(sys.modules)
print(len(sys.modules), *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("work", "most"),
    [
        ("import twofold", 150),
        ("from twofold.cli import main; main(['train', 'configs/rlv-sums.toml', '--dry-run'])", 400),
    ],
)
def test_few_modules_are_loaded_where_nothing_is_computed(work, most):
    """Seconds depend on the machine, the number of modules does not; PyTorch alone is a thousand."""
    number, *heavy = said(MODULES.format(work=work)).splitlines()[-1].split()
    assert not heavy and int(number) <= most
