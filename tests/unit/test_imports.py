"""Which room of dspool may import which, read from the source.

The tables say what is allowed and why; everything else is reported. Every import statement counts, also one inside a
function or under TYPE_CHECKING, because each means that the room knows the other. Nothing of dspool is run to find out.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.unit

PACKAGE = Path(__file__).parents[2] / "dspool"

# The longest name that fits a module is its room; "dspool" itself is only dspool/__init__.py.
BASE = frozenset({"errors", "options", "requirements", "signals", "types"})
ROOMS = {
    "dspool": "root",
    "dspool.__main__": "cli",
    "dspool.errors": "errors",
    "dspool.logs": "logs",
    "dspool.lm_limits": "options",
    "dspool.option_values": "options",
    "dspool.options": "options",
    "dspool.requirements": "requirements",
    "dspool.signals": "signals",
    "dspool.types": "types",
    "dspool.protocol": "protocol",
    "dspool.worker": "worker",
    "dspool.supervisor": "supervisor",
    "dspool.pool": "pool",
    "dspool.pool.core": "core",
    "dspool.daemon": "daemon",
    "dspool.bench": "bench",
    "dspool.cli": "cli",
    "dspool.testing": "testing",
}
EVERY_ROOM = frozenset(ROOMS.values())

# A room may always import itself. A worker is started by its module's name, never imported by those who start it.
MAY_IMPORT = {
    # The public names come from everywhere, each when it is first asked for.
    "root": EVERY_ROOM - {"testing"},
    # The words that every part shares rest on nothing but each other.
    "errors": BASE,
    "options": BASE,
    "requirements": BASE,
    "signals": BASE,
    "types": BASE,
    # Where log lines go is nobody's business but the application's.
    "logs": frozenset({"signals"}),
    # What crosses a pipe is known to both ends, so it knows neither.
    "protocol": BASE,
    # A worker knows its pipes and not who holds the other ends.
    "worker": BASE | {"protocol"},
    # The mechanism of processes carries out orders without knowing the policy, nor what runs inside a worker.
    "supervisor": BASE | {"protocol", "logs"},
    # The core decides and has nothing to carry out with.
    "core": BASE,
    # The drivers join the core's decisions to pipes and processes.
    "pool": BASE | {"protocol", "supervisor", "core", "logs"},
    # The daemon is a pool behind a socket: it uses what any application can use.
    "daemon": BASE | {"protocol", "pool", "root"},
    # The harness measures pools and daemons from outside.
    "bench": BASE | {"protocol", "pool", "daemon", "root"},
    # The fakes stand in for both ends of a pipe and for the clock; the fixtures open pools by the public names, as
    # users do.
    "testing": BASE | {"protocol", "core", "supervisor", "root"},
    # The commands put it all together; the demo takes its offline LM from testing, which nobody else may import.
    "cli": EVERY_ROOM,
}

# What the core may take from outside dspool: data and arithmetic. No clock, no chance, no threads, no I/O, no logging.
CORE_MAY_IMPORT = frozenset(
    "__future__ abc bisect collections copy dataclasses enum functools heapq itertools math operator types typing"
    " msgspec".split()
)

# What a room must not take from outside, beside dspy.
MUST_NOT_IMPORT = {
    # A worker that runs no DSPy program starts without anyio, and these are what it loads.
    room: frozenset({"anyio"})
    for room in ("root", "errors", "options", "types", "protocol", "worker")
}

# These rooms may import dspy inside a function, when a program is at hand; every other room looks it up in sys.modules.
# Under TYPE_CHECKING an import of dspy costs nothing and is allowed everywhere.
MAY_IMPORT_DSPY_LATE = frozenset({"worker", "pool", "daemon", "bench", "testing", "cli"})
# These are themselves imported only by a worker that has a DSPy program. They may take anyio too, which DSPy imports.
MAY_IMPORT_DSPY_AT_ONCE = frozenset(
    {
        "dspool.worker.lms",
        "dspool.worker.runtime",
        "dspool.worker.callers",
        "dspool.worker.caches",
        "dspool.worker.field_streams",
        "dspool.worker.relays",
        "dspool.worker.spending",
    }
)


class Import(NamedTuple):
    """One imported name. `late` is inside a function, `typing_only` under TYPE_CHECKING."""

    name: str
    line: int
    late: bool
    typing_only: bool


def room_of(name: str) -> str | None:
    """The room of a dotted name below dspool; None for a module that the table does not place."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        if room := ROOMS.get(".".join(parts[:length])):
            return room
    return "root" if name == "dspool" else None


def room_imported(name: str, modules: set[str]) -> str | None:
    """The room that an import of `name` reaches; a name that is no module of its own is one of dspool/__init__.py's."""
    room = room_of(name)
    is_module = any(module == name or module.startswith(name + ".") for module in modules)
    return "root" if room is None and not is_module else room


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every name that a module imports, relative ones resolved against `package`, import_module("...") included."""

    def names(node: ast.AST) -> list[str]:
        match node:
            case ast.Import(names=aliases):
                return [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=level):
                above = package.split(".")[: len(package.split(".")) - (level - 1)] if level else []
                stem = ".".join([*above, *([module] if module else [])])
                return [stem if alias.name == "*" else f"{stem}.{alias.name}" for alias in aliases]
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                return [name] if ast.unparse(function).endswith(("import_module", "__import__")) else []
        return []

    def walk(node: ast.AST, late: bool, typing_only: bool) -> Iterator[Import]:
        for name in names(node):
            yield Import(name, getattr(node, "lineno", 0), late, typing_only)
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = node.body if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") else []
        for child in ast.iter_child_nodes(node):
            yield from walk(child, late, typing_only or child in guarded)

    return walk(tree, late=False, typing_only=False)


def problems(package_folder: Path) -> list[str]:
    """One sentence for each forbidden import of the package in `package_folder`, which is named dspool."""
    sources: dict[str, Path] = {}
    for path in sorted(package_folder.rglob("*.py")):
        parts = path.relative_to(package_folder.parent).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: list[str] = []
    for module, path in sources.items():
        room = room_of(module)
        if room is None:
            found.append(f"{module} has no room: say in ROOMS where it belongs")
            continue
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for imported in imports_of(tree, package):
            if reason := reason_against(module, room, imported, set(sources)):
                found.append(f"{path.relative_to(package_folder.parent)}:{imported.line}: {reason}")
    return found


def reason_against(module: str, room: str, imported: Import, modules: set[str]) -> str | None:
    """Why `module` must not import that, or None when it may."""
    top = imported.name.partition(".")[0]
    if room == "core" and top not in CORE_MAY_IMPORT | {"dspool"}:
        return f"core must not import {top}"
    if top == "dspool":
        target = room_imported(imported.name, modules)
        if target is None or target == room or target in MAY_IMPORT[room]:
            return None
        return f"{room} must not import {target} ({imported.name})"
    if top == "dspy":
        if imported.typing_only or module in MAY_IMPORT_DSPY_AT_ONCE:
            return None
        if room not in MAY_IMPORT_DSPY_LATE:
            return f"{room} must not import dspy"
        return None if imported.late else f"{module} must import dspy inside a function"
    if top in MUST_NOT_IMPORT.get(room, ()) and module not in MAY_IMPORT_DSPY_AT_ONCE:
        return f"{room} must not import {top}"
    return None


def run_python(code: str) -> None:
    """Runs `code` in a Python of its own, whose failure is the test's."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_every_import_follows_the_table() -> None:
    assert problems(PACKAGE) == []


def test_the_table_has_a_line_for_every_room() -> None:
    assert set(MAY_IMPORT) == EVERY_ROOM
    assert all(rooms <= EVERY_ROOM for rooms in MAY_IMPORT.values())
    assert set(MUST_NOT_IMPORT) | MAY_IMPORT_DSPY_LATE <= EVERY_ROOM


def test_importing_dspool_does_not_import_dspy() -> None:
    run_python("import sys, dspool; assert 'dspy' not in sys.modules")


def test_importing_the_core_loads_no_driver() -> None:
    run_python("import sys, dspool.pool.core; assert not {'dspy', 'anyio', 'structlog', 'psutil'} & set(sys.modules)")


def test_a_worker_without_dspy_programs_imports_neither_anyio_nor_dspy() -> None:
    run_python("import sys, dspool.worker.loop; assert not {'dspy', 'anyio'} & set(sys.modules)")


def write_package(folder: Path, sources: dict[str, str]) -> Path:
    """A package named dspool with these files; returns its folder."""
    package = folder / "dspool"
    for name, source in sources.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("errors.py", "import dspool.protocol.frames", "errors must not import protocol"),
        ("errors.py", "import dspool", "errors must not import root"),
        ("options.py", "from dspool import Pool", "options must not import root"),
        ("protocol/values.py", "import dspy", "protocol must not import dspy"),
        ("protocol/values.py", "def f():\n    import dspy", "protocol must not import dspy"),
        ("protocol/frames.py", "import anyio", "protocol must not import anyio"),
        ("worker/loop.py", "from ..pool.core import machine", "worker must not import core"),
        ("worker/loop.py", "from ..supervisor.process import Process", "worker must not import supervisor"),
        ("worker/loop.py", "import dspy", "dspool.worker.loop must import dspy inside a function"),
        ("worker/loop.py", "try:\n    from dspy.utils import x\nexcept ImportError:\n    pass", "inside a function"),
        ("supervisor/launch.py", "from dspool.worker.loop import run", "supervisor must not import worker"),
        ("supervisor/launch.py", "from dspool.pool import blocking", "supervisor must not import pool"),
        ("supervisor/launch.py", "def f():\n    import dspool.pool.core.commands", "supervisor must not import core"),
        ("supervisor/launch.py", "import importlib\nimportlib.import_module('dspool.pool')", "must not import pool"),
        ("pool/core/machine.py", "from .. import lease", "core must not import pool"),
        ("pool/core/machine.py", "from ...protocol.frames import encode_frame", "core must not import protocol"),
        ("pool/core/machine.py", "if TYPE_CHECKING:\n    import dspool.protocol.frames", "must not import protocol"),
        ("pool/blocking.py", "from dspool.worker import loop", "pool must not import worker"),
        ("pool/blocking.py", "from dspool.testing import fakes", "pool must not import testing"),
        ("pool/programs.py", "class C:\n    import dspy", "dspool.pool.programs must import dspy inside a function"),
        ("bench/run.py", "from dspool.testing import stub", "bench must not import testing"),
        ("testing/fakes.py", "from dspool.worker import loop", "testing must not import worker"),
        ("testing/fakes.py", "from dspool.pool.blocking import Pool", "testing must not import pool"),
        ("helpers.py", "", "dspool.helpers has no room"),
        *[
            ("pool/core/machine.py", f"import {name}", f"core must not import {name}")
            for name in "os time random threading socket logging asyncio anyio structlog subprocess".split()
        ],
    ],
)
def test_a_forbidden_import_is_reported(tmp_path: Path, file: str, source: str, expected: str) -> None:
    reported = problems(write_package(tmp_path, {file: source}))
    assert len(reported) == 1
    assert expected in reported[0]


def test_a_report_names_file_and_line(tmp_path: Path) -> None:
    package = write_package(tmp_path, {"worker/loop.py": "import os\n\nfrom dspool import supervisor\n"})
    assert problems(package) == ["dspool/worker/loop.py:3: worker must not import supervisor (dspool.supervisor)"]


def test_allowed_imports_are_not_reported(tmp_path: Path) -> None:
    package = write_package(
        tmp_path,
        {
            "__init__.py": "if TYPE_CHECKING:\n    from dspool.pool.blocking import Pool\n",
            "__main__.py": "from dspool.cli import main\n",
            "errors.py": "from . import types\n",
            "types.py": "",
            "protocol/values.py": "from ..errors import EncodeError\nif TYPE_CHECKING:\n    import dspy\n",
            "worker/runtime.py": "import dspy\nfrom dspool.protocol import values\n",
            "worker/loop.py": "from . import stdio\ndef f():\n    import dspy\n    from .runtime import g\n",
            "supervisor/launch.py": "import anyio\nfrom dspool.protocol.frames import encode_frame\n",
            "pool/core/machine.py": "import heapq\nimport collections.abc\nimport msgspec\nfrom ...errors import X\n",
            "pool/core/__init__.py": "from .machine import PoolCore\n",
            "pool/blocking.py": "import os\nfrom dspool.supervisor import launch\nfrom .core.machine import PoolCore\n",
            "testing/fixtures.py": "import dspool\nfrom dspool import Pool\nfrom dspool.pool.core import machine\n",
            "cli/demo.py": "from dspool.testing import offline\nfrom dspool.worker import loop\n",
        },
    )
    assert problems(package) == []
