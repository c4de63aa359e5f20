"""What "package.module:attribute" names."""

from __future__ import annotations

import importlib
from typing import Any


def import_attribute(path: str) -> Any:
    """What an import path names; the attribute may have dots.

    Raises:
        ValueError: the path has another form.
        ImportError: there is no such module or attribute.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ValueError(f"an import path is written package.module:attribute, not {path!r}")
    target: Any = importlib.import_module(module_name)
    for name in attribute.split("."):
        try:
            target = getattr(target, name)
        except AttributeError as error:
            raise ImportError(f"{path!r} can't be imported: {error}") from error
    return target
