"""The scenarios there are: each module of `tests.chaos.scenarios`, which has a function of its own name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable

import tests.chaos.scenarios
from tests.chaos.finding import Finding, Plan

Scenario = Callable[[Plan], Finding]


def names() -> list[str]:
    """The scenarios' names, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(tests.chaos.scenarios.__path__))


def scenario(name: str) -> Scenario:
    """The function of that name."""
    found: Scenario = getattr(importlib.import_module(f"tests.chaos.scenarios.{name}"), name)
    return found


def gist(name: str) -> str:
    """What a scenario does, in a line: the first of its module's docstring."""
    module = importlib.import_module(f"tests.chaos.scenarios.{name}")
    return (module.__doc__ or "").strip().partition("\n")[0]


def chosen(wanted: Iterable[str]) -> list[str]:
    """The wanted scenarios, each once; all of them where none is named.

    Raises:
        KeyError: there is none of a name; the argument is the name.
    """
    known = names()
    for name in wanted:
        if name not in known:
            raise KeyError(name)
    return list(dict.fromkeys(wanted)) or known
