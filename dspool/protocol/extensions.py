"""Ext types: what MessagePack has no type for, in as few bytes as it takes.

    code  value                    payload
       1  tuple                    array of the elements
       2  set                      array of the elements
       3  frozenset                array of the elements
       4  dict with keys that      array: key, value, key, value, ...
          MessagePack can't have
       5  int beyond 64 bits       two's complement, big-endian, at most MAX_NUMBER_BYTES
       6  Decimal                  its digits as ASCII text, at most MAX_NUMBER_BYTES
       7  datetime                 ISO 8601 text, with its UTC offset where it is aware
       8  date                     ISO 8601 text
       9  time                     ISO 8601 text, with its UTC offset where it is aware
      10  timedelta                array of days, seconds, microseconds
      11  UUID                     16 bytes
      12  complex                  two big-endian doubles
      13  dspy.Prediction          array of its fields, and of its completions by field or nil
      14  dspy.Example             array of its fields, and of its inputs' names or nil

Rules:
    1. A code keeps its meaning for ever; what is new gets a new code.
    2. What is packed here can be unpacked: a value of which that isn't certain is unpacked once before it is sent.
    3. A payload can't cost more than it is long: numbers are capped, since printing one takes quadratic time.
    4. An aware datetime comes back equal and with the same offset; the name of its time zone stays behind.

    5. DSPy's records are carried as such only for whoever asks for them; where dspy isn't loaded they arrive as dicts.

Knows nothing of pydantic or messages.
"""

from __future__ import annotations

import struct
import sys
import uuid
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from dspool.errors import InvalidMessage
from dspool.signals import let_through

MAX_NUMBER_BYTES = 64 * 1024
"""Longest int (in bytes) or Decimal (in digits) that is carried."""

TUPLE, SET, FROZENSET, PAIRS, BIG_INT, DECIMAL, DATETIME, DATE, TIME, TIMEDELTA, UUID, COMPLEX = range(1, 13)
PREDICTION, EXAMPLE = 13, 14

_COMPLEX = struct.Struct(">dd")
_encode = msgspec.msgpack.Encoder().encode


def pack_elements(code: int, elements: list[Any]) -> Ext:
    """TUPLE, SET, FROZENSET, PAIRS, PREDICTION or EXAMPLE of elements that are plain already."""
    return Ext(code, _encode(elements))


def pack_int(value: int) -> Ext:
    """An int beyond 64 bits.

    Raises:
        ValueError: it is over the cap.
    """
    size = value.bit_length() // 8 + 1
    if size > MAX_NUMBER_BYTES:
        raise ValueError(f"it takes {size:,} bytes, and {MAX_NUMBER_BYTES:,} are carried")
    return Ext(BIG_INT, int.to_bytes(value, size, "big", signed=True))


def pack_decimal(value: Decimal) -> Ext:
    """A Decimal.

    Raises:
        ValueError: it is over the cap.
    """
    text = Decimal.__str__(value)
    if len(text) > MAX_NUMBER_BYTES:
        raise ValueError(f"it has {len(text):,} digits, and {MAX_NUMBER_BYTES:,} are carried")
    return Ext(DECIMAL, text.encode("ascii"))


def pack_datetime(value: datetime) -> Ext:
    """A naive or aware datetime. A subclass's text is read back first (rule 2): pandas' NaT is a datetime too."""
    text = value.isoformat()
    if type(value) is not datetime:
        datetime.fromisoformat(text)
    return Ext(DATETIME, text.encode("ascii"))


def pack_date(value: date) -> Ext:
    """A date."""
    return Ext(DATE, date.isoformat(value).encode("ascii"))


def pack_time(value: time) -> Ext:
    """A naive or aware time."""
    return Ext(TIME, time.isoformat(value).encode("ascii"))


def pack_timedelta(value: timedelta) -> Ext:
    """A timedelta."""
    return Ext(TIMEDELTA, _encode((value.days, value.seconds, value.microseconds)))


def pack_uuid(value: uuid.UUID) -> Ext:
    """A UUID."""
    return Ext(UUID, value.bytes)


def pack_complex(value: complex) -> Ext:
    """A complex number."""
    return Ext(COMPLEX, _COMPLEX.pack(value.real, value.imag))


def from_ext(code: int, data: memoryview | bytes) -> Any:
    """The value that an Ext carries (msgspec's ext_hook).

    Raises:
        InvalidMessage: its code is unknown or its payload isn't what the code says.
    """
    unpack = _UNPACKERS.get(code)
    if unpack is None:
        raise InvalidMessage(f"a value has the unknown ext code {code}")
    try:
        return unpack(data)
    except InvalidMessage:
        raise
    except Exception as error:
        let_through(error)
        message = f"the {len(data):,} bytes of a value with ext code {code} are not what the code says"
        raise InvalidMessage(message) from error


def is_hashable(plain: Any) -> bool:
    """Whether a plain value can be an element of a set, or a dict's key, where it arrives."""
    if type(plain) is not Ext:
        return not isinstance(plain, list | dict)
    try:
        hash(from_ext(plain.code, memoryview(plain.data)))
    except (InvalidMessage, TypeError):
        return False
    return True


_decode = msgspec.msgpack.Decoder(list[Any], ext_hook=from_ext).decode
_decode_record = msgspec.msgpack.Decoder(tuple[dict[str, Any], Any], ext_hook=from_ext).decode
_decode_timedelta = msgspec.msgpack.Decoder(tuple[int, int, int]).decode


def _unpack_pairs(data: memoryview | bytes) -> dict[Any, Any]:
    items = iter(_decode(data))
    return dict(zip(items, items, strict=True))


def _unpack_prediction(data: memoryview | bytes) -> Any:
    fields, completions = _decode_record(data)
    dspy = sys.modules.get("dspy")
    if dspy is None:
        return fields
    prediction = dspy.Prediction() if completions is None else dspy.Prediction.from_completions(completions)
    prediction._store = fields
    return prediction


def _unpack_example(data: memoryview | bytes) -> Any:
    fields, inputs = _decode_record(data)
    dspy = sys.modules.get("dspy")
    if dspy is None:
        return fields
    example = dspy.Example(fields)
    return example if inputs is None else example.with_inputs(*inputs)


def _unpack_int(data: memoryview | bytes) -> int:
    _require(0 < len(data) <= MAX_NUMBER_BYTES)
    return int.from_bytes(data, "big", signed=True)


def _unpack_decimal(data: memoryview | bytes) -> Decimal:
    _require(len(data) <= MAX_NUMBER_BYTES)
    return Decimal(_text(data))


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError("the payload has the wrong length")


def _text(data: memoryview | bytes) -> str:
    return str(data, "ascii")


def _made_by(make: Callable[[Iterable[Any]], Any]) -> Callable[[memoryview | bytes], Any]:
    return lambda data: make(_decode(data))


_UNPACKERS: dict[int, Callable[[memoryview | bytes], Any]] = {
    TUPLE: _made_by(tuple),
    SET: _made_by(set),
    FROZENSET: _made_by(frozenset),
    PAIRS: _unpack_pairs,
    BIG_INT: _unpack_int,
    DECIMAL: _unpack_decimal,
    DATETIME: lambda data: datetime.fromisoformat(_text(data)),
    DATE: lambda data: date.fromisoformat(_text(data)),
    TIME: lambda data: time.fromisoformat(_text(data)),
    TIMEDELTA: lambda data: timedelta(*_decode_timedelta(data)),
    UUID: lambda data: uuid.UUID(bytes=bytes(data)),
    COMPLEX: lambda data: complex(*_COMPLEX.unpack(data)),
    PREDICTION: _unpack_prediction,
    EXAMPLE: _unpack_example,
}
