"""The rules of this code base, checked on the syntax tree: which part may import which, what is never called, and lengths."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "twofold"

# A part may import what stands to the right of it on any line, and itself. `engines` is a concrete engine and its
# helpers, `engines.base` the protocols. A new part needs a place here.
ORDER = """
cli -> arguments demo suite solving evaluating card -> training -> run same_run -> runtime config -> recipes
cli -> watch -> serve evals trainer terminal
cli -> planning -> estimate -> config engine_options recipes toml
planning -> terminal
config -> recipes evals serve -> compute -> engines.base -> types
cli training run same_run config -> trainer -> models engines.base
training same_run config -> engine_options -> engines -> models engines.base
run -> engines
recipes evals same_run -> tasks -> text -> types
compute -> text
cli demo suite evaluating training run same_run config evals compute -> toml
cli demo suite evaluating trainer -> progress
run tasks models -> hub
config -> aliases
arguments -> evals compute
same_run config engine_options evals compute tasks -> source
cli source -> packaged
training run same_run evals trainer models -> durable
cli solving evaluating progress evals tasks -> terminal
recipes evals serve compute trainer tasks models -> maths -> types -> ranges
"""
WHOLE = {"__init__", "__main__"}  # the package's front doors may name every part, lazily
CONCRETE = {"native", "vllm", "vllm_server", "fleet", "remote"}  # engines that only run.py and engine_options.py name

HEAVY = {"torch", "vllm", "ray", "datasets", "wandb", "matplotlib", "sklearn", "scipy", "transformers", "math_verify"}
HEAVY |= {"trackio", "reasoning_gym", "fastapi", "uvicorn", "pydantic", "httpx2", "triton"}
ONE_FILE = {
    "httpx2",
    "vllm",
    "ray",
    "datasets",
    "wandb",
    "trackio",
    "reasoning_gym",
    "math_verify",
    "fastapi",
    "uvicorn",
    "pydantic",
    "triton",
}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True), ("trust_remote_code", True)}

RUNS_PROGRAMS = "twofold.tasks.sandbox_worker"
"""The one place that runs a model's text as code: a script that has isolated itself before. See docs/reliability.md."""

FILE_LINES, FUNCTION_LINES = 450, 70
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|work|opt|Users|mnt|srv)/\w|\b[A-Z]:\\(?!n)\w")
TEXTS = {".py", ".md", ".toml", ".jinja", ".txt", ".cff", ".yml", ""}

SOURCES = sorted(PACKAGE.rglob("*.py"))
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    """Return the module name of a file, such as ``twofold.engines.base``; for ``__init__.py`` the package's name."""
    parts = ("twofold", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def imports(nodes: Iterator[ast.AST], path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full name) of every imported module; ``from package import module`` counts as that module."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in (alias for alias in node.names if alias.name != "__version__"):  # a string, not a part
                yield node.lineno, f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes that run when a module is imported: no bodies of functions, and nothing under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from top_level(child)


def part_of(module: str) -> str:
    """Return the part that a module belongs to: ``recipes`` for ``twofold.recipes.rlv``."""
    if module == "twofold.engines.base":
        return "engines.base"
    return [*module.split("."), "__init__"][1]


def allowed() -> dict[str, set[str]]:
    rights: dict[str, set[str]] = {}
    for line in ORDER.strip().splitlines():
        columns = [column.split() for column in line.split("->")]
        for i, column in enumerate(columns):
            for part in column:
                rights.setdefault(part, {part, "types"}).update(*columns[i + 1 :])
    for _ in rights:  # what may be imported may bring what it imports
        for reach in rights.values():
            reach.update(*(rights[part] for part in tuple(reach)))
    return rights


ALLOWED = allowed()


def test_the_order_says_what_the_house_says() -> None:
    assert ALLOWED["maths"] == {"maths", "types", "ranges"}
    assert ALLOWED["text"] == {"text", "types", "ranges"}
    assert ALLOWED["models"] == {"models", "durable", "hub", "maths", "types", "ranges"}
    assert ALLOWED["trainer"] == {
        "trainer",
        "models",
        "hub",
        "durable",
        "engines.base",
        "progress",
        "terminal",
        "maths",
        "types",
        "ranges",
    }
    assert ALLOWED["engines"] == {"engines", "models", "hub", "durable", "engines.base", "maths", "types", "ranges"}
    assert ALLOWED["compute"] == {
        "compute",
        "toml",
        "source",
        "packaged",
        "engines.base",
        "text",
        "maths",
        "types",
        "ranges",
    }
    assert not ALLOWED["recipes"] & {"trainer", "models", "evals", "serve", "run", "cli", "engines"}
    assert not ALLOWED["trainer"] & {"recipes", "tasks", "text"}


@each_source
def test_who_imports_whom(path: Path) -> None:
    me = part_of(name_of(path))
    if me in WHOLE:
        return
    assert me in ALLOWED, f"{me} has no place in the order at the top of {Path(__file__).name}: give it one"
    for line, module in imports(ast.walk(tree(path)), path):
        if module.split(".")[0] != "twofold":
            continue
        other = part_of(module)
        assert other in ALLOWED[me], f"{path}:{line}: {me} may not import {module}, only {sorted(ALLOWED[me])}"
        engine = module.removeprefix("twofold.engines.")
        built = {
            "fleet": "native",
            "vllm_server": "remote",
        }  # native engines elsewhere; a remote engine with new weights
        may = me in ("run", "engine_options") or built.get(path.stem) == engine
        assert engine not in CONCRETE or may, f"{path}:{line}: only run.py and engine_options.py name engines"


def test_there_are_no_circles() -> None:
    """Not between modules of one part either, nor for types alone."""
    needs = {
        name: {m for _, m in imports(ast.walk(tree(path)), path) if m in MODULES and m != "twofold"} - {name}
        for name, path in MODULES.items()
        if name != "twofold"
    }
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        for name in free:
            del needs[name]
    assert not needs, f"these import one another in a circle, or stand on a circle: {sorted(needs)}"


@pytest.mark.parametrize("library", sorted(ONE_FILE))
def test_a_heavy_library_is_imported_in_one_file(library: str) -> None:
    """Or in one folder of kernels."""
    users = {
        str((path.parent if path.parent.name == "kernels" else path).relative_to(PACKAGE))
        for path in SOURCES
        for _, module in imports(ast.walk(tree(path)), path)
        if module.split(".")[0] == library
    }
    assert len(users) <= 1, f"{library} is imported by {sorted(users)}: let one file own it"


def test_import_twofold_is_light_by_the_syntax_tree() -> None:
    """No module that ``import twofold`` loads imports a heavy library at its top level."""
    seen, todo = set(), ["twofold"]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for line, name in imports(top_level(tree(MODULES[module])), MODULES[module]):
            assert name.split(".")[0] not in HEAVY, f"{MODULES[module]}:{line}: import {name} inside the function"
            parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2)]
            todo += [parent for parent in parents if parent in MODULES]


def test_import_twofold_is_light_when_run() -> None:
    code = f"import sys, twofold; print(*sorted({HEAVY!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert run.stdout.split() == []


@each_source
def test_nothing_unsafe(path: Path) -> None:
    runs = {"eval", "exec", "yaml.load"} - ({"exec"} if name_of(path) == RUNS_PROGRAMS else set())
    for line, module in imports(ast.walk(tree(path)), path):
        assert module.split(".")[0] not in UNSAFE_MODULES, f"{path}:{line}: {module} runs code from data"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno}: a bare except hides everything: name the exception"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in runs, f"{path}:{node.lineno}: {called} runs code from data"
            keywords = {(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
            assert not keywords & UNSAFE_KEYWORDS, f"{path}:{node.lineno}: {keywords & UNSAFE_KEYWORDS}"


def test_the_process_that_runs_programs_holds_nothing_of_ours() -> None:
    """No task, whose tests a program could find in memory; and no other process of ours loads it."""
    path = MODULES[RUNS_PROGRAMS]
    assert [module for _, module in imports(ast.walk(tree(path)), path) if module.startswith("twofold")] == []
    for other in SOURCES:
        assert RUNS_PROGRAMS not in [module for _, module in imports(ast.walk(tree(other)), other)], other
    called = [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert called.count("exec") == 1


@each_source
def test_files_and_functions_fit_a_reader(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{path} has {lines} lines, more than {FILE_LINES}: split it"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines: split it"


def test_no_paths_of_one_machine() -> None:
    folders = [
        ROOT / name for name in ("src", "tests", "configs", "docs", "dev", "bench", "studies", "examples", ".ci")
    ]
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.iterdir())
    for path in files:
        if path.is_file() and path.suffix in TEXTS and path.name != ".git":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not MACHINE_PATH.search(line), f"{path}:{number}: a path of one machine: {line.strip()}"


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if ">>> " in path.read_text("utf-8")])
def test_worked_examples_are_right(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
