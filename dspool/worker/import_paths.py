"""What "package.module:attribute" names."""

from __future__ import annotations

import importlib
from typing import Any


def import_preload(module: str) -> None:
    """Import a module of `preload=`.

    Raises:
        BaseException: whatever the import raises, with a note on what asked for it.
    """
    try:
        importlib.import_module(module)
    except BaseException as error:
        error.add_note(f"This was the import of {module!r} for preload=.")
        raise


def import_attribute(path: str) -> Any:
    """What an import path names; the attribute may have dots.

    Raises:
        ValueError: the path has another form.
        ImportError: there is no such module or attribute, or what the module imports isn't there.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"an import path is written package.module:attribute, not {path!r}")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name and module_name.endswith(".py"):
            named = f"{module_name.removesuffix('.py')}:{attribute}"
            raise ImportError(f"{path!r} can't be imported: {error}. A path has no .py: {named!r}") from error
        raise
    for name in attribute.split("."):
        try:
            target = getattr(target, name)
        except AttributeError as error:
            raise ImportError(f"{path!r} can't be imported: {error}") from error
    return target
