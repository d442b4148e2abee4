"""A fleet on a real Ray cluster of several nodes on this machine: workers and nodes are killed in the middle of a call.

The conformance suite (``test_engines``) runs over a fleet too. These tests need Ray: ``make test-fleet`` installs it.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ahead import Copied
from test_dist import launched

import twofold as tf
from twofold.engines.native import NativeEngine
from twofold.models.io import load_model
from twofold.run import shipped
from twofold.toml import override
from twofold.types import Completion, Sampling

ray = pytest.importorskip("ray")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from ray.cluster_utils import Cluster  # noqa: E402

from twofold.engines.fleet import FleetEngine  # noqa: E402

SAMPLING = Sampling(n=8, max_tokens=48, seed=4)
PROMPTS = [list(range(100, 180)), *([7 * i % 500 + 1, 17, i + 1] for i in range(24)), [8, 17, 1], [8, 17, 1]]
"""One long prompt, which keeps a worker from getting others, then many short ones, which take longer. The last is there twice."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one core each, and a head without one. It notices a lost node after a second or two."""
    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model, device="cpu")[0]


@pytest.fixture(scope="module")
def one(model: Any) -> list[list[Completion]]:
    """What a single engine says."""
    return NativeEngine(copy.deepcopy(model), exact=True).generate(PROMPTS, SAMPLING)


@pytest.fixture
def fleet(cluster: Any, model: Any) -> Iterator[FleetEngine]:
    while ray.available_resources().get("CPU", 0) < 2:  # the last test's workers are still going
        time.sleep(0.1)
    fleet = FleetEngine(model, workers=2, exact=True, timeout=120)
    yield fleet
    for worker in [*fleet._workers, *fleet._starting.values()]:
        ray.kill(worker)


def kill(cluster: Any, worker: Any, node: str, what: str) -> None:
    if what == "worker":
        ray.kill(worker)
    else:
        cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id == node), allow_graceful=False)


def test_two_workers_say_bit_for_bit_what_one_engine_says(fleet: FleetEngine, one: list[list[Completion]]) -> None:
    assert fleet.generate(PROMPTS, SAMPLING) == one
    assert len(fleet._workers) == 2
    single = NativeEngine(fleet.model, exact=True)
    single.generate(PROMPTS, SAMPLING)
    texts = [[*p, *group[0].tokens, 9] for p, group in zip(PROMPTS, one, strict=True)]
    assert fleet.logprobs(texts, [[3, 4]] * len(texts), 0.7) == single.logprobs(texts, [[3, 4]] * len(texts), 0.7)


def test_a_question_about_a_solution_goes_to_the_worker_that_has_its_cache(fleet: FleetEngine) -> None:
    groups = fleet.generate(PROMPTS, SAMPLING)
    before = fleet.usage.computed
    texts = [[*p, *c.tokens, 9] for p, group in zip(PROMPTS, groups, strict=True) for c in group]
    fleet.logprobs(texts, [[3]] * len(texts))
    assert fleet.usage.computed - before <= 2 * len(texts)  # the question's token and one more


@pytest.mark.parametrize("what", ["worker", "node"])
def test_what_dies_in_the_middle_of_a_call_is_replaced_and_its_prompts_are_done_once(
    cluster: Any, fleet: FleetEngine, one: list[list[Completion]], what: str
) -> None:
    fleet.generate(PROMPTS[:2], replace(SAMPLING, max_tokens=1))
    fleet.load({})  # nobody has a cache, so that prompts go to whoever has less to do
    (first, at_first), (second, at_second) = [(worker, node) for worker, (node, _) in fleet._workers.items()]
    ended: list[tuple[int, int]] = []

    def finished(i: int, j: int, completion: Completion) -> None:
        if not ended:  # one worker is done (the first one has the long prompt): kill the other
            kill(cluster, *((second, at_second) if i == 0 else (first, at_first)), what)
        ended.append((i, j))

    assert fleet.generate(PROMPTS, SAMPLING, finished) == one
    assert Counter(ended) == Counter((i, j) for i in range(len(PROMPTS)) for j in range(SAMPLING.n))
    assert len(fleet._workers) == 1
    if what == "node":
        cluster.add_node(num_cpus=1)
    ray.get(list(fleet._starting), timeout=120)
    assert fleet.generate(PROMPTS, SAMPLING) == one
    assert len(fleet._workers) == 2


def test_new_weights_reach_all_workers_and_those_that_join_later(
    cluster: Any, fleet: FleetEngine, one: list[list[Completion]]
) -> None:
    assert fleet.generate(PROMPTS, SAMPLING) == one
    old = copy.deepcopy(fleet.model.state_dict())
    try:
        for p in fleet.model.parameters():
            p.data.mul_(1.5)
        fleet.load(fleet.model.state_dict())
        ray.kill(next(iter(fleet._workers)))
        expected = NativeEngine(copy.deepcopy(fleet.model), exact=True).generate(PROMPTS, SAMPLING)
        assert expected != one
        assert fleet.generate(PROMPTS, SAMPLING) == expected
        ray.get(list(fleet._starting), timeout=120)
        fleet.load({})
        assert fleet.generate(PROMPTS, SAMPLING) == expected
    finally:
        fleet.model.load_state_dict(old)


def test_a_worker_that_does_not_answer_is_named(cluster: Any, model: Any) -> None:
    fleet = FleetEngine(model, workers=1, timeout=60)
    fleet.generate(PROMPTS[1:2], SAMPLING)
    fleet.timeout = 0.01
    [(node, pid)] = fleet._workers.values()
    with pytest.raises(
        TimeoutError, match=f"no answer within 0.01 s from the worker with process {pid} on node {node[:8]}"
    ):
        fleet.generate(PROMPTS, replace(SAMPLING, max_tokens=60))
    ray.kill(next(iter(fleet._workers)))


def test_what_the_cluster_cannot_hold_is_said(cluster: Any, model: Any) -> None:
    with pytest.raises(TimeoutError, match=r"each needs .*'num_cpus': 64.*the cluster has .*'CPU': "):
        FleetEngine(model, workers=1, cpus=64, timeout=1).generate(PROMPTS[:1], SAMPLING)


def test_a_call_over_which_workers_keep_dying_ends(cluster: Any, fleet: FleetEngine) -> None:
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.05):
            for worker in list(fleet._workers):
                ray.kill(worker)

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="3 workers died during one call"):
            fleet.generate(PROMPTS * 4, replace(SAMPLING, max_tokens=100, stop=()))
    finally:
        stop.set()
        thread.join()


def test_the_fleet_samples_from_the_weights_of_its_last_load(fleet: FleetEngine, one: list[list[Completion]]) -> None:
    """The learner may have changed the module by then (``train.ahead``)."""
    old = copy.deepcopy(fleet.model.state_dict())
    fleet.load(old)
    try:
        for p in fleet.model.parameters():
            p.data.mul_(1.5)
        assert fleet.generate(PROMPTS, SAMPLING) == one
    finally:
        fleet.model.load_state_dict(old)


SMALL = ["rollout.problems=4", "recipe.rollouts=4", "rollout.max_tokens=24", "optim.lr=1e-3"]


def numbers(folder: Path) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in load_model(folder, device="cpu")[0].parameters()])


def far(run: Path, other: Path) -> float:
    """How far two trained models are from each other, as a share of how far one has come."""
    one, another, start = numbers(run), numbers(other), numbers(shipped())
    return float((one - another).norm() / (one - start).norm())


def test_one_step_ahead_with_a_fleet_is_that_with_an_engine_on_a_copy(cluster: Any, tmp_path: Path) -> None:
    sets = [*SMALL, "train.steps=3"]
    fleet = ["engine.name=fleet", "engine.workers=2", "train.ahead=1"]
    spread = tf.train(override(tf.Config(), sets + fleet), tmp_path / "spread")
    copied = tf.train(override(tf.Config(), [*sets, "train.ahead=1"]), tmp_path / "copied", engine=Copied)
    on_policy = tf.train(override(tf.Config(), sets), tmp_path / "on")
    assert far(copied, spread) < 0.1 < far(copied, on_policy)


def test_a_fleet_samples_for_several_learners(tmp_path: Path) -> None:
    """Two ranks of torchrun, one step ahead; only rank 0 has a fleet. The gradients' sums round in another order."""
    sets = [*SMALL, "train.steps=2", "train.ahead=1"]
    fleet = override(tf.Config(), [*sets, "engine.name=fleet", "engine.workers=1"])
    ran = launched(2, tmp_path, runs=[(fleet, str(tmp_path / "two"))])
    assert ran.returncode == 0, ran.stderr
    copied = tf.train(override(tf.Config(), sets), tmp_path / "copied", engine=Copied)
    assert far(copied, tmp_path / "two" / "checkpoints" / "step-2") < 0.1


def test_training_with_a_fleet_is_training_with_one_engine(cluster: Any, tmp_path: Path) -> None:
    sets = ["train.steps=2", "rollout.problems=4", "recipe.rollouts=4", "rollout.max_tokens=24", "engine.exact=true"]
    alone = tf.train(override(tf.Config(), sets), tmp_path / "alone")
    named = override(tf.Config(), ["engine.name=fleet", "engine.workers=2", *sets])
    spread = tf.train(named, tmp_path / "spread")
    for one, other in zip(*(load_model(p, device="cpu")[0].parameters() for p in (alone, spread)), strict=True):
        assert one.equal(other)
