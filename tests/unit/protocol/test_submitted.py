"""The program that an Executor's calls run, as a worker has it: initializers, results, pickles, shared globals."""

from __future__ import annotations

import enum
import pickle
import sys
import types
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import cloudpickle
import pytest

from dspool.protocol import submitted
from dspool.protocol.submitted import MAX_ENTRIES, PICKLE, CallNotLoaded, Entry, NotPlain, dump, enter, load, plain
from dspool.protocol.values import to_plain

pytestmark = pytest.mark.unit

RAN: list[Any] = []


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker that has loaded nothing yet."""
    monkeypatch.setattr(submitted, "_entered", {})
    monkeypatch.setattr(submitted, "_namespaces", {})
    RAN.clear()


def call(function: Any, *args: Any, **kwargs: Any) -> bytes:
    return pickle.dumps((function, args, kwargs))


def fail(text: str) -> None:
    raise ValueError(text)


class Pair(NamedTuple):
    first: int


class Colour(enum.IntEnum):
    RED = 1


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no")


def raise_unpicklable() -> None:
    raise Unpicklable("x")


# --- entries ----------------------------------------------------------------------------------------------------------


def test_loading_an_entry_runs_its_initializer_once() -> None:
    entry = Entry("a", pickle.dumps((note, ("hello",))), False)
    data = pickle.dumps(entry)
    first, second = pickle.loads(data), pickle.loads(data)
    assert RAN == ["hello"]
    assert first is second
    assert first.initializer is None, "it is kept nowhere once it ran"
    assert first(call(pow, 2, exp=3)) == 8


def note(text: str) -> None:
    RAN.append(text)


def test_an_initializer_that_failed_is_run_again() -> None:
    data = pickle.dumps(Entry("a", pickle.dumps((fail, ("no",))), False))
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            pickle.loads(data)
    assert submitted._entered == {}


def test_only_so_many_entries_are_remembered() -> None:
    for number in range(MAX_ENTRIES + 5):
        enter(str(number), None, False)
    assert len(submitted._entered) == MAX_ENTRIES
    assert "0" not in submitted._entered
    assert str(MAX_ENTRIES + 4) in submitted._entered


def test_a_call_that_cannot_be_unpickled_says_so() -> None:
    with pytest.raises(CallNotLoaded, match="UnpicklingError"):
        enter("a", None, True)(b"junk")


def test_a_chunk_is_a_call_of_each_row() -> None:
    assert submitted.run_chunk(pow, [(2, 1), (2, 2)]) == [2, 4]


# --- results ----------------------------------------------------------------------------------------------------------

FAITHFUL = [
    None, True, 1, 2**70, 1.5, "x", b"x", 1j, Decimal("1.0"), UUID(int=3), date(2024, 1, 2), time(1, 2),
    datetime(2024, 1, 2, tzinfo=UTC), timedelta(seconds=3), [], (), {}, set(), frozenset({1}),
    [1, (2, [3, {"a": {4, 5}}])], {1: [Decimal(1)], None: (), (1, (2,)): {"x"}}, {frozenset({(1, 2)})},
]  # fmt: skip


@pytest.mark.parametrize("value", FAITHFUL, ids=repr)
def test_plain_data_come_back_as_they_are(value: Any) -> None:
    assert plain(value) is value
    to_plain(value)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Pair(1), "the result is a "),
        (Colour.RED, "the result is a "),
        ([1, Pair(1)], "the result[1] is a "),
        ((1, [Pair(1)]), "the result[1][0] is a "),
        ({"k": {"l": Pair(1)}}, "the result['k']['l'] is a "),
        ({Pair(1): 1}, "the result, key Pair(first=1) is a "),
        ({(0, Pair(1)): 1}, "the result, key (0, Pair(first=1))[1] is a "),
        ({Pair(2)}, "the result, element Pair(first=2) is a "),
        (frozenset({(Colour.RED,)}), "[0] is a "),
        (range(3), "the result is a builtins.range, which would not come back as what it is"),
    ],
)
def test_anything_else_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(NotPlain, match="unpickle_results=True") as caught:
        plain(value)
    assert place in str(caught.value)


def test_what_holds_itself_is_left_to_who_encodes_it() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert plain(ring) is ring


def test_without_pickles_an_exception_carries_none() -> None:
    with pytest.raises(ValueError, match="no") as caught:
        enter("a", None, False)(call(fail, "no"))
    assert PICKLE not in caught.value.__dict__


def test_with_pickles_results_and_exceptions_are_pickled() -> None:
    entry = enter("a", None, True)
    assert pickle.loads(entry(call(Pair, 3))) == Pair(3)
    assert pickle.loads(entry(call(int, 3))) == 3
    with pytest.raises(ValueError, match="no") as caught:
        entry(call(fail, "no"))
    again = pickle.loads(caught.value.__dict__[PICKLE])
    assert (type(again), again.args) == (ValueError, ("no",))


def test_an_exception_that_cannot_be_pickled_carries_nothing() -> None:
    with pytest.raises(Unpicklable) as caught:
        enter("a", None, True)(call(raise_unpicklable))
    assert PICKLE not in caught.value.__dict__


# --- shared globals ---------------------------------------------------------------------------------------------------

SCRIPT = """
connection = None
cache = {}
def connect(name):
    global connection
    connection = name
def helper():
    return "old"
def work(key):
    cache[key] = cache.get(key, 0) + 1
    return connection, cache[key], helper(), plus(1)
def plus(number):
    return number + step
def add(step):
    return lambda number: number + step
step = 1
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module that no worker can import, as the manager has it."""
    module = types.ModuleType("a_script")
    monkeypatch.setitem(sys.modules, "a_script", module)
    exec(SCRIPT, vars(module))
    monkeypatch.setattr(submitted, "_namespaces", {})
    cloudpickle.register_pickle_by_value(module)
    try:
        yield module
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_functions_by_value_share_their_modules_globals(script: types.ModuleType) -> None:
    connect, arguments = load(cloudpickle.dumps((script.connect, ("db",))))
    connect(*arguments)
    for times in (1, 2):
        assert load(cloudpickle.dumps(script.work))("a") == ("db", times, "old", 2)
    assert (script.connection, script.cache) == (None, {}), "the manager's own are left alone"


def test_code_comes_anew_with_each_call_and_data_stay(script: types.ModuleType) -> None:
    assert load(cloudpickle.dumps(script.work))("a") == (None, 1, "old", 2)
    exec("def helper(): return 'new'", vars(script))
    vars(script)["step"] = 100
    assert load(cloudpickle.dumps(script.work))("b") == (None, 1, "new", 2)


def test_a_closure_keeps_its_own_variables(script: types.ModuleType) -> None:
    one, two = (load(cloudpickle.dumps(script.add(step))) for step in (1, 2))
    assert (one(10), two(10)) == (11, 12)


def test_what_is_no_function_of_cloudpickles_is_loaded_as_ever() -> None:
    assert load(dump(Pair(1))) == Pair(1)
    assert load(cloudpickle.dumps({"a": [1]})) == {"a": [1]}
