"""Build the documentation site: ``make site``, or ``python docs/build_site.py``; the static files are in build/site/html.

The pages are those of the repository, staged in its layout, so that they stay readable where the code is hosted. Three
things differ in the staged copy: a link to a file that is no page leads to a page that shows the file, the tutorial
notebook becomes a page, and docs/api.md has the docstrings of the names that it lists.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from os.path import relpath
from pathlib import Path

import twofold

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
PICTURES = {".png", ".svg"}


def outside_code(page: str, change: Callable[[str], str]) -> str:
    """Return a page with the parts changed that are neither in a fence nor in inline code."""
    parts = re.split(r"(?ms)(^```.*?^```|`[^`\n]+`)", page)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def staged_name(file: Path) -> Path:
    """Return where a file of the repository stands among the staged pages: pages and pictures at their own paths."""
    if file.is_dir():
        return file / "README.md"
    return file if file.suffix == ".md" or file.suffix in PICTURES else file.with_name(f"{file.name}.md")


def notebook(text: str) -> str:
    """Return a notebook as Markdown: its texts, its code, and the text that the code printed."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            printed = output.get("text") or output["data"]["text/plain"]
            parts.append(f"```text\n{''.join(printed).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def shown(file: Path) -> str:
    """Return the page that shows a file which is none, or a list of the files of a folder."""
    if file.is_dir():
        files = sorted(path for path in file.rglob("*.*") if "__pycache__" not in path.parts)
        return f"# {file.name}\n\n" + "".join(
            f"* [{path.relative_to(file)}]({path.relative_to(file)})\n" for path in files
        )
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return notebook(text)
    language = {".py": "python", ".toml": "toml"}.get(file.suffix, "text")
    return f"# {file.name}\n\n`{file.relative_to(ROOT)}`\n\n````{language}\n{text}\n````\n"


def docstrings(page: str) -> str:
    """Return docs/api.md with docstrings below each table, of the names that its rows begin with: ``| `tf.load` |``.

    Of a module only the options that the row names are shown: ``| `twofold.recipes.rlv` | `RLV` |``.
    """
    sections = re.split(r"(?m)^(?=## )", page)
    for i, section in enumerate(sections):
        for name, options in re.findall(r"(?m)^\| `([\w.]+)` \|(?: `(\w+)` \|)?", section):
            home = f"twofold.{twofold._HOMES[name[3:]]}.{name[3:]}" if name.startswith("tf.") else name
            sections[i] += f"\n::: {home}\n    options:\n      heading: {name}\n"
            sections[i] += f"      members: false\n\n::: {home}.{options}\n" if options else ""
    return "".join(sections)


def stage(pages: Path) -> None:
    """Write the documentation, and every file that it links to, as pages into the folder ``pages``."""
    todo, done = [ROOT / "README.md", ROOT / "examples" / "tutorial.ipynb", *ROOT.glob("docs/**/*.md")], set()
    while todo:
        if (file := todo.pop()) in done:
            continue
        done.add(file)
        target = pages / staged_name(file).relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in PICTURES:
            shutil.copy(file, target)
            continue

        def redirect(found: re.Match[str], file: Path = file, target: Path = target) -> str:
            path, sharp, anchor = found[2].partition("#")
            linked = (ROOT / target.parent.relative_to(pages) / path).resolve()
            if re.match(r"[a-z]+:", path) or not path or not linked.exists():
                return found[0]  # elsewhere, on this page, or an error that the build reports
            linked = linked / "README.md" if (linked / "README.md").exists() else linked
            todo.append(linked)
            to = relpath(pages / staged_name(linked).relative_to(ROOT), target.parent)
            return f"{found[1]}{to}{sharp}{anchor}{found[3]}"

        text = file.read_text(encoding="utf-8") if file.suffix == ".md" else shown(file)
        if file.is_dir() or file.suffix in (".md", ".ipynb"):
            text = outside_code(text, partial(LINK.sub, redirect))
        target.write_text(docstrings(text) if file.name == "api.md" else text, encoding="utf-8")


def build(out: Path) -> subprocess.CompletedProcess[str]:
    """Stage the site in the folder ``out`` and build it there, strictly; the static files are in ``out / "html"``."""
    shutil.rmtree(out, ignore_errors=True)
    stage(out / "pages")
    config = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    (out / "zensical.toml").write_text(config.replace("../../src", str(ROOT / "src")), encoding="utf-8")
    words = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(words, cwd=out, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    made = build(ROOT / "build" / "site")
    print(made.stdout)
    sys.exit(made.returncode)
