"""The pages for people: their links lead somewhere, and their lines fit a terminal."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from twofold import toml
from twofold.config import Config

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
PAGES = list(dict.fromkeys(PAGES))
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


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`: three\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#one-two-three) [b](other.md#four)\n![c](gone.png)\n`[d](no-link.md)`\n```\n[e](code.md)\n```\n"
    )
    assert broken(page) == ["other.md#four", "gone.png"]


def documented() -> set[str]:
    """The options in the tables of docs/configuration.md, as dotted names."""
    found, section = set(), None
    for line in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = re.fullmatch(r"## `\[(\w+)\]`", line)
            section = f"{heading[1]}." if heading else "" if line == "## The top" else None
        elif section is not None and line.startswith("| `"):
            found |= {section + name for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])}
    return found


def test_the_documented_options_are_those_of_the_code() -> None:
    kinds = {"recipe.name", "task.name"}  # headings of their own
    assert documented() == set(toml.options(Config)) - kinds
