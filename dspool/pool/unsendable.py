"""Which members of an object can't be pickled: all of them, each with the way to it and the reason.

    self.lock: a _thread.lock (cannot pickle '_thread.lock' object); self.inner.db: a sqlite3.Connection (...)

Rules:
    1. Only what a pickle would hold is at fault: what an object's __getstate__ or __reduce__ leaves out is not named.
    2. The object is gone through once, by the pickler itself: each part that can't be taken apart is noted, and left
       out so that the rest is seen too. Cycles end as they do in any pickle.
    3. A member that stands in several places is named at each.
    4. Whatever an object's own methods raise meanwhile costs the part of the answer that they were asked for.

Looked for only when pickling has failed.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import cloudpickle

from dspool.errors import EncodeError
from dspool.pool.identity import class_parts, import_path, names_of
from dspool.pool.pickling import Pickler, dump, pickled
from dspool.signals import let_through

MOST_NAMED = 10
WHAT_TO_DO = (
    "Make such things where they are used, at the first call, or leave them out in __getstate__; or pass the program "
    'by its import path, "package.module:attribute": each worker then makes its own'
)
"""With members of a program."""
A_POOL_STAYS = "a pool stays in its own process: a program calls another directly, or is given what pool.wrap() makes"
"""Why it can't be pickled. A wrapper can: in a worker it is the plain program."""
_MOST_FOUND = 1000
_MOST_VISITED = 100_000
"""Objects that are gone through on the way to the members: they have been pickled, so there is an end to them."""
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})

Part = tuple[str, Any]
"""What is added to the way, and what is there."""


def pickled_or_named(thing: Any, label: str, refusal: str, advice: str = "") -> bytes:
    """As pickled().

    Args:
        thing: any object.
        label: what the way to a member begins with.
        refusal: of which the error is to speak, such as "the initializer can't be pickled".
        advice: what to do about it.

    Raises:
        EncodeError: it can't be pickled; the text names the members at fault.
    """
    try:
        return pickled(thing)
    except Exception as error:
        let_through(error)
        text = f"{refusal}, because of {unsendable(thing, label)}"
        raise EncodeError(f"{text}. {advice}" if advice else text) from error


def unsendable(thing: Any, label: str, without_lm: Collection[int] = ()) -> str:
    """The members of an object that can't be pickled, as text: at most MOST_NAMED, and how many more there are.

    Args:
        thing: what couldn't be pickled.
        label: what the way to a member begins with.
        without_lm: as for pickled().
    """
    search = _Search(without_lm)
    whole: BaseException | None = None
    try:
        dump(search, thing)
    except Exception as error:  # no single member's: nested too deep, or a reduction that is none
        let_through(error)
        whole = error
    faults = [f"{way}: {_text(part, _named)} ({_reason(error)})" for way, part, error in _found(search, thing, label)]
    if not faults:
        return f"{label}: {'' if whole is None else type(whole).__name__}: {_text(whole)}"
    more = len(faults) - MOST_NAMED
    return "; ".join(faults[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


class _Enough(Exception):
    """So many were found that nobody wants to know of further ones."""


class _Nowhere:
    """A file that keeps nothing: the object may hold a lot."""

    def write(self, data: Any) -> int:
        return len(data)


class _Search(Pickler):
    """A pickler that goes on after what can't be pickled."""

    def __init__(self, without_lm: Collection[int]) -> None:
        super().__init__(_Nowhere(), without_lm)
        self.faults: dict[int, tuple[Any, BaseException]] = {}
        self.reductions: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        """By the object's id, which stays its own as long as it is in here."""

    def reducer_override(self, thing: Any) -> Any:
        try:
            reduced = super().reducer_override(thing)
            if reduced is NotImplemented and not isinstance(thing, type | types.FunctionType):
                reduced = self._reduced(thing)
        except RecursionError:
            raise  # of a pickle that nests too deep, whatever part is its deepest
        except (Exception, SystemExit) as error:
            let_through(error)
            if len(self.faults) >= _MOST_FOUND:
                raise _Enough from None
            self.faults[id(thing)] = (thing, error)
            return dict, ()
        if isinstance(reduced, tuple) and len(self.reductions) < _MOST_VISITED:
            self.reductions[id(thing)] = (thing, reduced)
        return reduced

    def _reduced(self, thing: Any) -> Any:
        reducer = self.dispatch_table.get(type(thing))
        reduced = thing.__reduce_ex__(cloudpickle.DEFAULT_PROTOCOL) if reducer is None else reducer(thing)
        if isinstance(reduced, tuple) and len(reduced) > 1 and isinstance(reduced[1], tuple):
            return reduced
        return NotImplemented  # the name of a global, or nothing that makes sense: the pickler says


def _found(search: _Search, thing: Any, label: str) -> Iterator[tuple[str, Any, BaseException]]:
    """The members at fault with the way to each, the nearest first; at last those to which no way was found."""
    unplaced = dict(search.faults)
    if id(thing) in unplaced:
        yield label, *unplaced.pop(id(thing))
    ahead: deque[tuple[str, Any]] = deque([(label, thing)])
    visited = {id(thing)}
    while ahead and len(visited) < _MOST_VISITED:
        way, whole = ahead.popleft()
        for step, part in _as_far_as_they_go(_parts(whole, search)):
            if id(part) in search.faults:
                yield way + step, *search.faults[id(part)]
                unplaced.pop(id(part), None)
            elif type(part) not in _ATOMS and id(part) not in visited:
                visited.add(id(part))
                ahead.append((way + step, part))
    for part, error in unplaced.values():
        yield f"somewhere in {label}", part, error


def _as_far_as_they_go(parts: Iterator[Part]) -> Iterator[Part]:
    try:
        yield from parts
    except Exception as error:  # of a class's own items(), say
        let_through(error)


def _parts(thing: Any, search: _Search) -> Iterator[Part]:
    """What an object consists of, for its pickle."""
    if isinstance(thing, dict):
        yield from ((f"[{_text(key, repr):.60}]", part) for key, part in list(thing.items()))
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from ((f"[{number}]", part) for number, part in enumerate(list(thing)))
    if isinstance(thing, types.MethodType):
        yield from ((".__self__", thing.__self__), (".__func__", thing.__func__))
    elif isinstance(thing, functools.partial):
        yield from ((".func", thing.func), (".args", thing.args), (".keywords", thing.keywords))
    elif isinstance(thing, types.FunctionType):
        if import_path(thing) is None:
            yield from _of_function(thing)
    elif isinstance(thing, type):
        if import_path(thing) is None:
            yield from ((f".{name}", part) for name, part in class_parts(thing))
            yield from ((", its base", base) for base in thing.__bases__)
    elif id(thing) in search.reductions:
        yield from _of_reduction(*search.reductions[id(thing)])


def _of_function(function: types.FunctionType) -> Iterator[Part]:
    code, namespace = function.__code__, function.__globals__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f", its variable {name!r}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in dict.fromkeys(names_of(code)):
        if name in namespace:
            yield f", its global {name!r}", namespace[name]
    defaults = function.__defaults__ or ()
    names = code.co_varnames[max(0, code.co_argcount - len(defaults)) : code.co_argcount]
    for name, part in itertools.chain(zip(names, defaults, strict=False), (function.__kwdefaults__ or {}).items()):
        yield f", the default of its {name!r}", part
    for name, part in vars(function).items():
        yield f".{name}", part


def _of_reduction(thing: Any, reduced: tuple[Any, ...]) -> Iterator[Part]:
    """Attributes by name; what else it is made again with stands for the object itself."""
    _, arguments, state = [*reduced, None][:3]
    states = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for each in states:
        if isinstance(each, dict):
            inner = each.get("__dict__")  # as pydantic's models have it
            for name, part in {**each, **(inner if isinstance(inner, dict) else {})}.items():
                if part is not inner:
                    yield f".{name}", part
        elif each is not None:
            yield "", each
    if not isinstance(thing, tuple | set | frozenset):  # of which it is the items
        yield from (("", part) for part in arguments if part is not thing)
    yield "", type(thing)


def _named(part: Any) -> str:
    kind = part if isinstance(part, type) else type(part)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    article = "an" if name.lstrip("_")[:1].lower() in tuple("aeio") else "a"
    return f"the class {name}" if isinstance(part, type) else f"{article} {name}"


def _reason(error: BaseException) -> str:
    plain = isinstance(error, TypeError) or type(error).__name__ == "PicklingError"
    return _text(error) if plain else f"{type(error).__name__}: {_text(error)}"


def _text(thing: Any, form: Callable[[Any], str] = str) -> str:
    """A form of it that its own class may have made; cut."""
    try:
        return f"{form(thing):.300}"
    except Exception as error:
        let_through(error)
        return "something that can't be shown"
