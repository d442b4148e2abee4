"""``twofold watch``: what the page is told of a run, while another process writes it, and how it is served."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from serving import until

import twofold as tf
from twofold import cli
from twofold.config import Config, Rollouts, Train
from twofold.recipes.rlv import RLV
from twofold.serve.server import PageServer
from twofold.watch import read
from twofold.watch.app import app
from twofold.watch.read import GROUPS, Growing, Run, last_rows

CONFIG = Config(
    recipe=RLV(rollouts=4, score_every=1),
    rollout=Rollouts(problems=2, max_tokens=40),
    train=Train(steps=2, save_every=0, seed=5),
)
EVIL = "<img src=x onerror=alert(1)></pre><script>alert(2)</script>\u202e\x1b[31m"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps. Do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tf.train(CONFIG, folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, without its weights."""
    return shutil.copytree(trained, tmp_path / "mine", ignore=shutil.ignore_patterns("checkpoints"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_of(data: dict[str, Any]) -> dict[str, list[list[float]]]:
    """The points of every line, by title and name."""
    return {f"{p['title']}: {line['name']}": line["points"] for p in data["panels"] for line in p["lines"]}


@contextmanager
def served(folder: Path) -> Iterator[Callable[..., tuple[int, Any, dict[str, str]]]]:
    """Serve the page of a run; give a function that asks for a path."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = PageServer(app(Run(folder)), "test")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until(lambda: server.started)
        port = listening.getsockname()[1]

        def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, Any, dict[str, str]]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            text = reply.read().decode()
            connection.close()
            is_json = reply.headers["content-type"] == "application/json"
            return reply.status, json.loads(text) if is_json else text, dict(reply.headers)

        try:
            yield ask
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


def test_the_page_is_told_what_the_run_has_written(trained: Path) -> None:
    rows = metrics(trained)
    with served(trained) as ask:
        status, data, _ = ask("/data")
        newer = ask(f"/data?have={data['version'].replace(' ', '%20')}")[1]
    assert status == 200 and data["name"] == "mine" and ["recipe", "rlv"] in data["about"]
    assert data["state"] == {"kind": "finished", "words": "finished: all 2 steps are done", "done": 2, "due": 2}
    assert newer == {"version": data["version"], "state": data["state"]}
    found = lines_of(data)
    for line, name in (
        ("Reward: reward", "reward"),
        ("Length: solution", "completions/mean_length"),
        ("Verifier: AUROC", "verifier/auroc"),
        ("Gradient norms: joint", "grad_norm"),
        ("Gradient norms: policy", "grad_norm/policy"),
        ("Gradient norms: verdicts (targets)", "grad_norm/targets"),
    ):
        wanted = [[row["step"], row[name]] for row in rows if row.get(name) is not None]
        assert wanted and found[line] == wanted, line
    speed = [[row["step"], pytest.approx(row["num_tokens"] / row["step_time"])] for row in rows]
    assert found["Tokens per second: tokens/s"] == speed
    assert data["last"] == rows[-1]
    wrote = [json.loads(line) for line in (trained / "rollouts.jsonl").read_text().splitlines()]
    assert [group["id"] for group in data["groups"]] == [group["id"] for group in reversed(wrote)]
    shown, kept = data["groups"][0]["rollouts"][0], wrote[-1]["rollouts"][0]
    assert {k: shown[k] for k in ("label", "reward", "p_yes", "tokens")} == {
        k: kept[k] for k in ("label", "reward", "p_yes", "tokens")
    }
    assert shown["text"] == kept["text"].strip()


def test_what_a_run_does_not_do_has_no_chart(run: Path) -> None:
    """A supervised run samples nothing, and plain RL has no targets; the log says 0 for both."""
    logged = {"reward": 0.0, "entropy": 0.0, "target_loss": 0.7, "score_loss": 1.25}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, **logged}) + "\n" for i in range(3)))
    found = lines_of(Run(run).data())
    assert set(found) == {"Reward: reward", "Loss of the targets: loss", "Loss of the score: loss"}
    assert found["Loss of the score: loss"] == [(0, 1.25), (1, 1.25), (2, 1.25)]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "entropy": 0.5}) + "\n")
    assert [y for _, y in lines_of(Run(run).data())["Entropy: entropy"]] == [0, 0, 0, 0.5]


def test_a_run_that_grows_is_read_on_and_half_a_line_waits(run: Path) -> None:
    shown = Run(run)
    shown.data()
    before = shown.version
    line = json.dumps({"step": 2, "reward": 0.25, "step_time": 2.0, "num_tokens": 30}) + "\n"
    path, half = run / "metrics.jsonl", len(line) // 2
    with path.open("a") as file:
        file.write(line[:half])
        file.flush()
        assert shown.version != before
        assert len(lines_of(shown.data())["Reward: reward"]) == 2
        file.write(line[half:])
    found = lines_of(shown.data())
    assert found["Reward: reward"][-1] == (2, 0.25) and found["Tokens per second: tokens/s"][-1] == (2, 15.0)
    assert shown.data()["state"]["kind"] == "finished"
    (run / "config.toml").write_text("[train]\nsteps = 5\n")  # it is resumed, to be longer
    assert shown.data()["state"]["due"] == 5 and shown.data()["state"]["kind"] == "running"
    group = (run / "rollouts.jsonl").read_text().splitlines()[-1]
    with (run / "rollouts.jsonl").open("a") as file:
        file.write(group[: len(group) // 2])
    assert len(shown.data()["groups"]) == 4  # two of each step, and not the half one


def test_lines_that_a_resumed_run_took_back_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def write(values: dict[int, float]) -> None:
        path.with_suffix(".draft").write_text(
            "".join(json.dumps({"step": s, "reward": r}) + "\n" for s, r in values.items())
        )
        path.with_suffix(".draft").replace(path)

    growing = Growing(path)
    growing.read()
    assert growing.rows == []
    for values in ({0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.1}, {0: 0.1, 1: 0.9, 2: 0.8, 3: 0.7}, {}, {0: 0.5}):
        write(values)
        growing.read()
        assert {row["step"]: row["reward"] for row in growing.rows} == values


@pytest.mark.parametrize("bad", ['{"step": 1, "rew\n', "[1]\n", '{"reward": 1}\n', "\0\0\0\n"])
def test_a_damaged_file_is_named_and_nothing_is_left_out_silently(run: Path, bad: str) -> None:
    (run / "metrics.jsonl").write_text('{"step": 0, "reward": 1.0}\n' + bad + '{"step": 2, "reward": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a line of a run"):
        Run(run)


def test_damage_that_comes_later_is_said_on_the_page(run: Path) -> None:
    with served(run) as ask:
        with (run / "metrics.jsonl").open("a") as file:
            file.write("\0\0\n")
        status, said, _ = ask("/data")
    assert status == 500 and "metrics.jsonl:3: not a line of a run" in said["error"]["message"]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("end", ["", '{"half'])
def test_the_last_rows_are_found_from_the_end(tmp_path: Path, monkeypatch: Any, chunk: int, end: str) -> None:
    monkeypatch.setattr(read, "CHUNK", chunk)
    rows = [{"step": i, "text": "x" * (i % 3 * 11)} for i in range(9)]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    for most in (1, 4, 9, 20):
        assert last_rows(path, most) == rows[::-1][:most]
    assert last_rows(tmp_path / "none.jsonl", 3) == []


def test_a_long_run_is_shown_in_means_of_steps(tmp_path: Path) -> None:
    """900 steps are 300 points; a metric of every 30th step has a point where there is one."""
    rows = [{"step": i, "reward": float(i)} | ({"verifier/auroc": 0.5} if i % 30 == 0 else {}) for i in range(900)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Run(tmp_path).data()
    found = lines_of(data)
    assert data["every"] == 3 and len(found["Reward: reward"]) == 300
    assert found["Reward: reward"][:2] == [(1.0, 1.0), (4.0, 4.0)]
    assert found["Verifier: AUROC"][:2] == [(0, 0.5), (30, 0.5)] and len(found["Verifier: AUROC"]) == 30


def test_the_state_is_said_in_words(run: Path) -> None:
    def state(rows: list[dict[str, float]], ago: float) -> tuple[str, str]:
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for path in run.iterdir():
            os.utime(path, (time.time() - ago,) * 2)
        found = Run(run).data()["state"]
        return found["kind"], found["words"]

    (run / "config.toml").write_text("[train]\nsteps = 10\n")
    step = [{"step": i, "step_time": 30.0} for i in range(10)]
    assert state([], 5) == ("waiting", "no step is done yet")
    assert state(step[:4], 200) == ("running", "running: 4 of 10 steps, 3 min to go")
    kind, words = state(step[:4], 9000)
    assert kind == "quiet" and words.startswith("4 of 10 steps, then nothing for 2.5 hours, and a step took 30 s")
    assert state(step, 9000) == ("finished", "finished: all 10 steps are done")


def test_what_is_no_run_is_told_so(trained: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "eval.json").write_text("{}")
    for directory, hint in (
        (tmp_path / "nowhere", "there is no such directory"),
        (trained.parent, "it holds mine; name one of these"),
        (tmp_path / "evaluation" / "eval.json", "it is a file, and a run is a directory"),
        (tmp_path / "evaluation", "it is an evaluation; twofold report shows those"),
        (tmp_path, "neither config.toml nor metrics.jsonl is in it"),
    ):
        assert cli.main(["watch", str(directory)]) == 2
        assert f"{directory} is no run: {hint}" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text("[train")
    assert cli.main(["watch", str(tmp_path)]) == 2 and "config.toml: not TOML" in capsys.readouterr().err


def test_only_this_machine_is_answered_and_only_to_look(trained: Path) -> None:
    with served(trained) as ask:
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            for path in ("/", "/data"):
                assert ask(path, host=host)[0] == 421
        assert ask("/data", host="localhost:1234")[0] == 200
        assert ask("/metrics.jsonl")[0] == ask("/../config.toml")[0] == 404
        assert ask("/data", method="POST")[0] == 405
        status, page, headers = ask("/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(
        r"https?:|//\w+\.|<link rel=\"style|@import|\bsrc=", page.replace("http://www.w3.org/2000/svg", "")
    )
    script = (files("twofold") / "watch" / "page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", script)


def test_a_port_that_is_taken_is_named(trained: Path, capsys: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["watch", str(trained), "--port", port]) == 2
    said = capsys.readouterr().err
    assert f"port {port}: Address already in use" in said and "--port N" in said


def hostile(run: Path) -> None:
    """Make the run's last texts what a page must not take for its own."""
    row = json.loads((run / "rollouts.jsonl").read_text().splitlines()[-1])
    row |= {"step": 2, "question": EVIL, "reference": EVIL, "id": EVIL}
    labels = (("wrong", 0.9), ("correct", 0.1), ("no_answer", None), ("correct", 0.9))
    row["rollouts"] = [
        row["rollouts"][0] | {"text": EVIL + "x" * 9000, "label": label, "p_yes": p} for label, p in labels
    ]
    with (run / "rollouts.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_texts_are_bounded_data_with_their_kinds(run: Path) -> None:
    hostile(run)
    group = Run(run).data()["groups"][0]
    assert [r["kind"] for r in group["rollouts"]] == ["believed", "doubted", "no_answer", None]
    text = group["rollouts"][0]["text"]
    assert text.startswith(r"<img src=x onerror=alert(1)></pre><script>alert(2)</script>\u202e\x1b[31mxxx")
    assert "characters left out" in text and len(text) < 4100
    assert (
        group["id"]
        == group["reference"]
        == r"<img src=x onerror=alert(1)></pre><script>alert(2)</script>\u202e\x1b[31m"
    )
    with (run / "rollouts.jsonl").open("a") as file:
        file.write((json.dumps({**json.loads((run / "rollouts.jsonl").read_text().splitlines()[-1])}) + "\n") * 20)
    assert len(Run(run).data()["groups"]) == GROUPS


BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the path")
def test_in_a_browser_the_page_follows_the_run_and_texts_stay_texts(run: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra interop")
    hostile(run)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = PageServer(app(Run(run)), "test")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        complaints: list[str] = []
        with playwright.sync_playwright() as p:
            page = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]).new_page()
            for event in ("pageerror", "dialog", "console"):
                page.on(event, lambda found: complaints.append(str(found)))
            page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
            page.get_by_text("finished: all 2 steps are done").wait_for()
            assert page.locator("#panels svg").count() >= 6 and page.locator("#groups img, #groups script").count() == 0
            assert page.locator(".sample pre").first.inner_text().startswith("<img src=x onerror=alert(1)>")
            page.get_by_label("right, but doubted").check()
            shown = page.locator(".sample .verdict").all_inner_texts()
            assert shown and all("right" in text for text in shown)
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 2, "reward": 0.125}) + "\n")
            page.get_by_label("Reward: reward 0.125").wait_for(timeout=20_000)
        server.should_exit = True
        thread.join(timeout=20)
    assert complaints == []
