"""The model card of a run, and what is published with it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import ModelCard

import twofold as tf
from twofold import card, cli, toml
from twofold.compute.judge import p_yes
from twofold.compute.plan import parse
from twofold.config import Config, Rollouts, Train
from twofold.models.checkpoints import Damaged, latest_checkpoint
from twofold.recipes.rlv import RLV
from twofold.types import Candidate, Completion

ROOT = Path(__file__).parents[1]
QUESTION = "Is it right? Say Yes or No."
CONFIG = Config(
    recipe=RLV(rollouts=4), rollout=Rollouts(problems=2, max_tokens=40), train=Train(steps=2, save_every=0, seed=5)
)
PROBLEM, SOLUTION = "Start with 47. Add 38. What is the result?", "47+38=85\n\\boxed{85}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two steps with a verdict question of its own, and an evaluation of its last checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tf.train(toml.override(CONFIG, [f"judge.question={QUESTION}"]), folder)
    tf.evaluate(tf.load(folder), "sums", tf.Eval(problems=8, n=2, max_tokens=40), out=folder / "evals" / "test")
    return folder


def test_the_card_says_what_was_made_how_and_how_good_it_is(run: Path) -> None:
    text = card.card(run)
    found = tf.report([run / "evals" / "test"]).tasks[0].evaluations[0]
    one, quality = found.accuracy["weighted@2"], found.verifier
    assert f"weighted@2 | {one.mean:.1%} [{one.low:.1%}, {one.high:.1%}] |" in text
    assert quality is not None and f"AUROC of P(Yes) | {quality.auroc:.2f} [" in text
    state = json.loads((run / "checkpoints/step-2/trainer/trainer_state.json").read_text())
    assert f"| {state['inputs']['model']} |" in text
    assert "| Base | tiny, which comes with twofold" in text and "| Seed | 5; one run |" in text
    assert "estimator = rloo, verify = generative" in text and f'"{QUESTION}"' in text
    assert "2 of 2, each 2 problems x 4 rollouts of at most 40 tokens" in text


def test_the_front_matter_is_what_the_hub_reads(run: Path) -> None:
    data = ModelCard(card.card(run, "me/it")).data
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert data.tags[0] == "twofold" and data.license == "apache-2.0" and data.base_model is None
    assert data.model_name == "it"
    names = {result.metric_name: result.metric_value for result in data.eval_results}
    assert names.keys() == {"pass@1", "maj@2", "best@2", "weighted@2"}


def test_the_code_of_the_card_judges_as_twofold_does(run: Path) -> None:
    """Plain transformers gives the same P(Yes), to float32's rounding."""
    blocks = re.findall(r"```python\n(.*?)```", card.card(run), re.DOTALL)
    plain = blocks[0].replace(card.HERE, str(latest_checkpoint(run)))
    names: dict[str, Any] = {}
    exec(plain, names)
    model = tf.load(run)
    prompt, reply = model.chat.prompt(PROBLEM), model.chat.reply(SOLUTION)
    tokens = [*reply, model.chat.stop[0]]
    completion = Completion(tokens, [0.0] * len(tokens), [True] * len(tokens), "stop")
    (score,) = p_yes(model.engine, model.chat, [Candidate(prompt, completion, SOLUTION, "85")])
    assert names["p_yes"](PROBLEM, SOLUTION) == pytest.approx(score, abs=1e-5)
    assert 'tf.load("me/it")' in card.card(run, "me/it")


@pytest.mark.parametrize(
    ("recipe", "judge"), [("verify=pairs", "pairs"), ("verify=last_token", "last_token"), ("name=rlcr", "stated")]
)
def test_the_card_of_another_judge_has_the_plan_that_asks_as_it_was_trained(run: Path, recipe: str, judge: str) -> None:
    config = toml.override(Config(), [f"recipe.{recipe}"])
    text = card._judging(config, latest_checkpoint(run) or run, "me/it")
    (plan,) = re.findall(r'parse\("(.*)"\)', text)
    assert parse(plan).judge.name == judge and parse(plan).rule == "weighted"
    assert "P(Yes)" not in text and 'tf.load("me/it")' in text


def test_without_an_evaluation_nothing_is_claimed(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "config.toml").write_bytes((run / "config.toml").read_bytes())
    (other / "checkpoints").symlink_to(run / "checkpoints")
    text = card.card(other)
    assert "nothing is claimed about how good it is" in text and "model-index" not in text
    (other / "evals").mkdir()
    (other / "evals" / "step-1").symlink_to(run / "evals" / "test")  # of an earlier checkpoint
    assert card.card(other) == text


def test_a_card_has_no_folder_of_the_machine(run: Path) -> None:
    assert str(run.parent) not in card.card(run)
    assert card._without_folders('source = "/data/mine/set.jsonl" and 3/4, https://a/b') == (
        'source = "set.jsonl" and 3/4, https://a/b'
    )


def test_the_command_prints_or_writes_the_card_and_the_checkpoint_stays_whole(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["card", str(run)]) == 0
    text = capsys.readouterr().out
    assert cli.main(["card", str(run), "--write"]) == 0
    assert (run / "README.md").read_text() == text
    tf.load(run)


@pytest.mark.parametrize("command", [["card"], ["push"]])
def test_what_is_no_run_is_refused(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, str(tmp_path), *(["me/it"] if command == ["push"] else [])]) == 2
    assert "is not a run with a checkpoint" in capsys.readouterr().err


def test_a_dry_run_lists_the_plain_files_and_the_card(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", str(run), "me/it", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert {line.split()[1] for line in said.splitlines()[:-1]} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "twofold.json",
    }  # fmt: skip
    assert said.splitlines()[-1] == "would publish 8 files as me/it"
    assert cli.main(["push", str(run), "it", "--dry-run"]) == 2
    assert "write OWNER/NAME" in capsys.readouterr().err


def test_a_damaged_checkpoint_and_an_adapter_of_a_local_base_are_not_published(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    last = tf.train(toml.override(CONFIG, ["lora.rank=2", "train.steps=1"]), folder)
    with pytest.raises(ValueError, match="which nobody else has: write a whole model with `twofold convert"):
        card.push(folder, "me/it", dry_run=True)
    assert "library_name: peft" in card.card(folder)
    (last / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(Damaged, match="is not as it was written"):
        card.push(folder, "me/it", dry_run=True)


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload needs; what it got is kept in ``got`` of the server."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        home = f"http://127.0.0.1:{server.server_port}"
        reply: dict[str, Any] = {"url": f"{home}/me/it", "commitUrl": f"{home}/me/it/commit/1", "commitOid": "1"}
        if "preupload" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            reply = {"files": [{"path": x, "uploadMode": "regular", "shouldIgnore": False} for x in names]}
        server.got.append((self.path, body))
        self._say(reply)

    def do_GET(self) -> None:
        self._say({"id": "me/it", "siblings": [], "sha": "0", "name": "me", "auth": {}})

    def _say(self, reply: dict[str, Any]) -> None:
        text = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.got = []
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_hubs_own_client_uploads_these_files_and_a_download_asks_the_same_question(
    run: Path, hub: Any, tmp_path: Path
) -> None:
    env = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_not_one", "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT / "src"),
    }  # fmt: skip
    command = [sys.executable, "-m", "twofold", "push", str(run), "me/it", "--private"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "published 8 files as me/it" in done.stdout
    created = json.loads(next(body for path, body in hub.got if path.endswith("repos/create")))
    assert created["name"] == "it" and created["organization"] == "me"
    assert created.get("private") is True or created.get("visibility") == "private"
    lines = next(body for path, body in hub.got if "/commit/" in path).splitlines()
    files = [x["value"] for x in map(json.loads, lines) if x["key"] == "file"]
    model = tmp_path / "model"
    model.mkdir()
    for file in files:
        (model / file["path"]).write_bytes(base64.b64decode(file["content"]))
    assert tf.load(model).chat.question == QUESTION
    assert (model / "README.md").read_text() == card.card(run, "me/it")
