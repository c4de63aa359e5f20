"""The documentation against the code: reference pages, links, code blocks, examples that are quoted."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

QUOTES = {
    "choose-workers-and-slots": ["measure_slots.py"],
    "evaluate-and-optimize-over-a-pool": ["evaluate_and_optimize.py"],
    "move-from-dspy-parallel": ["from_parallel.py"],
    "move-from-process-pool-executor": ["executor.py"],
    "serve-over-http": ["web_service/app.py"],
    "sessions": ["sessions.py"],
    "ship-your-own-program": ["own_program/librarian.py", "own_program/run_librarian.py"],
    "stream-answers": ["stream_answers.py"],
    "use-caches": ["use_caches.py"],
    "use-in-a-notebook": ["notebook.ipynb"],
    "use-tools-and-mcp": ["tools/mcp_session.py", "tools/run_agents.py"],
    "watch-a-pool": ["watch_a_pool.py"],
}
"""How-to pages whose code is that of examples, word for word. tests/integration runs these."""

LINES = {"check-the-environment", "configure-lms", "define-programs-as-data", "preload-modules"}
"""Those that show how something is said, in single statements. Tests of what they tell of run the like."""

RUN_AS_IT_IS = {"test-your-code"}

MAPPED = [
    "dspool/pool",
    "dspool/pool/core",
    "dspool/supervisor",
    "dspool/supervisor/environment",
    "dspool/worker",
    "dspool/worker/bridge",
]
"""Packages whose docstrings say what each module in them is."""


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    """docs/build_reference.py as a module, which finds those beside it as it does when it is run."""
    sys.path.insert(0, str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "docs"))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for name, code in _BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def anchors(page: Path) -> set[str]:
    """What links may point to in a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_what_the_code_gives(reference: ModuleType) -> None:
    for name, text in reference.pages().items():
        shown = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        # How strings in annotations are quoted depends on the Python, and on whether they were resolved before.
        same = shown.replace("'", '"') == text.replace("'", '"')
        assert same, f"docs/reference/{name} is old; run: python docs/build_reference.py"


def test_every_public_method_has_words(reference: ModuleType) -> None:
    import dspool

    for cls in (dspool.Pool, dspool.AsyncPool, dspool.Lease, dspool.AsyncLease, dspool.Executor):
        for name, member in sys.modules["reference_api"].public_members(cls).items():
            assert (member.fget if isinstance(member, property) else member).__doc__, f"{cls.__name__}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.relative_to(ROOT)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_parses(page: Path) -> None:
    if page.parent.name == "reference":  # signatures, not code
        return
    for code in blocks(page, "python"):
        compile(code, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_readmes_library_use_is_the_first_example() -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert code in (ROOT / "examples" / "first_pool.py").read_text(encoding="utf-8")


def code_of(example: Path) -> str:
    """A script, or the cells of a notebook."""
    text = example.read_text(encoding="utf-8")
    if example.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) + "\n" for cell in json.loads(text)["cells"])
    return text


def test_every_page_with_code_is_a_recipe_that_is_run() -> None:
    with_code = {page.stem for page in (ROOT / "docs" / "how-to").glob("*.md") if blocks(page, "python")}
    assert with_code == QUOTES.keys() | LINES | RUN_AS_IT_IS


@pytest.mark.parametrize("page", QUOTES)
def test_a_recipe_shows_what_its_example_runs(page: str) -> None:
    path = ROOT / "docs" / "how-to" / f"{page}.md"
    examples = [ROOT / "examples" / name for name in QUOTES[page]]
    shown = blocks(path, "python")
    assert shown
    for code in shown:
        quoted = [textwrap.indent(code, " " * depth) for depth in (0, 4, 8)]
        assert any(form in code_of(example) for form in quoted for example in examples), code
    links = {(path.parent / link).resolve() for link in _LINK.findall(path.read_text(encoding="utf-8"))}
    assert any(links & {example, example.parent} for example in examples), "the page names its example"


def test_the_readme_names_every_room_there_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (ROOT / "dspool").glob("*/__init__.py")]
    assert [room for room in rooms if f"{room}/" not in text] == []


@pytest.mark.parametrize("package", MAPPED)
def test_a_packages_map_has_a_line_for_each_of_its_modules(package: str) -> None:
    folder = ROOT / package
    source = (folder / "__init__.py").read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source), clean=False) or ""
    mapped = re.findall(r"^ +(\w+(?:\.py|/)) ", text, re.MULTILINE)
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    packages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    assert sorted(mapped) == sorted(modules + packages)


def test_every_command_in_the_documentation_exists() -> None:
    from dspool.cli.commands import dspool as commands

    named = set()
    for page in PAGES:
        for code in blocks(page, "sh"):
            named.update(re.findall(r"^(?:\$ )?dspool ([a-z]+)", code, re.MULTILINE))
    assert named <= set(commands.commands), named
