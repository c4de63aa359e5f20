"""Whether objects are still what they were: the cheap look before every call, in place of the thorough one.

Rules:
    1. What counts is one comparison of dicts per object, made by the interpreter, which passes over identical values.
    2. Nothing is held that could lead back to the objects, so a program whose tools are its own methods is collected as
       ever: DSPy's own modules over plain data are held, any other object is referred to weakly.
    3. Saying "changed" too often costs time only; the thorough look then finds the same program.

Knows nothing of pools and programs; looks dspy up in sys.modules, never imports it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from dspool.pool.identity import ATOMS, loaded_dspy
from dspool.signals import let_through

UNWATCHED = frozenset({"history", "callbacks", "_engine_store"})
"""Grow with every call, and are not shipped."""
_DEPTH, _ITEMS, _DEMOS = 3, 1000, 100


class Watch:
    """Tells cheaply whether objects still hold what they held when it was made; built once, asked before every call.

    It sees attributes set or deleted; what was put into or taken out of their lists, dicts, tuples and sets, a few
    levels deep and up to 1000 items (in DSPy's own modules one level: config); a signature's instructions; and what
    up to 100 demos of a predictor hold, their own lists and dicts included.
    It does not see a change inside any other object, nor a value that took the place of an equal one.

    Args:
        things: objects with a `__dict__`.
    """

    __slots__ = ("_held", "_texts", "_weak")

    def __init__(self, things: Iterable[Any]) -> None:
        self._held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._weak: list[tuple[weakref.ref[Any], dict[str, Any]]] = []
        self._texts: list[tuple[type, str | None]] = []
        for thing in things:
            namespace = vars(thing)
            if isinstance(signature := namespace.get("signature"), type):
                self._texts.append((signature, signature.__doc__))
            self._held += [(demo, _picture(demo, 0)) for demo in _demos_in(namespace)]
            if _leads_nowhere(thing):
                self._held.append((namespace, {name: _copy(name, value) for name, value in namespace.items()}))
            else:
                self._weak.append((weakref.ref(thing), _picture(namespace, 0)))

    def unchanged(self) -> bool:
        """Whether everything is as it was.

        The picture stands left, where Python asks first: a user's `__eq__` is never called on what it holds weakly.
        """
        try:
            for namespace, picture in self._held:
                if picture != namespace:
                    return False
            for ref, picture in self._weak:
                if picture != ref().__dict__:
                    return False
            for signature, text in self._texts:
                if signature.__doc__ is not text:
                    return False
        except Exception as error:  # gone, or compared by an __eq__ that raises, or changed while we looked
            let_through(error)
            return False
        return True


class _Same:
    """Equal to one object alone, which it doesn't keep alive."""

    __slots__ = ("_ref",)

    def __init__(self, thing: Any) -> None:
        self._ref = weakref.ref(thing)

    def __eq__(self, other: object) -> bool:
        return other is not None and self._ref() is other  # None is what a dead reference gives

    __hash__ = None  # type: ignore[assignment]


def _leads_nowhere(thing: Any) -> bool:
    """Whether an object can be held without holding anything of the user's: DSPy's own, over plain data, or an LM."""
    kind = type(thing)
    if kind in loaded_dspy("LM"):
        return isinstance(thing.engine, str) and not thing.callbacks
    if kind in loaded_dspy("Predict"):
        return not thing.callbacks and (thing.lm is None or _leads_nowhere(thing.lm))
    if not isinstance(thing, loaded_dspy("Module")) or not kind.__module__.startswith("dspy."):
        return False
    return all(_is_plain(value) or _is_empty(value) or _leads_nowhere(value) for value in vars(thing).values())


def _demos_in(namespace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a predictor's demos hold. Optimizers and their users write into a demo that stays in its place."""
    demos = namespace.get("demos")
    for demo in demos[:_DEMOS] if type(demos) is list else ():
        store = vars(demo).get("_store") if isinstance(demo, loaded_dspy("Example")) else demo
        if type(store) is dict:
            yield store


def _is_plain(value: Any) -> bool:
    return type(value) in ATOMS or type(value) in (str, bytes) or isinstance(value, type)


def _is_empty(value: Any) -> bool:
    return type(value) in (list, dict) and not value


def _copy(name: str, value: Any) -> Any:
    """A list or dict with the same items, so that the original's changes show; any other value itself."""
    return value.copy() if type(value) in (list, dict) and name not in UNWATCHED and len(value) <= _ITEMS else value


def _picture(value: Any, depth: int) -> Any:
    """What equals `value` for as long as it is unchanged, and does not keep alive what may lead back to its owner."""
    kind = type(value)
    if _is_plain(value) or _leads_nowhere(value):
        return value
    if kind in (list, dict, tuple) and (depth > _DEPTH or len(value) > _ITEMS):
        return value
    if kind is dict:
        return {
            name: item if depth == 0 and name in UNWATCHED else _picture(item, depth + 1)
            for name, item in value.items()
        }
    if kind is list or kind is tuple:
        return kind(_picture(item, depth + 1) for item in value)
    if kind is set:
        return value.copy()
    try:
        return _Same(value)
    except TypeError:
        return value
