"""The documentation site: it builds without a warning, every link in it leads somewhere, and a page fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest

import twofold

ROOT = Path(__file__).parents[1]
pytest.importorskip("zensical", reason="the extra docs is not installed")
pytestmark = pytest.mark.timeout(600)  # the build takes 5 s of one core, and many times as long on a busy machine


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_of_the_docs", ROOT / "docs" / "build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page has that others link to, links to, and fetches when it is viewed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in found:
            self.fetched.append(found["src"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(found["href"])


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    made = script().build(out)
    assert made.returncode == 0, made.stdout
    assert "No issues found" in made.stdout, made.stdout
    return out / "html"


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, Page]:
    """The pages by their files; 404.html is shown at any address, so its links begin at the root of the host."""
    return {f: Page(f.read_text(encoding="utf-8")) for f in html.rglob("*.html") if f.name != "404.html"}


def resolved(page: Path, link: str) -> tuple[Path, str]:
    """Return the file and the anchor that a relative link of a page leads to."""
    path, _, anchor = unquote(link).partition("#")
    file = (page.parent / path.partition("?")[0]).resolve() if path else page
    return file / "index.html" if file.is_dir() else file, anchor


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page]) -> None:
    bad = []
    for page, parsed in pages.items():
        for link in parsed.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, anchor = resolved(page, link)
            if not file.is_file() or (anchor and file.suffix == ".html" and anchor not in pages[file].ids):
                bad.append((str(page), link))
    assert len(pages) >= 60 and bad == []


def test_a_page_fetches_nothing_from_elsewhere(html: Path, pages: dict[Path, Page]) -> None:
    for page, parsed in pages.items():
        assert len(parsed.fetched) >= 3
        for source in parsed.fetched:
            assert source.startswith("data:") or resolved(page, source)[0].is_file(), f"{page} fetches {source}"
    for style in html.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s+)[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def named(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for inside in entry.values():
            yield from [inside] if isinstance(inside, str) else named(inside)


def test_every_page_of_docs_is_in_the_navigation() -> None:
    nav = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text("utf-8"))["project"]["nav"]
    listed = list(named(nav))
    assert len(listed) == len(set(listed))
    assert {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")} <= set(listed)


def test_the_reference_has_the_docstring_of_every_public_name(html: Path) -> None:
    page = (html / "docs" / "api" / "index.html").read_text(encoding="utf-8")
    for name in twofold.__all__:
        home = f"twofold.{twofold._HOMES[name]}.{name}"
        assert f'id="{home}"' in page, f"docs/api.md has no `{home}`"
        said = (getattr(twofold, name).__doc__ or "").split()[:6]
        text = " ".join(re.sub(r"<[^>]+>", "", page).split())
        assert re.sub("`", "", " ".join(said)) in text, f"the docstring of {name} is missing"
    assert "<blockquote>" not in page, "an example in a docstring stands under Examples:"
