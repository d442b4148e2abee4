"""Training with a running vLLM server, with vLLM itself (``make test-vllm``); and what is said when it is not as it must be."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_process import VLLM, Running, running

from twofold import training
from twofold.config import Config, LoraOptions, Rollouts, Train
from twofold.engine_options import VllmServer
from twofold.engines.agreement import Mismatch
from twofold.engines.base import UpstreamError
from twofold.engines.native import NativeEngine
from twofold.engines.vllm_server import VllmServerEngine
from twofold.maths.losses import Loss
from twofold.maths.schedule import Optim
from twofold.models.io import load_model
from twofold.recipes.rlv import RLV
from twofold.recipes.tango import Tango
from twofold.run import shipped
from twofold.tasks.procedural import Sums
from twofold.types import Sampling

with_vllm = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not VLLM, reason="no vllm: make test-vllm, or set TWOFOLD_VLLM to its executable"),
]
TEXTS = [[*range(7, 80)], [*range(90, 200)], [9, 8]]  # the longer ones fill blocks of the prefix cache


class Answers(BaseHTTPRequestHandler):
    """A server that knows these paths only, and is silent for ever about ``/silent``."""

    found: dict[str, Any]
    over = threading.Event()

    def do_GET(self) -> None:
        if self.path in self.found:
            if self.found[self.path] is None:
                self.over.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(self.found[self.path]).encode())
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None: ...


def test_a_server_holds_one_model(tmp_path: Path) -> None:
    """Two roles would overwrite each other's weights. This is said before the server, which is not there, is asked."""
    for recipe in (RLV(verify="separate"), Tango(share=False)):
        with pytest.raises(ValueError, match="a server holds one model, this recipe trains two"):
            training.train(Config(engine=VllmServer(url="http://127.0.0.1:9"), recipe=recipe), tmp_path / recipe.name)


@pytest.fixture
def stand_in() -> Iterator[tuple[str, type[Answers]]]:
    handler = type("Handler", (Answers,), {"over": threading.Event(), "found": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        handler.over.set()
        server.shutdown()


@pytest.mark.parametrize(
    ("found", "error", "said"),
    [
        ({"/version": {"version": "0.27.1"}}, ValueError, r"http://127.* is vLLM 0\.27\.1: 0\.28 or newer is needed"),
        ({"/version": {"version": "0.32.0"}}, ValueError, "Start it with: VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ({"/version": None}, UpstreamError, r"http://127.* was silent for 0\.2 s"),
        ({}, UpstreamError, "has no /version"),
    ],
)
def test_a_server_that_cannot_train_is_refused_by_name(
    stand_in: Any, tiny_model: Path, found: Any, error: Any, said: str
) -> None:
    url, handler = stand_in
    handler.found = found
    with pytest.raises(error, match=said):
        VllmServerEngine(load_model(tiny_model)[0], url=url, deadline=0.2)


# ---------------------------------------------------------------- vLLM itself


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ["--max-model-len", "512", "--block-size", "32", "--worker-extension-cls", "vllm_on_cpu.Unpacked"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    paths = str(Path(__file__).parent)
    with running(shipped(), log, *options, PYTHONPATH=paths, VLLM_SERVER_DEV_MODE="1") as found:
        yield found


@pytest.fixture(scope="module")
def engine(server: Running) -> Iterator[VllmServerEngine]:
    found = VllmServerEngine(load_model(shipped())[0], url=server.root + "/v1")
    yield found
    found.close()


def near(numbers: Any) -> Any:
    return pytest.approx(numbers, abs=1e-3, rel=0)


def scores(engine: Any) -> list[float]:
    """Log-probs of one token after each text, which read the prefix cache, and of three tokens, which do not."""
    return [x for row in engine.logprobs([*TEXTS, *TEXTS], [[5]] * 3 + [[5, 6, 7]] * 3) for x in row]


def with_server(test: Any) -> Any:
    for mark in with_vllm:
        test = mark(test)
    return test


@with_server
def test_new_weights_leave_nothing_stale(engine: VllmServerEngine) -> None:
    """The embeddings of this model are tied, and prefixes of the texts were cached under the old weights."""
    model, own = engine.policy, copy.deepcopy(engine.policy.state_dict())
    before = scores(engine)
    assert before == near(scores(NativeEngine(model)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    assert scores(engine) == near(before)  # the server has a copy of its own
    engine.load(model.state_dict())
    after = scores(engine)
    assert after == near(scores(NativeEngine(model)))
    assert all(abs(a - b) > 1e-2 for a, b in zip(after, before, strict=True))
    ((drawn,),) = engine.generate([TEXTS[0]], Sampling(max_tokens=20, seed=1))
    assert drawn.logprobs == near(NativeEngine(model).logprobs([TEXTS[0]], [drawn.tokens])[0])
    wrong = {name: tensor * 1.2 if "layers.0." in name else tensor for name, tensor in own.items()}
    with pytest.raises(Mismatch, match=r"the vLLM server http://127.* text of 64 tokens are \d\.\d+ nats"):
        engine.load(wrong)
    model.load_state_dict(own)
    engine.load(own)


@with_server
def test_a_temperature_whose_log_probs_the_server_does_not_give_is_refused(engine: VllmServerEngine) -> None:
    with pytest.raises(ValueError, match=r"sampled at 0\.7: start the server with --logprobs-mode processed_logprobs"):
        engine.generate([[5]], Sampling(temperature=0.7))


def config(server: Running, **train: Any) -> Config:
    return Config(
        recipe=RLV(rollouts=4), task=Sums(level=1), rollout=Rollouts(problems=4, max_tokens=24),
        engine=VllmServer(url=server.root), loss=Loss(correction="token_truncate", beta=0.1), optim=Optim(lr=1e-3),
        train=Train(**({"steps": 4, "save_every": 2} | train)),
    )  # fmt: skip


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@with_server
def test_a_training_samples_what_its_learner_scores(server: Running, tmp_path: Path) -> None:
    out = tmp_path / "run"
    training.train(config(server, steps=2), out)
    training.train(config(server), out, resume=True)  # the server has other weights by then
    lines = metrics(out)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(line["mismatch"] < 1e-4 for line in lines)
    assert lines[0]["kl"] < 1e-6 < lines[-1]["kl"]  # the reference is the native engine's


@with_server
def test_one_step_ahead_and_adapters(server: Running, tmp_path: Path) -> None:
    out = tmp_path / "run"
    training.train(replace(config(server, ahead=1), lora=LoraOptions(rank=4)), out)
    assert [line.get("staleness", 0) for line in metrics(out)] == [0, 1, 0, 1]
    assert [line["mismatch"] < 1e-4 for line in metrics(out)] == [True, False, True, False]


@with_server
def test_a_server_that_has_gone_is_named(server: Running, engine: VllmServerEngine) -> None:
    """It is the last test: nothing answers any more."""
    server.process.terminate()
    server.process.wait(timeout=60)
    with pytest.raises(UpstreamError, match=f"no answer from the upstream {server.root}"):
        engine.generate([[5]], Sampling())
    with pytest.raises(UpstreamError, match=f"no answer from the upstream {server.root}"):
        engine.load(engine.policy.state_dict())
