"""What is built and published: the wheel and the sdist, the container, the pins, and the package's own files found by name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from twofold import cli, packaged, source

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8")))

# ---------------------------------------------------------------- files of the package by name


def dry_run(capsys: pytest.CaptureFixture[str], config: str) -> str:
    assert cli.main(["train", config, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_found_by_its_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for spelt in (name, f"{name}.toml", f"configs/{name}.toml"):
        assert packaged.config(Path(spelt)) == ROOT / "configs" / f"{name}.toml"


def test_a_file_of_the_users_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "steps = 36\n" in dry_run(capsys, "rlv-sums")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rlv-sums.toml").write_text("[train]\nsteps = 7\n")
    assert "steps = 7\n" in dry_run(capsys, "configs/rlv-sums.toml")
    (tmp_path / "rlv-sums").write_text("[train]\nsteps = 8\n")
    assert "steps = 8\n" in dry_run(capsys, "rlv-sums")


@pytest.mark.parametrize(
    ("name", "hint"), [("rlv-sum", "; did you mean rlv-sums?"), ("mine/configs/rlv-sums.toml", "")]
)
def test_an_unknown_config_lists_those_that_there_are(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", name, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert f"{name}: no such file{hint}" in error and ", ".join(CONFIGS) in error


def test_an_example_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source.pin("examples/reward.py:brief") == source.pin(f"{ROOT}/examples/reward.py:brief")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "reward.py").write_text("mine = 1\n")
    assert source.load("examples/reward.py:mine") == 1
    with pytest.raises(FileNotFoundError, match="no such file"):
        source.load("examples/no_such.py:brief")


# ---------------------------------------------------------------- pins and extras


def needed(requirements: list[str]) -> Iterator[str]:
    """Yield the name of every package that these requirements bring on this machine, by what is installed."""
    todo, seen = [Requirement(text) for text in requirements], set()
    while todo:
        one = todo.pop()
        if (key := (canonicalize_name(one.name), frozenset(one.extras))) not in seen:
            seen.add(key)
            yield key[0]
            more = [Requirement(text) for text in metadata.requires(one.name) or []]
            todo += [r for r in more if not r.marker or any(r.marker.evaluate({"extra": e}) for e in {"", *one.extras})]


@pytest.mark.parametrize("extra", ["", "docs", "gguf", "serve", "wandb", "tensorboard", "trackio"])
def test_every_package_that_an_install_brings_has_a_pin(extra: str) -> None:
    """So that two installs from the lock are the same, and a list of parts (SBOM) made from it is complete."""
    found = set(needed(EXTRAS[extra] if extra else PROJECT["dependencies"]))
    assert len(found) >= 2 and found <= PINS.keys(), sorted(found - PINS.keys())


def test_the_pins_are_within_the_ranges_of_every_extra() -> None:
    """vLLM brings its own torch, and so has an environment of its own."""
    everything = [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    for one in map(Requirement, everything):
        if one.name == PROJECT["name"]:
            assert one.extras <= EXTRAS.keys()
        elif one.name != "vllm":
            pin = PINS[canonicalize_name(one.name)]
            assert one.specifier.contains(pin, prereleases=True), f"{one}, and the pin is {pin}"


def test_every_extra_that_a_message_names_exists() -> None:
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *(ROOT / "src").rglob("*.py")]
    named = {x for page in pages for x in re.findall(r"'\.\[([a-z,]+)\]'", page.read_text("utf-8"))}
    assert named and {x for names in named for x in names.split(",")} <= EXTRAS.keys()


# ---------------------------------------------------------------- the container


def stages() -> list[list[list[str]]]:
    """Return the Dockerfile's stages, each a list of instructions [name, rest]."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8")).replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    starts = [i for i, (name, _) in enumerate(instructions) if name == "FROM"]
    return [instructions[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)]


def copied(stage: list[list[str]]) -> list[tuple[list[str], str]]:
    """Return (sources, target) of what a stage copies from the build's context."""
    found = [shlex.split(rest) for name, rest in stage if name == "COPY" and "--from" not in rest]
    return [(words[:-1], words[-1]) for words in found]


def test_what_the_container_copies_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    names = {name for stage in stages() for sources, _ in copied(stage) for name in sources}
    assert names == kept
    assert all((ROOT / name).exists() for name in names)


def test_the_container_installs_from_the_lock_as_the_makefile_does() -> None:
    runs = [rest for stage in stages() for name, rest in stage if name == "RUN" and "pip install" in rest]
    assert len(runs) == 3
    assert all(re.search(r"--constraint /?constraints\.txt", run) for run in runs)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "--constraint constraints.txt" in makefile
    assert "--no-deps" in runs[1] and runs[1].endswith(" torch") and "TWOFOLD_TORCH_INDEX" in runs[1]
    assert PROJECT["requires-python"] == ">=3.11" and "ARG PYTHON=3.11\n" in (ROOT / "Dockerfile").read_text("utf-8")


# ---------------------------------------------------------------- wheel and sdist, for real


def run(*words: str | Path, where: Path, **environment: str) -> str:
    """Run a program without this checkout on its path, and without a package index; return what it printed."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PIP_INDEX_URL")}
    env |= {"PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "0"} | environment
    done = subprocess.run(words, cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new environment that has the dependencies of this one (behind its own packages), but not twofold."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    run(folder / "bin/pip", "uninstall", "--yes", "setuptools", where=folder)  # else its old one hides the pinned one
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist of this checkout and the wheel that was built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, where=out)
    return out


@pytest.fixture(scope="module")
def installed(fresh: Path, built: Path) -> Path:
    """Return the folder of programs of an environment with the wheel."""
    (wheel,) = built.glob("*.whl")
    run(fresh / "bin/pip", "install", "--no-deps", "--ignore-installed", wheel, where=fresh)
    return fresh / "bin"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    twofold = installed / "twofold"
    where = run(installed / "python", "-c", "import twofold; print(twofold.__file__)", where=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert run(twofold, "--version", where=tmp_path) == f"twofold {metadata.version('twofold')}\n"
    assert "--seed" in run(twofold, "demo", "--help", where=tmp_path)
    assert "verify = " in run(twofold, "train", "rlv-sums", "--dry-run", where=tmp_path)
    short = ["rollout.problems=2", "rollout.max_tokens=16", "train.steps=1", "recipe.rollouts=4"]
    run(twofold, "train", "rlv-sums", "--reward", "examples/reward.py:brief", *short, where=tmp_path)
    assert (tmp_path / "runs/rlv-sums/checkpoints/step-1/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_of_the_wheel_writes_its_report_where_it_is_run(installed: Path, tmp_path: Path) -> None:
    small = (
        "from pathlib import Path; from twofold import demo, toml\n"
        "small = toml.override(demo.CONFIG, ['train.steps=1', 'rollout.problems=2', 'recipe.rollouts=2'])\n"
        "demo.demo(Path('runs/demo'), 0, small, toml.override(demo.EVAL, ['problems=3', 'n=2', 'batch=3']))"
    )
    run(installed / "python", "-c", small, where=tmp_path)
    assert (tmp_path / "runs/demo/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_the_configs_the_examples_and_nothing_stray(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as file:
        names = set(file.namelist())
        about = next(file.read(name).decode() for name in names if name.endswith("METADATA"))
    assert {f"twofold/configs/{name}.toml" for name in CONFIGS} <= names
    assert {f"twofold/examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} <= names
    assert {"twofold/py.typed", "twofold/assets/tiny/model.safetensors"} <= names
    assert not [x for x in names if x.endswith(".pyc") or x.split("/")[0].partition("-")[0] != "twofold"]
    assert re.findall(r"(?m)^Provides-Extra: (.*)$", about) == sorted(EXTRAS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sdist_holds_what_its_own_tests_read(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    run("tar", "xzf", sdist, where=tmp_path)
    (unpacked,) = tmp_path.iterdir()
    light = ["tests/test_docs.py", "tests/test_packaging.py", "tests/test_training_path.py"]
    said = run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *light, where=unpacked)
    assert " passed" in said and "failed" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_container_build_and_install(fresh: Path, tmp_path: Path) -> None:
    """The first stage is run as it stands, on copies of what it copies; the pip commands of the second are resolved against
    the lock without an index, since everything is there."""
    build, cpu, _ = stages()
    out, context = tmp_path / "dist", tmp_path / "src"
    context.mkdir()
    for sources, _target in copied(build):
        run("cp", "-r", *(ROOT / name for name in sources), context, where=tmp_path)
    programs = f"{fresh / 'bin'}:{os.environ['PATH']}"
    for text in (rest.replace("/dist", str(out)) for name, rest in build if name == "RUN"):
        run("sh", "-c", text, where=context, PATH=programs)
    assert len([*out.glob("*.whl")]) == 1
    for text in (rest.replace("/dist", str(out)) for name, rest in cpu if name == "RUN" and "pip" in rest):
        text = text.replace("/constraints.txt", str(ROOT / "constraints.txt"))
        run("sh", "-c", text, where=context, PATH=programs, PIP_DRY_RUN="1", TWOFOLD_TORCH_INDEX="")
    assert ["ENTRYPOINT", '["twofold"]'] in cpu and "twofold" in PROJECT["scripts"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("extra", ["gguf", "serve", "wandb", "tensorboard", "trackio", "dev"])
def test_an_extra_resolves_with_the_lock(extra: str, fresh: Path, built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    lock = ROOT / "constraints.txt"
    run(fresh / "bin/pip", "install", "--dry-run", "--constraint", lock, f"{wheel}[{extra}]", where=fresh)


def test_the_files_are_found_where_the_wheel_has_them() -> None:
    """In a checkout they are at its root, and the wheel puts them beside the modules."""
    assert packaged.ROOT == ROOT
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {name: f"twofold/{name}" for name in packaged.FOLDERS}
