"""Values: what goes in comes out equal and of the same type, or an error says where it could not."""

from __future__ import annotations

import collections
import dataclasses
import enum
import inspect
import ipaddress
import math
import pathlib
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec.msgpack import Ext

from dspool.errors import EncodeError
from dspool.protocol import extensions, plain
from dspool.protocol.values import from_ext, to_plain, to_plain_once

pytestmark = pytest.mark.unit

_decoder = msgspec.msgpack.Decoder(ext_hook=from_ext)


def carried(value: Any) -> Any:
    """The value as the other end of a pipe gets it."""
    return _decoder.decode(msgspec.msgpack.encode(to_plain(value)))


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    HELLO = "hello"


class Text(str):
    def __str__(self) -> str:
        return "an impostor"


class Number(int):
    def __int__(self) -> int:
        return 0


class Ratio(float):
    pass


class Blob(bytes):
    def __bytes__(self) -> bytes:
        return b"an impostor"


class Moment(datetime):
    pass


class Never(datetime):
    """As pandas' NaT: a datetime by its class alone."""

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        return "NaT"


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any


class Record(msgspec.Struct):
    a: Any
    b: Any = msgspec.UNSET


class AttrsLike:
    __attrs_attrs__ = (types.SimpleNamespace(name="a"), types.SimpleNamespace(name="b"))

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


INDIA = timezone(timedelta(hours=5, minutes=30))
ODD_ZONE = timezone(timedelta(hours=-3, seconds=7, microseconds=5))

SAME = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64 - 1,
    -(2**63),
    1.5,
    -0.0,
    math.inf,
    "",
    "é漢\N{GRINNING FACE}\0",
    b"\x00\xff",
    [],
    {},
    (),
    set(),
    frozenset(),
    [1, "a", None, [2.0]],
    {"a": {"b": [1]}},
    {7: "a", 1.5: "b", True: "c", None: "d", b"e": "f"},
    (1, (2, [3, (4,)])),
    {1, "a", (2, 3), frozenset({4})},
    frozenset({1, 2}),
    {(1, 2): "tuple key", date(2025, 1, 1): {"deep": (1,)}, frozenset({1}): 1},
    {2**70: 1},
    2**64,
    -(2**63) - 1,
    2**127,
    -(2**127),
    10**1000,
    [2**64, 1],
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("1E+999999"),
    Decimal("Infinity"),
    datetime(2025, 1, 2, 3, 4, 5, 6),
    datetime(1, 1, 1),
    datetime(9999, 12, 31, 23, 59, 59, 999999),
    datetime(2025, 1, 2, tzinfo=UTC),
    datetime(2025, 1, 2, tzinfo=INDIA),
    datetime(2025, 1, 2, tzinfo=ODD_ZONE),
    date(2025, 1, 2),
    time(1, 2, 3, 4),
    time(1, 2, tzinfo=INDIA),
    timedelta(days=-3, microseconds=1),
    timedelta.max,
    timedelta.min,
    uuid.UUID(int=7),
    complex(1, -2),
]


def in_order(value: Any) -> Any:
    """A set's members in an order that is the same in every process: names of tests are."""
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else value


@pytest.mark.parametrize("value", SAME, ids=lambda value: f"{type(value).__name__}-{in_order(value)!r:.30}")
def test_a_value_comes_back_equal_and_with_its_type(value: Any) -> None:
    back = carried(value)
    assert back == value
    assert type(back) is type(value)
    assert carried([value, {"a": value}]) == [value, {"a": value}]


def test_signs_nans_and_what_is_within_keep_their_types_too() -> None:
    assert math.copysign(1, carried(-0.0)) == -1
    assert math.isnan(carried(math.nan))
    assert carried(Decimal("NaN")).is_nan()
    assert str(carried(Decimal("1.10"))) == "1.10"
    assert [type(item) for item in carried((1, True, 1.0, "1", b"1"))] == [int, bool, float, str, bytes]


@pytest.mark.parametrize("zone", [UTC, INDIA, ODD_ZONE])
def test_an_aware_datetime_keeps_its_offset(zone: tzinfo) -> None:
    moment = datetime(2025, 6, 1, 12, tzinfo=zone)
    assert carried(moment).utcoffset() == moment.utcoffset()
    assert carried(moment.timetz()).utcoffset() == moment.utcoffset()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (Text("a"), "a"),
        (Number(7), 7),
        (Number(2**70), 2**70),
        (Ratio(1.5), 1.5),
        (Blob(b"ab"), b"ab"),
        (Moment(2025, 1, 2), datetime(2025, 1, 2)),
        (Colour.RED, "red"),
        (Colour.PAIR, (1, 2)),
        (Level.LOW, 1),
        (Word.HELLO, "hello"),
        (Pair(1, [2]), (1, [2])),
        (Point(1, Point(2)), {"x": 1, "y": {"x": 2, "y": 0}}),
        (Record(1), {"a": 1}),
        (Record(1, (2,)), {"a": 1, "b": (2,)}),
        (AttrsLike(1, {2}), {"a": 1, "b": {2}}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (types.MappingProxyType({"a": Colour.RED}), {"a": "red"}),
        (collections.UserDict({"a": (1,)}), {"a": (1,)}),
        (collections.deque([1, (2,)]), [1, (2,)]),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (ipaddress.ip_address("127.0.0.1"), "127.0.0.1"),
        (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        ({Word.HELLO: 1, Text("b"): 2, Level.LOW: 3}, {"hello": 1, "b": 2, 1: 3}),
        ({Colour.PAIR: 1}, {(1, 2): 1}),
        ({Colour.RED}, {"red"}),
        ({Colour.PAIR}, {(1, 2)}),
        ({Frozen(1)}, [{"x": 1}]),
        ({(Frozen(1), 2)}, [({"x": 1}, 2)]),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_other_values_come_back_as_the_plain_data_they_stand_for(value: Any, expected: Any) -> None:
    back = carried(value)
    assert back == expected
    assert type(back) is type(expected)


def test_a_class_of_its_own_list_is_a_list() -> None:
    class Rows(list[Any]):
        pass

    assert type(carried(Rows([Rows([1])]))) is list


def test_what_is_plain_already_is_not_rebuilt() -> None:
    value = {"a": [1, {"b": None}], "c": ["x"] * 10, "d": 2**40}
    assert to_plain(value) is value
    ext = to_plain((1, 2))
    assert to_plain(ext) is ext


def test_only_what_changed_is_rebuilt_and_the_callers_own_stays_as_it_was() -> None:
    same: dict[str, Any] = {"x": [1, 2.0, "a"]}
    value = {"same": same, "list": [same, (1,), Word.HELLO], "other": {"k": Colour.RED, "l": Colour.RED}}
    fresh = to_plain(value)
    assert fresh["same"] is same
    assert fresh["list"][0] is same
    assert fresh["other"] == {"k": "red", "l": "red"}
    assert value["list"] == [same, (1,), Word.HELLO]
    assert value["other"] == {"k": Colour.RED, "l": Colour.RED}


def test_the_safety_net_converts_one_object() -> None:
    assert to_plain_once(Colour.RED) == "red"
    with pytest.raises(EncodeError, match="no plain form"):
        to_plain_once(object())


class Thing:
    pass


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> None: ...


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Thing(), r"^inputs is a <class '.*Thing'>, which has no plain form; put plain data in its place"),
        (
            {"a": [1, 2, 3, threading.Lock()]},
            r"^inputs\['a'\]\[3\] is a <class '_thread\.lock'>, which has no plain form",
        ),
        ({"a": Point(1, (0, Thing()))}, r"^inputs\['a'\]\.y\[1\] is a <class '.*Thing'>"),
        ({"a": {Frozen(Thing())}}, r"^inputs\['a'\]\[0\]\.x is a"),
        ({(1, 2): Thing()}, r"^inputs\[\(1, 2\)\] is a"),
        ({Frozen(1): 1}, r"^inputs has the key Frozen\(x=1\), which is no longer hashable"),
        ({Thing(): 1}, r"^inputs, key <.*Thing object.*> is a"),
        ({Colour.RED: 1, "red": 2}, r"^inputs has keys that are equal as plain data"),
        ([generator()], r"^inputs\[0\] is a <class 'builtins\.generator'>.*; make it a list"),
        (Thing, r"^inputs is a <class 'builtins\.type'>"),
        (2 ** (8 * extensions.MAX_NUMBER_BYTES), r"65,537 bytes, and 65,536 are carried"),
        (Decimal("1" * 65_537), r"65,537 digits, and 65,536 are carried"),
        (Never(2025, 1, 1), r"Never'> that can't be sent: ValueError: Invalid isoformat string: 'NaT'"),
        (("\ud800",), r"'builtins\.tuple'> that can't be sent: UnicodeEncodeError"),
        (Ext(99, b""), r"Ext'> that can't be sent: InvalidMessage: .*unknown ext code 99"),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_has_no_plain_form_is_named_with_its_place_and_what_to_do(value: Any, text: str) -> None:
    with pytest.raises(EncodeError, match=text):
        to_plain(value, "inputs")


def test_an_unawaited_coroutine_is_to_be_awaited() -> None:
    pending = coroutine()
    with pytest.raises(EncodeError, match="await it"):
        to_plain(pending)
    pending.close()


def test_the_users_own_exception_is_the_cause() -> None:
    class Broken(collections.UserDict[str, int]):
        def keys(self) -> Any:
            raise LookupError("disk on fire")

    with pytest.raises(EncodeError, match=r"value\[0\] is a .*Broken'> that can't be sent: LookupError") as caught:
        to_plain([Broken()])
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_key_that_cannot_even_be_printed_is_an_encode_error() -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise LookupError("no words")

    with pytest.raises(EncodeError, match="inputs can't be read to its end: no words"):
        to_plain({Unprintable(): 1}, "inputs")


def test_long_keys_are_cut_in_errors() -> None:
    with pytest.raises(EncodeError) as caught:
        to_plain({"k" * 10_000: Thing()})
    assert len(str(caught.value)) < 400


def loop_in(wrap: Callable[[list[Any]], Any]) -> list[Any]:
    loop: list[Any] = []
    loop.append(wrap(loop))
    return loop


@pytest.mark.parametrize(
    "wrap",
    [lambda loop: [loop], lambda loop: (loop,), lambda loop: {"a": loop, "b": loop}, lambda loop: Point(loop, loop)],
)
def test_what_holds_itself_is_refused(wrap: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(EncodeError, match="nested more than 200 deep, or holds itself") as caught:
        to_plain(loop_in(wrap))
    assert "[0]" in str(caught.value)
    assert len(str(caught.value)) < 300, "the path is cut"


def test_nesting_is_taken_to_its_limit_and_not_beyond() -> None:
    deep: Any = "bottom"
    for _ in range(plain.MAX_DEPTH):
        deep = [deep]
    assert carried([deep]) == [deep]
    with pytest.raises(EncodeError, match="nested"):
        to_plain([[deep]])


def test_a_stack_that_is_nearly_full_is_an_encode_error() -> None:
    deep: Any = "bottom"
    for _ in range(150):
        deep = [deep]

    def sink(calls: int) -> Any:
        return sink(calls - 1) if calls else to_plain(deep)

    with pytest.raises(EncodeError, match="value can't be read to its end: maximum recursion depth"):
        sink(sys.getrecursionlimit() - len(inspect.stack(0)) - 100)


def test_a_dict_that_another_thread_changes_meanwhile_is_an_encode_error() -> None:
    value: dict[str, Any] = {}

    class Meddler(enum.Enum):
        ONE = 1

        @property
        def value(self) -> int:
            shared["new"] = 1
            return 1

    shared = value
    shared["a"] = Meddler.ONE
    shared["b"] = 1
    with pytest.raises(EncodeError, match="value can't be read to its end: dictionary changed size"):
        to_plain(shared)
