"""The calls of an Executor: what they are on the wire, and what becomes of them in a worker.

All calls of one executor run one program, its Entry. Loading that runs the executor's initializer, once per worker;
calling it with a pickled (function, args, kwargs) makes the call.

Rules:
    1. A result comes back as what it is or not at all. Plain data and the types that have an extension do so; anything
       else, also what the pool's own calls would turn into a dict, is refused by name (NotPlain).
    2. With `pickles`, which the executor's owner has to ask for, results and exceptions travel as pickles instead.
    3. Functions that are pickled by value share the globals of the module they came from, so that the initializer of a
       script sets what the script's functions see, and a cache of theirs fills. Each call brings the functions and
       classes among them anew; data come once and stay, as in a process that has imported the script.

Used by both ends: the manager makes entries and calls, the worker runs them. cloudpickle is imported when it is needed.
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

PICKLE = "__dspool_pickle__"
"""Where an exception carries its pickle until it is described."""
MAX_ENTRIES = 1024
"""Executors whose initializers a worker remembers to have run."""
_MAX_DEPTH = 200
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_FAITHFUL = _ATOMS | {complex, datetime, date, time, timedelta, Decimal, UUID}

_CODE = (types.FunctionType, types.ModuleType, type)

_entered: dict[str, Entry] = {}
_namespaces: dict[tuple[Any, Any], dict[str, Any]] = {}
"""(name, file) of a module -> the globals of its functions that came by value."""


class NotPlain(TypeError):
    """A result would not come back as what it is."""


class CallNotLoaded(Exception):
    """A call's function or arguments can't be unpickled in the worker. Nothing was called."""


class Entry:
    """The program of an executor.

    Args:
        token: the executor's own name, which no other has.
        initializer: a pickled (function, args), or None.
        pickles: whether results and exceptions travel as pickles.
    """

    def __init__(self, token: str, initializer: bytes | None, pickles: bool) -> None:
        self.token = token
        self.initializer = initializer
        self.pickles = pickles

    def __reduce__(self) -> Any:
        return enter, (self.token, self.initializer, self.pickles)

    def __call__(self, call: bytes) -> Any:
        """Make a call; give its result as it travels.

        Raises:
            CallNotLoaded: the call can't be unpickled.
            NotPlain: the result can't travel.
            BaseException: whatever the function raises, with its pickle where pickles travel.
        """
        try:
            function, args, kwargs = load(call)
        except BaseException as error:  # SystemExit too: nothing was called
            raise CallNotLoaded(f"{type(error).__name__}: {error}") from error
        try:
            value = function(*args, **kwargs)
            return dump(value) if self.pickles else plain(value)
        except BaseException as error:
            if self.pickles:
                _attach(error)
            raise


def enter(token: str, initializer: bytes | None, pickles: bool) -> Entry:
    """The entry of that executor; its initializer is run where that wasn't done yet in this process.

    Raises:
        BaseException: whatever the initializer raises. It is run again the next time.
    """
    entry = _entered.get(token)
    if entry is None:
        if initializer is not None:
            function, args = load(initializer)
            function(*args)
        entry = _entered[token] = Entry(token, None, pickles)
        if len(_entered) > MAX_ENTRIES:
            del _entered[next(iter(_entered))]
    return entry


def run_chunk(function: Callable[..., Any], rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call the function with each row's arguments: a chunk of map()."""
    return [function(*row) for row in rows]


# --- results ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The value, if it comes back from its way as what it is.

    Raises:
        NotPlain: it doesn't; the text says which part of it, and what to do.
    """
    odd = _odd_part(value, 0)
    if odd is None:
        return value
    place, kind = odd
    raise NotPlain(
        f"the result{place} is a {kind.__module__}.{kind.__qualname__}, which would not come back as what it is. "
        "Return plain data (None, bool, int, float, str, bytes, list, tuple, dict, set, datetime, Decimal, UUID), or "
        "make the executor with unpickle_results=True, which unpickles in its own process what its workers return"
    )


def _odd_part(value: Any, depth: int) -> tuple[str, type] | None:
    """Where in a value there is something that doesn't come back, and what it is."""
    kind = type(value)
    if kind in _FAITHFUL or depth > _MAX_DEPTH:  # what is nested deeper is refused where it is encoded
        return None
    if kind is dict:
        return _odd_among(value, ((f", key {key!r:.60}", key) for key in value), depth) or _odd_among(
            value.values(), ((f"[{key!r:.60}]", part) for key, part in value.items()), depth
        )
    if kind is list or kind is tuple:
        return _odd_among(value, ((f"[{number}]", part) for number, part in enumerate(value)), depth)
    if kind is set or kind is frozenset:
        return _odd_among(value, ((f", element {part!r:.60}", part) for part in value), depth)
    return "", kind


def _odd_among(parts: Iterable[Any], placed: Iterable[tuple[str, Any]], depth: int) -> tuple[str, type] | None:
    if _FAITHFUL.issuperset(map(type, parts)):
        return None
    for place, part in placed:
        odd = _odd_part(part, depth + 1)
        if odd is not None:
            return place + odd[0], odd[1]
    return None


def _attach(error: BaseException) -> None:
    """Let the exception carry its pickle. Where it has none, it is told of in words alone."""
    try:
        data = dump(error)
    except BaseException:
        return
    error.__dict__[PICKLE] = data


# --- pickles ----------------------------------------------------------------------------------------------------------


def dump(value: Any) -> bytes:
    """A result's pickle.

    Raises:
        BaseException: whatever a part of it raises.
    """
    if type(value) in _ATOMS:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return data


def load(data: bytes) -> Any:
    """What a call or an initializer is a pickle of.

    Raises:
        BaseException: whatever a part of it raises.
    """
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    """Functions that come by value share the globals of their module (rule 3)."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == "cloudpickle.cloudpickle":
            if name == "_make_function":
                return lambda code, namespace, *rest: found(code, _namespace(namespace), *rest)
            if name == "_function_setstate":
                return lambda function, state: found(function, _settled(function, state))
        return found


def _namespace(fresh: dict[str, Any]) -> dict[str, Any]:
    """The globals that a function of this module has here."""
    return _namespaces.setdefault((fresh.get("__name__"), fresh.get("__file__")), fresh)


def _settled(function: Any, state: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """A function's state without the globals that it brings: those are set here, where they may be."""
    own, slots = state
    known: dict[str, Any] = function.__globals__
    for name, value in slots["__globals__"].items():
        if name not in known or isinstance(value, _CODE):
            known[name] = value
    return own, {**slots, "__globals__": {}}
