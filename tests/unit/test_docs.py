"""The documentation against the code: reference pages, links, code blocks, examples that are quoted."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import json
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import dspool
from dspool.cli.commands import dspool as dspool_command
from dspool.options import PoolOptions
from dspool.testing.stub_lm import StubLM
from dspool.types import UsageStats
from tests.chaos import catalogue
from tests.pages import HOW_TO, PAGES, PASTED, QUOTES, ROOT, TESTS, blocks

pytestmark = pytest.mark.unit

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

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
    with_code = {page.stem for page in HOW_TO.glob("*.md") if blocks(page, "python")}
    assert with_code == QUOTES.keys() | PASTED | TESTS


@pytest.mark.parametrize("page", QUOTES)
def test_a_recipe_shows_what_its_example_runs(page: str) -> None:
    path = HOW_TO / f"{page}.md"
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


_FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)


def sentences(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


@functools.cache
def parameters() -> set[str]:
    """What the public functions and classes, and the stub of an LM, can be told by keyword."""
    public = [getattr(dspool, name) for name in dspool.__all__]
    classes = [each for each in [*public, StubLM] if inspect.isclass(each)]
    callables = [*public, StubLM, *(getattr(each, name) for each in classes for name in dir(each) if name[0] != "_")]
    found = set()
    for each in filter(callable, callables):
        with contextlib.suppress(ValueError, TypeError):  # what is written in C
            found |= set(inspect.signature(each).parameters)
    return found


OF_DSPY = (
    "api_base async_streaming config demos extra_headers mine model_type return_failed_examples save_program signature"
)
OF_OTHERS = {*OF_DSPY.split(), *"allow_imports cancellable keep_alive kill_on_cancel max_tasks_per_child".split()}
"""Keywords that the pages name and that are not the pool's."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_of_options_and_figures_is_so(page: Path) -> None:
    text = sentences(page)
    code = "\n".join(re.findall(r"`([^`]+)`", text))
    assert set(re.findall(r"(?<![\w.-])([a-z]\w*)=(?!=)", code)) <= parameters() | OF_OTHERS
    defaults = {each.name: each.default for each in dataclasses.fields(dspool.PoolOptions)}
    for name, value in re.findall(r"`(\w+)` \(([\d.,]+)(?: s)?\)", text):
        if name in defaults:  # and not DSPy's
            assert float(value.replace(",", "")) == defaults[name], name
    for said, struct in (("stats", dspool.PoolStats), ("health", dspool.PoolHealth), ("usage", UsageStats)):
        named = re.findall(rf"\b{said}(?:\(\))?\.([a-z]\w*)", code)
        assert set(named) <= set(dir(struct)), said


_COMMAND = r"(?:dspool|make|python -m|uvicorn) "


def commands(tool: str) -> list[list[str]]:
    """What the pages' shell blocks and their sentences say to a tool, word by word, without what the shell does."""
    found = []
    for page in PAGES:
        lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
        found += re.findall(rf"^(?:\$ )?(?:[A-Z_]+=\S+ )*({_COMMAND}.+)", lines, re.MULTILINE)
        found += [" ".join(code.split()) for code in re.findall(rf"`({_COMMAND}[^`]+)`", sentences(page))]
    words = [re.split(r" (?:>|\||&&)", line)[0] for line in found if line.startswith(tool)]
    return [shlex.split(line, comments=True) for line in words]


def test_every_command_of_dspool_has_these_arguments_and_options() -> None:
    """They are read, not run: most ask a provider. Those of the page on doctor are run in tests/integration."""
    said = commands("dspool ")
    assert len(said) > 10
    for _, name, *words in said:
        command = dspool_command.commands[name]
        if words:
            params = command.make_context(name, words).params
            PoolOptions.build(None, params["options"])


def test_every_target_of_make_exists_and_knows_these_variables() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    said = commands("make ")
    assert len(said) > 10
    for _, target, *variables in said:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
        for name, value in (variable.split("=", 1) for variable in variables):
            assert f"$({name})" in makefile, name
            if name == "ONLY":
                known = re.findall(r"^BENCHMARKS := (.*)", makefile, re.MULTILINE)[0].split()
                assert {*value.split()} <= {*(known if target == "bench" else catalogue.names())}, value


def test_every_module_that_is_said_to_be_run_exists() -> None:
    said = commands("python -m ")
    assert len(said) > 3
    for _, _, module, *_ in said:
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_web_service_is_started_with_options_that_uvicorn_has() -> None:
    ((_, *words),) = [command for command in commands("uvicorn ") if "--factory" in command]
    params = importlib.import_module("uvicorn.main").main.make_context("uvicorn", words).params
    assert (ROOT / params["app_dir"] / "app.py").exists()
    assert params["factory"]
