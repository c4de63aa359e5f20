"""Values of pydantic's, DSPy's and numpy's types: as plain data, and back where an annotation names them."""

from __future__ import annotations

import enum
import sys
import types
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from dspool.errors import EncodeError
from dspool.protocol.values import from_ext, revive, to_json, to_plain

pytestmark = pytest.mark.unit

_decoder = msgspec.msgpack.Decoder(ext_hook=from_ext)


def carried(value: Any) -> Any:
    """The value as the other end of a pipe gets it."""
    return _decoder.decode(msgspec.msgpack.encode(to_plain(value)))


class Colour(enum.Enum):
    RED = "red"


class Inner(pydantic.BaseModel):
    at: datetime
    tags: set[str] = set()
    pair: tuple[int, Colour] = (0, Colour.RED)


class Outer(pydantic.BaseModel):
    inner: Inner
    many: dict[str, list[Inner]] = {}
    price: Decimal = Decimal("1.50")
    size: int | None = None


class Opaque:
    def __init__(self, word: str) -> None:
        self.word = word

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.word == self.word

    __hash__ = None  # type: ignore[assignment]


class Generic:
    """Stands for numpy.generic; numpy itself need not be installed."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def tolist(self) -> Any:
        return self if self.item is None else self.item


class Array(Generic):
    """Stands for numpy.ndarray."""


class Int64(Generic):
    pass


class LongDouble(Generic):
    pass


INNER = Inner(at=datetime(2025, 1, 2, tzinfo=UTC), tags={"a"}, pair=(1, Colour.RED))
OUTER = Outer(inner=INNER, many={"x": [INNER, INNER]})


def test_without_pydantic_nothing_is_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pydantic", raising=False)
    assert revive("red", Colour) == "red"


def test_what_has_its_type_already_or_may_have_any_is_left_alone() -> None:
    value = ["a"]
    assert revive("a", str) == "a"
    assert revive(value, Any) is value


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (OUTER, Outer),
        ([INNER], list[Inner]),
        ({"a": INNER}, dict[str, Inner]),
        (INNER, Inner | None),
        (None, Inner | None),
        (INNER, Inner | str),
        ("text", Inner | str),
        (Colour.RED, Colour),
        ([Colour.RED, None], list[Colour | None]),
        ("a", Literal["a", "b"]),
        (datetime(2025, 1, 2, tzinfo=UTC), datetime),
        (Decimal("1.10"), Decimal),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        (INNER, Annotated[Inner, {"not": "hashable"}]),
    ],
    ids=str,
)
def test_a_value_is_revived_as_the_type_its_annotation_names(value: Any, annotation: Any) -> None:
    back = revive(carried(value), annotation)
    assert back == value
    assert type(back) is type(value)


def test_what_came_as_json_is_revived_too() -> None:
    assert revive(to_json(OUTER), Outer) == OUTER


@pytest.mark.parametrize(
    ("value", "annotation"),
    [({"no": "such"}, Inner), ("x", int), ([1], "NoSuchName"), ("x", Opaque), ("x", 17), ("x", Annotated[Opaque, {}])],
    ids=str,
)
def test_what_does_not_fit_its_annotation_stays_plain(value: Any, annotation: Any) -> None:
    assert revive(value, annotation) is value


def test_a_validator_that_fails_in_its_own_way_leaves_the_plain_value() -> None:
    class Fussy(pydantic.BaseModel):
        a: int

        @pydantic.field_validator("a")
        @classmethod
        def check(cls, value: int) -> int:
            raise ZeroDivisionError

    assert revive({"a": 1}, Fussy) == {"a": 1}


def test_a_model_is_a_dict_of_its_fields_by_name_extras_included() -> None:
    class Loose(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        given: int = pydantic.Field(alias="theirs")
        secret: str = pydantic.Field(default="s", exclude=True)

    value = Loose.model_validate({"theirs": 1, "more": Colour.RED})
    assert to_plain(value) == {"given": 1, "more": "red"}
    assert revive({"given": 1, "more": 2}, Loose) == Loose.model_validate({"theirs": 1, "more": 2})
    assert to_plain(Loose.model_construct()) == {}


def test_a_models_own_serializers_are_respected() -> None:
    class Upper(pydantic.BaseModel):
        a: str
        b: Annotated[int, pydantic.PlainSerializer(lambda value: f"{value:03}")] = 7
        c: pydantic.Json[list[int]] = pydantic.Field(default="[1]", validate_default=True)
        d: tuple[int, ...] = (1,)

        @pydantic.field_serializer("a")
        def shout(self, value: str) -> str:
            return value.upper()

    value = Upper(a="x")
    assert carried(value) == {"a": "X", "b": "007", "c": "[1]", "d": (1,)}
    assert revive(carried(value), Upper) == Upper(a="X")

    class All(pydantic.BaseModel):
        a: int = 1
        b: int = 2

        @pydantic.field_serializer("*")
        def negative(self, value: int) -> int:
            return -value

    assert to_plain(All()) == {"a": -1, "b": -2}

    class Whole(pydantic.BaseModel):
        a: int = 1

        @pydantic.model_serializer
        def as_text(self) -> str:
            return f"a={self.a}"

    assert to_plain([Whole()]) == ["a=1"]


def test_a_root_model_is_its_root() -> None:
    class Names(pydantic.RootModel[list[Colour]]):
        pass

    assert to_plain(Names([Colour.RED])) == ["red"]
    assert revive(["red"], Names) == Names([Colour.RED])


def test_a_field_that_only_pydantic_can_serialize_is_left_to_pydantic() -> None:
    class Holder(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        words: list[Annotated[Opaque, pydantic.PlainSerializer(lambda value: value.word)]]

    assert to_plain(Holder(words=[Opaque("a"), Opaque("b")])) == {"words": ["a", "b"]}


def test_a_field_that_nobody_can_serialize_is_named() -> None:
    class Holder(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        thing: Opaque
        key: pydantic.SecretStr = pydantic.SecretStr("sk-hidden")

    with pytest.raises(EncodeError, match=r"^inputs\[0\]\.thing is a .*Opaque'>, which has no plain form"):
        to_plain([Holder(thing=Opaque("a"))], "inputs")
    with pytest.raises(EncodeError, match=r"^inputs is a <class 'pydantic\.types\.SecretStr'>") as caught:
        to_plain(pydantic.SecretStr("sk-hidden"), "inputs")
    assert "sk-hidden" not in str(caught.value)


def test_urls_are_text() -> None:
    class Link(pydantic.BaseModel):
        url: pydantic.HttpUrl
        database: pydantic.PostgresDsn

    link = Link.model_validate({"url": "https://a.example/", "database": "postgres://u@h/db"})
    assert to_plain(link) == {"url": "https://a.example/", "database": "postgres://u@h/db"}
    assert revive(to_plain(link), Link) == link


@pytest.mark.slow
def test_classes_of_programs_that_are_gone_are_not_kept() -> None:
    import gc
    import weakref

    def use_one() -> weakref.ref[type]:
        class Passing(pydantic.BaseModel):
            a: int = 1

        assert to_plain(Passing()) == {"a": 1}
        return weakref.ref(Passing)

    gone = use_one()
    gc.collect()
    assert gone() is None


def test_numpys_scalars_and_arrays_become_numbers_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = types.ModuleType("numpy")
    monkeypatch.setattr(numpy, "generic", Generic, raising=False)
    monkeypatch.setattr(numpy, "ndarray", Array, raising=False)
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    assert to_plain({"n": Int64(3), "a": Array([1, Int64(2)])}) == {"n": 3, "a": [1, 2]}
    with pytest.raises(EncodeError, match=r"value is a .*LongDouble'>, which Python has no number for"):
        to_plain(LongDouble(None))


@pytest.mark.slow
def test_dspys_own_types_are_rebuilt_from_their_fields() -> None:
    import dspy

    for value in (
        dspy.Image("https://a.example/i.png"),
        dspy.Audio(data="aGk=", audio_format="wav"),
        dspy.File(file_data="data:text/plain;base64,aGk=", filename="a.txt"),
        dspy.History(messages=[{"question": "a", "answer": "b"}]),
        dspy.Code(code="x = 1"),
        dspy.ToolCalls.from_dict_list([{"name": "f", "args": {"a": 1}}]),
    ):
        kind = type(value)
        assert revive(carried(value), kind) == value
        assert revive(carried([value]), list[kind]) == [value]  # type: ignore[valid-type]
        assert revive(carried({"a": value}), dict[str, kind | None]) == {"a": value}  # type: ignore[valid-type]
    assert to_plain(dspy.Image("https://a.example/i.png")) == {"url": "https://a.example/i.png"}


@pytest.mark.slow
def test_an_image_within_a_model_is_rebuilt() -> None:
    import dspy

    class Page(pydantic.BaseModel):
        picture: dspy.Image
        more: list[dspy.Image] = []

    page = Page(picture=dspy.Image("https://a.example/i.png"), more=[dspy.Image("https://a.example/j.png")])
    assert revive(carried(page), Page) == page


@pytest.mark.slow
def test_predictions_and_examples_are_dicts_of_what_they_hold() -> None:
    import dspy

    value = dspy.Prediction(answer="a", notes=(1, 2), inner=[dspy.Example(q=Colour.RED).with_inputs("q")])
    assert carried(value) == {"answer": "a", "notes": (1, 2), "inner": [{"q": "red"}]}


@pytest.mark.slow
def test_a_tool_holds_a_function_and_is_refused() -> None:
    import dspy

    def look_up(word: str) -> str:
        return word

    with pytest.raises(EncodeError, match=r"^inputs\['tool'\]\.func is a <class 'builtins\.function'>"):
        to_plain({"tool": dspy.Tool(look_up)}, "inputs")
