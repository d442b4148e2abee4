"""The pages for people: links, files, options and plans that they name exist, and their lines fit a terminal."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import get_args, get_type_hints
from urllib.parse import unquote

import pytest

from twofold import arguments, cli, run, toml
from twofold.compute.plan import Plan, parse
from twofold.compute.rules import RULES
from twofold.config import Config, task_named
from twofold.evals.audit import Audit
from twofold.evals.critic import Critic
from twofold.evals.run import Eval

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *sorted(ROOT.glob("docs/**/*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("bench", "dev", "studies")]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LONGEST = 240
"""Characters of a line that is not a table row; prose is wrapped at about 100."""


def prose(page: Path) -> list[str]:
    """The lines of a page without its code blocks, each line's inline code left out."""
    kept, fenced = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        kept.append("" if fenced or line.startswith(("```", "    ")) else line)
    return re.sub(r"`[^`]*`", "", "\n".join(kept)).splitlines()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"#+ (.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).strip().lower()
            found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def broken(page: Path) -> list[str]:
    """The relative links and images of a page that lead nowhere."""
    bad = []
    for target in LINK.findall("\n".join(prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            bad.append(target)
    return bad


@each_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


@each_page
def test_lines_fit_a_terminal(page: Path) -> None:
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        assert line.startswith("|") or len(line) <= LONGEST, f"{page}:{number} has {len(line)} characters: wrap it"


def test_every_page_of_docs_is_in_its_list() -> None:
    listed = {(ROOT / "docs" / t).resolve() for t in LINK.findall((ROOT / "docs" / "README.md").read_text("utf-8"))}
    assert {page for page in ROOT.glob("docs/**/*.md") if page.name != "README.md"} <= listed


def test_result_pages_name_the_base_that_they_were_measured_on() -> None:
    """By the first 12 characters of the sha256 of its weights, in every section with a table; another base is called earlier."""
    shipped = sha256((run.shipped() / "model.safetensors").read_bytes()).hexdigest()[:12]
    assert f"| {shipped} | ships now" in (ROOT / "docs" / "shipped-model.md").read_text("utf-8")
    for page in sorted(ROOT.glob("docs/results/*.md")):
        for section in re.split(r"(?m)^## ", page.read_text("utf-8"))[1:]:
            found = re.findall(r"(earlier base )?\b([0-9a-f]{12})\b", section)
            own = (
                "configs/letters-base.toml" in section
                or page.stem == "smollm2"
                or section.startswith("A pretrained model")
            )
            assert found or own or "\n|" not in section, f"{page}: which base is {section.splitlines()[0]!r} about?"
            assert all(earlier or sha == shipped for earlier, sha in found), f"{page}: {section.splitlines()[0]!r}"


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`: three\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#one-two-three) [b](other.md#four)\n![c](gone.png)\n`[d](no-link.md)`\n```\n[e](code.md)\n```\n"
    )
    assert broken(page) == ["other.md#four", "gone.png"]


def tables(page: str, heading: str) -> list[list[str]]:
    """The cells of every table row between a heading of level two, matched in full, and the next one."""
    rows: list[list[str]] = []
    inside = False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            inside = re.fullmatch(heading, line) is not None
        elif inside and line.startswith("| `"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_documented_options_of_a_run_are_those_of_the_code() -> None:
    found = {name for row in tables("docs/configuration.md", "## The top") for name in names(row[0])}
    sections = {option.partition(".")[0] for option in toml.options(Config) if "." in option}
    for section in sections:
        rows = tables("docs/configuration.md", rf"## `\[{section}\]`")
        found |= {f"{section}.{name}" for row in rows for name in names(row[0])}
    kinds = {"recipe.name", "task.name"}  # headings of their own
    assert found == set(toml.options(Config)) - kinds


def test_the_documented_options_of_an_evaluation_are_those_of_the_code() -> None:
    rows = tables("docs/configuration.md", "## `twofold eval`: `tf.Eval`")
    found = {name for row in rows if len(row) == 3 for name in names(row[0])}
    of_mrt = ("probe.prover.", "probe.episodes.")
    assert found == {o for o in toml.options(Eval) if not o.startswith(of_mrt)} | {f"{o}*" for o in of_mrt}


def test_the_documented_options_of_an_audit_are_those_of_the_code() -> None:
    rows = tables("docs/configuration.md", "## `twofold audit`")
    assert {name for row in rows for name in names(row[0])} == {f.name for f in fields(Audit)}


def test_the_documented_options_of_a_plan_are_those_of_the_code() -> None:
    rows = tables("docs/configuration.md", "## `twofold solve`: `tf.Plan`")
    found = {name for row in rows for name in names(row[0])}
    parts = [Plan().calibration, Plan().traces, Plan().tournament]
    inner = {f.name for part in parts for f in fields(part)}
    assert found == {f.name for f in fields(Plan)} - {"calibration", "traces", "tournament"} | inner


@pytest.mark.parametrize("part", ["make", "stop"])
def test_the_documented_parts_of_a_plan_have_the_options_of_the_code(part: str) -> None:
    rows = [row for row in tables("docs/test-time.md", f"## {part.capitalize()}: .*") if len(row) == 3]
    found = {name: {o.removesuffix(".*") for o in names(row[1])} for row in rows for name in names(row[0])}
    kinds = get_args(get_type_hints(Plan)[part])
    assert found == {kind().name: {f.name for f in fields(kind)} - {"name"} for kind in kinds}


PLAN = re.compile(rf"\b(?:{'|'.join(RULES)})-\d+(?::[a-z_.]+=[^\s`\"')|]+)?")


@each_page
def test_every_plan_on_a_page_can_be_read(page: Path) -> None:
    for plan in PLAN.findall(page.read_text(encoding="utf-8")):
        assert parse(plan).n >= 1


def commands(page: Path) -> list[list[str]]:
    """The ``twofold`` commands of a page's code blocks, as words; ``$s`` stands for a seed."""
    blocks, fenced = [], False
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        if (fenced or line.startswith("    ")) and line.strip().startswith("twofold "):
            blocks.append(shlex.split(line.replace("$s", "0"), comments=True)[1:])
    return blocks


@each_page
def test_every_command_on_a_page_is_understood(page: Path) -> None:
    for words in commands(page):
        args, rest = arguments.parser(cli.COMMANDS).parse_known_args(words)
        match words[0]:
            case "train" | "plan":
                config = ROOT / args.config
                toml.override(toml.load(Config, config) if config.exists() else Config(), rest)
            case "eval":
                toml.override(Eval(), rest)
                task_named(args.task)
            case "audit":
                toml.override(Audit(), rest)
                task_named(args.task)
            case "critic":
                toml.override(Critic(), rest)
            case "solve":
                toml.override(Plan(), rest)
            case _:
                assert not rest, f"{page}: {words}: unknown {rest}"


def python(*words: str | Path, where: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in ``where`` on this checkout's package."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=where, env=env)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes of one core
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    said = python("-c", block[1], where=tmp_path)
    assert said.returncode == 0, said.stderr[-2000:]
    assert (tmp_path / "runs" / "first" / "evals" / "report.html").is_file()


INSIDE = {path.name for path in (ROOT / "src" / "twofold").iterdir() if path.is_dir()}
FILE = re.compile(r"(?<![\w./-])((?:[\w-]+/)+[\w.-]+\.(?:py|toml|md))\b")


@pytest.mark.parametrize(
    "page",
    [
        *PAGES,
        ROOT / "Makefile",
        *sorted(ROOT.glob("configs/*")),
        *sorted(ROOT.glob("bench/*.py")),
        *sorted(ROOT.glob("studies/*.py")),
    ],
)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in FILE.findall(text):
        first = name.partition("/")[0]
        if first in INSIDE:
            assert (ROOT / "src" / "twofold" / name).exists(), f"{page} names {name}, which is not in src/twofold"
        elif first in ("bench", "configs", "docs", "dev", "src", "studies", "tests"):
            assert (ROOT / name).exists(), f"{page} names {name}, which does not exist"


SCRIPTS = [
    p for p in [*ROOT.glob("studies/*.py"), *ROOT.glob("bench/*.py")] if "ArgumentParser" in p.read_text("utf-8")
]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_study_and_benchmark_explains_itself(script: Path) -> None:
    said = python(script, "--help", where=ROOT)
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.startswith("usage:")
