"""Trees of types as Python's own: what values they take, and what pydantic can't make."""

from __future__ import annotations

import sys
from typing import Any, Literal, Optional

import pydantic
import pytest

from dspool.protocol.annotations import annotation, base_and_limits
from dspool.protocol.field_types import DefinitionError, Limited, Plain, parse_type
from dspool.protocol.values import revive, to_plain

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("str", str),
        ("list", list),
        ("Any", Any),
        ("list[str]", list[str]),
        ("dict[str, list[int]]", dict[str, list[int]]),
        ("Literal['a', 2, True]", Literal["a", 2, True]),
        ("Optional[list[float]]", Optional[list[float]]),  # noqa: UP045
        ("int | None", Optional[int]),  # noqa: UP045
    ],
)
def test_text(text: str, expected: object) -> None:
    assert annotation(parse_type(text)) == expected


def test_an_image_is_dspys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Image:
        """In place of dspy.Image: DSPy takes a second to import."""

    fake: Any = type("dspy", (), {"Image": Image})
    monkeypatch.setitem(sys.modules, "dspy", fake)
    assert annotation(parse_type("list[image]")) == list[Image]


def test_unions_and_nulls() -> None:
    kind = annotation(parse_type({"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}))
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in (1, "a", None)] == [1, "a", None]
    assert annotation(parse_type({"type": "null"})) is type(None)


PERSON = {
    "type": "object",
    "title": "Person",
    "description": "Somebody.",
    "properties": {
        "name": {"type": "string", "description": "their name", "minLength": 1},
        "age": {"type": "integer", "default": 1},
        "nick": {"type": "string"},
        "homes": {"type": "array", "items": {"$ref": "#/$defs/Home"}, "default": [{"city": "Rome"}]},
        "work": {"$ref": "#/$defs/Home"},
    },
    "required": ["name", "work"],
    "$defs": {"Home": {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}},
}


def test_a_model_with_all_that_its_schema_says() -> None:
    person = annotation(parse_type(PERSON))
    found = person.model_validate({"name": "Ada", "work": {"city": "Bonn"}, "other": 1})
    assert (found.name, found.age, found.nick, found.work.city) == ("Ada", 1, None, "Bonn")
    assert [home.city for home in found.homes] == ["Rome"]
    assert type(found.homes[0]) is type(found.work)
    assert not hasattr(found, "other")
    shown = person.model_json_schema()
    assert (shown["title"], shown["description"], shown["required"]) == ("Person", "Somebody.", ["name", "work"])
    assert shown["properties"]["name"]["description"] == "their name"
    for bad in ({"name": "", "work": {"city": "Bonn"}}, {"name": "a", "work": {"city": "Ulm"}}, {"name": "a"}):
        with pytest.raises(pydantic.ValidationError):
            person.model_validate(bad)
    first, second = (person.model_validate({"name": "a", "work": {"city": "Rome"}}) for _ in range(2))
    first.homes.append(None)
    assert len(second.homes) == 1


@pytest.mark.parametrize(("extra", "kept"), [(True, {"other": 1}), (None, {})])
def test_other_properties(extra: bool | None, kept: dict[str, int]) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": extra}
    model = annotation(parse_type({name: part for name, part in schema.items() if part is not None}))
    assert model.model_validate({"a": 1, "other": 1}).model_dump() == {"a": 1, **kept}


def test_other_properties_may_be_forbidden() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    with pytest.raises(pydantic.ValidationError):
        annotation(parse_type(schema)).model_validate({"a": 1, "other": 1})


def test_names_that_python_or_pydantic_keeps_travel_as_they_are() -> None:
    names = ["class", "first-name", "_id", "json", "copy", "2nd", "json_", "-", "model_config", "plain"]
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names}
    model = annotation(parse_type(schema))
    values = {name: number for number, name in enumerate(names)}
    found = revive(values, model)
    assert (found.class_, found.first_name, found.id, found.plain, found.json_) == (0, 1, 2, 9, 6)
    assert (found.json__, found.copy_, found.field_2nd, found.field, found.model_config_) == (3, 4, 5, 7, 8)
    assert to_plain(found) == values
    assert to_plain([found]) == [values]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
            "the type can't be made: .*regex",
        ),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}},
            "default 'x' of 'a' doesn't fit",
        ),
    ],
)
def test_what_pydantic_cannot_make_is_said(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(DefinitionError, match=f"(?s){reason}"):
        annotation(parse_type(schema))


def test_the_outermost_limits_are_told_apart() -> None:
    tree = parse_type({"type": "integer", "minimum": 3})
    assert base_and_limits(tree) == (Plain("int"), {"ge": 3})
    assert base_and_limits(Plain("str")) == (Plain("str"), {})
    assert isinstance(tree, Limited)
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(annotation(tree)).validate_python(2)
