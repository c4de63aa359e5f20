"""What can't be pickled is named member by member."""

from __future__ import annotations

import copyreg
import functools
import io
import re
import socket
import sqlite3
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pydantic
import pytest

import dspool
from dspool.pool.pickling import pickled
from dspool.pool.unsendable import MOST_NAMED, unsendable
from dspool.testing.fake import FakeLauncher

pytestmark = pytest.mark.unit

LOCK = threading.Lock()


class Holder:
    """Holds whatever it is given."""

    def __init__(self, **members: Any) -> None:
        vars(self).update(members)

    def answer(self, text: str) -> str:
        return text


class Slotted:
    __slots__ = ("lock", "text")

    def __init__(self) -> None:
        self.lock, self.text = threading.Lock(), "x"


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    lock: Any = None


class Pair(NamedTuple):
    one: Any
    other: Any


class Careful(Holder):
    """Leaves its lock out of its pickle."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Nonsense:
    def __reduce__(self) -> Any:
        return 1, 2, 3


class Lists(list[Any]):
    """Is not pickled as what it is."""

    def __reduce__(self) -> Any:
        return list, (), None, iter([threading.Lock()])


def locked() -> Any:
    """Is sent by its name, whatever it uses."""
    return LOCK


def named(thing: Any, label: str = "self") -> list[str]:
    """The ways to what is named."""
    with pytest.raises(BaseException):  # noqa: B017, PT011  whatever: it can't be pickled
        pickled(thing)
    return [fault.partition(": ")[0] for fault in unsendable(thing, label).split("; ")]


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    """A connection."""
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """A socket."""
    with socket.socket() as made:
        yield made


def test_every_member_is_named_with_its_way_its_type_and_the_reason(
    database: sqlite3.Connection, sock: socket.socket
) -> None:
    thing = Holder(lock=LOCK, good=1, inner=Holder(db=database), tools={"a": [1, sock]}, pair=Pair(2, LOCK))
    assert unsendable(thing, "self").split("; ") == [
        "self.lock: a _thread.lock (cannot pickle '_thread.lock' object)",
        "self.inner.db: a sqlite3.Connection (cannot pickle 'sqlite3.Connection' object)",
        "self.pair[1]: a _thread.lock (cannot pickle '_thread.lock' object)",
        "self.tools['a'][1]: a socket.socket (cannot pickle 'socket' object)",
    ]


def test_a_file_that_is_written_to_is_named(tmp_path: Any) -> None:
    with open(tmp_path / "log", "w") as text, open(tmp_path / "data", "wb") as data:
        found = unsendable(Holder(text=text, data=data), "self")
    assert "self.text: an _io.TextIOWrapper (Cannot pickle files that are not opened for reading: w)" in found
    assert re.search(r"self\.data: an _io\.BufferedWriter \(cannot pickle '(_io\.)?BufferedWriter' ", found)


def test_only_what_a_pickle_would_hold_is_named() -> None:
    assert named(Careful(lock=LOCK, inner=Careful(lock=LOCK, event=LOCK))) == ["self.inner.event"]
    assert named(Holder(function=locked, lock=LOCK)) == ["self.lock"]


def test_members_are_found_in_all_that_holds_members() -> None:
    assert named(Slotted()) == ["self.lock"]
    assert named(Model(lock=LOCK)) == ["self.lock"]
    assert named(Holder(queue=deque([LOCK]))) == ["self.queue[0]"]
    assert named(OrderedDict(a=LOCK)) == ["self['a']"]
    assert named({1, LOCK})[0][:5] == "self["
    assert named(functools.partial(print, LOCK, file=LOCK)) == ["self.args[0]", "self.keywords['file']"]
    assert named(Holder(lock=LOCK).answer) == ["self.__self__.lock"]
    assert named(LOCK) == ["self"]


def test_members_are_found_in_functions_and_classes_that_go_by_value() -> None:
    lock = LOCK

    def inner(text: str, other: Any = LOCK, *, more: Any = LOCK) -> Any:
        return lock, text, other, more

    namespace: dict[str, Any] = {"inner": inner, "__name__": "__main__", "guard": LOCK}
    exec("def outer():\n    return [inner for _ in (lambda: guard)()]", namespace)
    found = named(namespace["outer"], "outer")
    assert found == [
        "outer, its global 'guard'",
        "outer, its global 'inner', its variable 'lock'",
        "outer, its global 'inner', the default of its 'other'",
        "outer, its global 'inner', the default of its 'more'",
    ]
    local = type("Local", (), {"lock": LOCK, "__module__": "__main__"})
    assert named(local()) == ["self.lock"]
    assert named(type("Below", (local,), {"__module__": "__main__"}), "Below") == ["Below, its base.lock"]


def test_cycles_end_and_a_member_is_named_at_each_of_its_places() -> None:
    thing = Holder(lock=LOCK)
    thing.child = Holder(parent=thing, same=LOCK)  # type: ignore[attr-defined]
    thing.ring = [thing]  # type: ignore[attr-defined]
    thing.ring.append(thing.ring)  # type: ignore[attr-defined]
    assert named(thing) == ["self.lock", "self.child.same"]


def test_only_so_many_are_named() -> None:
    found = unsendable(Holder(locks=[threading.Lock() for _ in range(5000)]), "self")
    assert found.count("a _thread.lock") == MOST_NAMED
    assert found.endswith("; and 990 more")  # it stops counting somewhere


def test_what_raises_of_its_own_is_named_and_the_rest_still_looked_at() -> None:
    thing = Holder(a=Raises(RuntimeError("not today")), b=Raises(SystemExit(3)), c=LOCK)
    found = unsendable(thing, "self")
    assert "self.a: a tests.unit.pool.test_unsendable.Raises (RuntimeError: not today)" in found
    assert "self.b: a tests.unit.pool.test_unsendable.Raises (SystemExit: 3)" in found
    assert "self.c: a _thread.lock" in found
    with pytest.raises(KeyboardInterrupt):
        unsendable(Holder(a=Raises(KeyboardInterrupt())), "self")


class Hostile:
    """Raises whatever it is asked."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise ValueError("not even that")

    def __repr__(self) -> str:
        raise ValueError("no text")

    def __reduce__(self) -> Any:
        raise NoText


class NoText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text either")


class NoItems(dict[str, Any]):
    def items(self) -> Any:
        raise ValueError("no items")


class NoRepr:
    def __repr__(self) -> str:
        raise ValueError("no text")


def more_defaults(one: Any) -> Any:
    """Has more of them than arguments."""
    return one


@pytest.mark.parametrize(
    ("hostile", "at"),
    [
        (lambda: Hostile(LOCK), "self.hostile: "),
        (lambda: {NoRepr(): LOCK}, "self.hostile[something that can't be shown]: a _thread.lock"),
        (lambda: NoItems(lock=LOCK), "self.hostile: a tests.unit.pool.test_unsendable.NoItems (ValueError: no items)"),
        (lambda: [Hostile(LOCK)], "self.hostile[0]: "),
    ],
)
def test_hostile_members_hide_nothing_but_themselves(hostile: Callable[[], Any], at: str) -> None:
    found = unsendable(Holder(first=LOCK, hostile=hostile(), last=[threading.Lock()]), "self")
    assert "self.first: a _thread.lock" in found
    assert at in found
    assert "self.last[0]: a _thread.lock" in found


def test_defaults_beyond_the_arguments_are_no_trouble() -> None:
    function = types.FunctionType(more_defaults.__code__, {"__name__": "__main__"}, "unknown")
    function.__defaults__ = (1, 2, LOCK)
    assert "a _thread.lock" in unsendable(Holder(function=function, last=threading.Lock()), "self")


def test_where_there_are_very_many_the_first_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def reduced(lock: Any) -> Any:
        nonlocal looks
        looks += 1
        raise TypeError("cannot pickle it")

    monkeypatch.setitem(copyreg.dispatch_table, type(LOCK), reduced)
    unsendable(Holder(locks=[threading.Lock() for _ in range(5000)]), "self")
    assert looks < 1100


@pytest.mark.slow
def test_what_is_no_single_members_fault_is_told_as_it_is() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "excessively deep recursion" in unsendable(Holder(deep=deep), "self")
    assert unsendable(Holder(a=Nonsense()), "self").startswith("self: PicklingError: ")


def test_a_member_to_which_there_is_no_way_is_named_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(Holder(items=Lists())) == ["somewhere in self"]
    monkeypatch.setitem(copyreg.dispatch_table, io.StringIO, lambda made: (io.StringIO, (LOCK,)))
    assert named(Holder(text=io.StringIO())) == ["self.text"]


def test_a_pool_is_one_member_with_advice_of_its_own() -> None:
    # not ten of its locks and sockets, "and 165 more"
    with dspool.Pool(workers=1, launcher=FakeLauncher()) as pool, dspool.Executor(pool=pool) as executor:
        for each in (pool, executor):
            assert named(Holder(inner=Holder(pool=each))) == ["self.inner.pool"]
            found = unsendable(Holder(pool=each), "self")
            assert "a program calls another directly, or is given what pool.wrap() makes" in found
