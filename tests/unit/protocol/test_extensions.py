"""Ext types: a payload that isn't what its code says is refused, and codes keep their meaning."""

from __future__ import annotations

import sys

import pytest

from dspool.errors import InvalidMessage
from dspool.protocol import extensions, values
from dspool.protocol.extensions import from_ext

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (0, b""),
        (99, b"abc"),
        (-128, b""),
        (extensions.TUPLE, b""),
        (extensions.TUPLE, b"\x81\x01\x02"),
        (extensions.TUPLE, b"\xdd\xff\xff\xff\xff"),
        (extensions.TUPLE, b"\x91\xc7\x00\x63"),
        (extensions.SET, b"\x91\x90"),
        (extensions.FROZENSET, b"\x91\x80"),
        (extensions.PAIRS, b"\x91\x01"),
        (extensions.PAIRS, b"\x92\x90\x01"),
        (extensions.BIG_INT, b""),
        (extensions.BIG_INT, bytes(65_537)),
        (extensions.DECIMAL, b""),
        (extensions.DECIMAL, b"1" * 65_537),
        (extensions.DECIMAL, b"one"),
        (extensions.DECIMAL, b"\xff"),
        (extensions.DATETIME, b"yesterday"),
        (extensions.DATE, b"2025-13-01"),
        (extensions.TIME, b"25:00"),
        (extensions.TIMEDELTA, b"\x92\x01\x02"),
        (extensions.TIMEDELTA, b"\x93\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00"),
        (extensions.UUID, b"short"),
        (extensions.COMPLEX, b"short"),
        (extensions.PREDICTION, b"\x91\x80"),
        (extensions.EXAMPLE, b"\x92\x01\xc0"),
    ],
)
def test_a_malformed_ext_is_an_invalid_message(code: int, data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        from_ext(code, memoryview(data))


def test_the_codes_are_what_they_have_always_been() -> None:
    codes = {"TUPLE": 1, "SET": 2, "FROZENSET": 3, "PAIRS": 4, "BIG_INT": 5, "DECIMAL": 6, "DATETIME": 7, "DATE": 8}
    codes |= {"TIME": 9, "TIMEDELTA": 10, "UUID": 11, "COMPLEX": 12, "PREDICTION": 13, "EXAMPLE": 14}
    assert {name: getattr(extensions, name) for name in codes} == codes


def test_a_payload_as_long_as_the_cap_is_taken() -> None:
    assert from_ext(extensions.BIG_INT, b"\x7f" * extensions.MAX_NUMBER_BYTES) > 2**64
    assert from_ext(extensions.DECIMAL, b"1" * extensions.MAX_NUMBER_BYTES) > 2**64


def test_a_refusal_does_not_repeat_the_payload() -> None:
    with pytest.raises(InvalidMessage, match="the 9 bytes of a value with ext code 6") as caught:
        from_ext(extensions.DECIMAL, b"sk-secret")
    assert "secret" not in str(caught.value)


def test_dspys_records_are_dspys_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import dspy

    fields = {"answer": "Paris", "near": (1, 2)}
    plain = values.to_plain(fields)
    scored = extensions.pack_elements(extensions.PREDICTION, [plain, {"answer": ["Paris", "Rome"]}])
    alone = extensions.pack_elements(extensions.PREDICTION, [plain, None])
    marked = extensions.pack_elements(extensions.EXAMPLE, [plain, ["answer"]])
    unmarked = extensions.pack_elements(extensions.EXAMPLE, [plain, None])

    prediction, single, example, bare = (
        extensions.from_ext(each.code, memoryview(each.data)) for each in (scored, alone, marked, unmarked)
    )
    assert type(prediction) is type(single) is dspy.Prediction
    assert dict(prediction.items()) == dict(single.items()) == fields
    assert prediction.completions.answer == ["Paris", "Rome"]
    assert single.completions is None
    assert example.inputs().toDict() == {"answer": "Paris"}
    assert dict(bare.items()) == fields
    assert bare.with_inputs("near").labels().toDict() == {"answer": "Paris"}

    monkeypatch.delitem(sys.modules, "dspy")
    assert [extensions.from_ext(each.code, memoryview(each.data)) for each in (scored, marked)] == [fields, fields]
