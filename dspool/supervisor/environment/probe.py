"""What runs in the workers' interpreter to say what that is: `python -c THIS`, with JSON on stdin.

Rules:
    1. It needs nothing but the standard library, and not dspool: what is to be found out is whether that is there. It
       runs on Pythons that are too old, to say that they are.
    2. It sees what a worker sees: the manager's sys.path first, what only this interpreter has after it.
    3. Whatever else prints, in .pth files or imported modules, its own lines begin with MARK.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

MARK = "dspool-probe "


def main() -> None:
    """Answer the question on stdin with lines of JSON on stdout."""
    import json

    question = json.loads(sys.stdin.read())
    wanted = question["sys_path"]
    own = sys.path[:] = sys.path[1:] if sys.path[:1] == [""] else list(sys.path)
    dspool = version_of_dspool()
    sys.path[:] = wanted + [folder for folder in own if folder not in wanted]
    answers: Iterable[Any] = (
        [facts(question["packages"], dspool)] if "packages" in question else try_imports(question["imports"])
    )
    for answer in answers:
        sys.__stdout__.write("\n" + MARK + json.dumps(answer) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


def version_of_dspool() -> str | None:
    """The version of dspool that is found without the manager's sys.path, as a worker's start finds it.

    None: there is none. Empty: there is one without a version, a copy of its source.
    """
    from importlib.util import find_spec

    if find_spec("dspool") is None:
        return None
    try:
        from importlib import metadata

        return metadata.version("dspool")
    except ImportError:  # PackageNotFoundError is one too
        return ""


def facts(packages: list[str], dspool: str | None) -> dict[str, Any]:
    """What this interpreter is and has.

    Args:
        packages: names of distributions.
        dspool: from version_of_dspool().
    """
    import platform

    versions: dict[str, str | None] = dict.fromkeys(packages)
    requires: dict[str, list[str]] = {}
    for name in packages:
        try:
            from importlib import metadata

            versions[name] = metadata.version(name)
            requires[name] = list(metadata.requires(name) or [])
        except ImportError:  # it isn't installed, or this is a Python before 3.8
            continue
    return {
        "executable": sys.executable,
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "dspool": dspool,
        "versions": versions,
        "requires": requires,
        "code_files": code_files(),
    }


def code_files() -> list[tuple[str, list[str]]]:
    """The .pth files of this interpreter that run code whenever it starts: path and lines of code."""
    import os
    import site

    folders = list(getattr(site, "getsitepackages", list)())
    if getattr(site, "ENABLE_USER_SITE", False):
        folders.append(site.getusersitepackages())
    found: list[tuple[str, list[str]]] = []
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if not name.endswith(".pth") or name.startswith("."):
                continue
            path = os.path.join(folder, name)
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    code = [line.rstrip("\n") for line in file if line.startswith(("import ", "import\t"))]
            except OSError:
                continue
            if code and (path, code) not in found:
                found.append((path, code))
    return found


def try_imports(modules: list[str]) -> Iterator[list[str]]:
    """Import these in order: [module, ""] or [module, what went wrong] each; the first failure ends it."""
    import importlib

    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:
            yield [module, type(error).__name__ + ": " + str(error)]
            return
        yield [module, ""]


if __name__ == "__main__":
    main()
