"""Values as plain JSON, and what JSON can't have."""

from __future__ import annotations

import dataclasses
import enum
import math
import uuid
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from dspool.errors import EncodeError
from dspool.protocol import values
from dspool.protocol.values import to_json

pytestmark = pytest.mark.unit

INDIA = timezone(timedelta(hours=5, minutes=30))


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 1.5, None, True, "x"]}, {"a": [1, 1.5, None, True, "x"]}),
        ((1, {2}, frozenset({3})), [1, [2], [3]]),
        (b"hi", "aGk="),
        (2**64 - 1, 2**64 - 1),
        (2**64, "18446744073709551616"),
        (Decimal("1.10"), "1.10"),
        (uuid.UUID(int=0), "00000000-0000-0000-0000-000000000000"),
        (datetime(2025, 1, 2, tzinfo=INDIA), "2025-01-02T00:00:00+05:30"),
        (date(2025, 1, 2), "2025-01-02"),
        (time(1, 2), "01:02:00"),
        (timedelta(hours=1), "PT3600S"),
        (Point(Colour.RED, (1, 2)), {"x": "red", "y": [1, 2]}),
        ({1: 1, True + 1: 2, 1.5: 3, None: 4, False: 5}, {"1": 1, "2": 2, "1.5": 3, "null": 4, "false": 5}),
        ({date(2025, 1, 2): 1, Colour.RED: 2}, {"2025-01-02": 1, "red": 2}),
    ],
    ids=lambda value: f"{type(value).__name__}-{value!r:.20}",
)
def test_a_value_as_json(value: Any, expected: Any) -> None:
    assert to_json(value) == expected
    assert msgspec.json.decode(msgspec.json.encode(to_json(value))) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [0.5, math.nan]}, r"^result\['a'\]\[1\] is nan, which JSON has no notation for"),
        ((0, (math.inf,)), r"^result\[1\]\[0\] is inf"),
        ({"z": 1j}, r"^result\['z'\] is a complex number"),
        ({1: "a", "1": "b"}, r"^result has keys that are equal as JSON"),
        ({(1, 2): "a"}, r"^result\[\(1, 2\)\] has a key that is a tuple or set"),
        ({math.nan: "a"}, r"^result\[nan\] is nan"),
        ([object()], r"^result\[0\] is a .*object'>"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_what_json_cannot_have_is_refused(value: Any, text: str) -> None:
    with pytest.raises(EncodeError, match=text):
        to_json(value, "result")


def test_json_on_a_stack_that_is_nearly_full_is_an_encode_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(plain: Any) -> Any:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(values, "_json", overflow)
    with pytest.raises(EncodeError, match="value can't be read to its end"):
        to_json([])
