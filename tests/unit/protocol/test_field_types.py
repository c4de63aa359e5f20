"""The types of a definition's fields: what is taken, and what is refused with which words."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dspool.protocol.field_types import (
    KEYWORDS,
    MAX_DEPTH,
    Choice,
    DefinitionError,
    DictOf,
    FieldType,
    Limited,
    ListOf,
    Model,
    OneOf,
    Plain,
    Property,
    parse_type,
)

pytestmark = pytest.mark.unit

STR, INT, FLOAT, BOOL, NULL, ANY = map(Plain, ("str", "int", "float", "bool", "null", "Any"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("str", STR),
        (" int ", INT),
        ("float", FLOAT),
        ("bool", BOOL),
        ("Any", ANY),
        ("list", Plain("list")),
        ("dict", Plain("dict")),
        ("image", Plain("image")),
        ("dspy.Image", Plain("image")),
        ("list[Image]", ListOf(Plain("image"))),
        ("string", STR),
        ("integer", INT),
        ("number", FLOAT),
        ("boolean", BOOL),
        ("array", Plain("list")),
        ("object", Plain("dict")),
        ("list[str]", ListOf(STR)),
        ("List[str]", ListOf(STR)),
        ("dict[str, list[int]]", DictOf("str", ListOf(INT))),
        ("dict[integer, Any]", DictOf("int", ANY)),
        ("Literal['a', 2, True]", Choice(("a", 2, True))),
        ("Literal['a']", Choice(("a",))),
        ("Literal['a', None]", Choice(("a", None))),
        ("Optional[list[float]]", OneOf((ListOf(FLOAT), NULL))),
        ("int | None", OneOf((INT, NULL))),
        ("Optional[int | None]", OneOf((INT, NULL))),
        ("Optional[Any]", ANY),
    ],
)
def test_types_as_text(text: str, expected: FieldType) -> None:
    assert parse_type(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "os",
        "dspy.Signature",
        "os.PathLike",
        "list[os.system]",
        "list[int, str]",
        "dict[str]",
        "dict[list[int], int]",
        "dict[Any, int]",
        "tuple[int]",
        "Literal[1.5]",
        "Literal[x]",
        "Literal[()]",
        "int | str",
        "__import__('os')",
        "str; int",
        "str\nint",
        "list[" * 200,
        "list[" * 99 + "int" + "]" * 99 + " " * 500,
        "\0",
    ],
)
def test_text_off_the_list_is_refused_and_nothing_is_imported(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(DefinitionError, match="is not one of str, int, float"):
        parse_type(text)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, ANY),
        ({"type": "string", "format": "date", "examples": ["x"], "x-own": 1}, STR),
        ({"type": "null"}, NULL),
        ({"type": "boolean", "minimum": 1}, BOOL),  # a limit of another kind limits nothing
        ({"type": "array"}, Plain("list")),
        ({"type": "array", "items": True}, Plain("list")),
        ({"type": "array", "items": {"type": "integer"}}, ListOf(INT)),
        ({"type": "array", "minItems": 1, "maxItems": 3}, Limited(Plain("list"), {"min_length": 1, "max_length": 3})),
        ({"type": "object"}, Plain("dict")),
        ({"type": "object", "properties": {}, "additionalProperties": False}, Plain("dict")),
        ({"type": "object", "additionalProperties": {"type": "number"}}, DictOf("str", FLOAT)),
        ({"type": "object", "minProperties": 1}, Limited(Plain("dict"), {"min_length": 1})),
        ({"type": ["string", "null"]}, OneOf((STR, NULL))),
        ({"type": ["string"]}, STR),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "string"}]}, OneOf((STR, INT))),
        ({"anyOf": [{"type": "string"}, {}]}, ANY),
        ({"enum": ["a", 1, None]}, Choice(("a", 1, None))),
        ({"type": "string", "enum": ["a"]}, Choice(("a",))),
        ({"const": 3, "type": "integer"}, Choice((3,))),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 9}, Limited(INT, {"ge": 0, "lt": 9})),
        ({"type": "number", "multipleOf": 0.5}, Limited(FLOAT, {"multiple_of": 0.5})),
        (
            {"type": "string", "minLength": 1, "pattern": "^a"},
            Limited(STR, {"min_length": 1, "pattern": "^a"}),
        ),
        ({"definitions": {"N": {"type": "integer"}}, "$ref": "#/definitions/N", "description": "d"}, INT),
    ],
)
def test_json_schemas(schema: dict[str, Any], expected: FieldType) -> None:
    assert parse_type(schema) == expected


def test_an_object_with_properties_is_a_model() -> None:
    schema = {
        "type": "object",
        "title": "a person",
        "description": "Somebody.",
        "properties": {
            "name": {"type": "string", "description": "their name"},
            "age": {"type": "integer", "default": 1},
            "tags": True,
            "home": {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": True},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    found = parse_type(schema)
    assert isinstance(found, Model)
    assert (found.name, found.description, found.extra) == ("APerson", "Somebody.", "forbid")
    assert found.properties[:3] == (
        Property("name", STR, True, description="their name"),
        Property("age", INT, False, default=1),
        Property("tags", ANY, False),
    )
    home = found.properties[3].type
    assert isinstance(home, Model)
    assert (home.extra, home.properties) == ("allow", (Property("city", STR, False),))


@pytest.mark.parametrize(
    ("title", "name"), [("3 things", "Model3Things"), ("None", "ModelNone"), ("--", "Model"), ("", "Field")]
)
def test_a_models_name_is_one_that_python_takes(title: str, name: str) -> None:
    schema = {"type": "object", "title": title, "properties": {"a": {}}}
    found = parse_type(schema, "field")
    assert isinstance(found, Model)
    assert found.name == name


def test_a_part_that_is_referred_to_twice_is_one_part() -> None:
    part = {"type": "object", "properties": {"x": {"type": "integer"}}}
    schema = {
        "$defs": {"Point": part, "Line": {"type": "array", "items": {"$ref": "#/$defs/Point"}}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/Point"}, "b": {"$ref": "#/$defs/Line"}},
    }
    found = parse_type(schema)
    assert isinstance(found, Model)
    first, second = (each.type for each in found.properties)
    assert isinstance(second, ListOf)
    assert first is second.item
    assert isinstance(first, Model)
    assert first.name == "Point"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "keyword 'uniqueItems' is not supported"),
        ({"oneOf": [{"type": "string"}]}, "keyword 'oneOf' is not supported"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, r"a: the schema keyword 'not'"),
        ({"type": "text"}, "schema type 'text' is not one of string, integer"),
        ({"type": 3}, "schema type 3 is not one of"),
        ({"type": []}, r"schema type \[\] is not one of"),
        ({"type": "array", "items": "string"}, "a schema is an object, not 'string'"),
        ({"type": "array", "items": False}, "a schema is an object, not False"),
        ({"description": 3}, "a description is a text"),
        ({"$defs": []}, r"'\$defs' must be an object"),
        ({"$ref": "#/$defs/Gone"}, r"\$ref '#/\$defs/Gone' is not in the schema's own"),
        ({"$ref": "https://example.com/schema"}, "is not in the schema's own"),
        ({"$ref": []}, "is not in the schema's own"),
        ({"$defs": {"A": {}}, "$ref": "#/$defs/A", "minimum": 1}, r"'minimum' beside a \$ref"),
        ({"enum": []}, "'enum' is a list of 1 to"),
        ({"enum": "ab"}, "'enum' is a list"),
        ({"anyOf": []}, "'anyOf' is a list of 1 to"),
        ({"enum": [1.5]}, "not 1.5"),
        ({"enum": [{}]}, "a choice is a text"),
        ({"type": "integer", "enum": ["a"]}, "choice 'a' is no integer"),
        ({"type": "integer", "enum": [True]}, "choice True is no integer"),
        ({"type": "integer", "minimum": "0"}, "'0' is no value for 'minimum'"),
        ({"type": "number", "multipleOf": 0}, "0 is no value for 'multipleOf'"),
        ({"type": "string", "minLength": -1}, "-1 is no value for 'minLength'"),
        ({"type": "string", "minLength": True}, "True is no value"),
        ({"type": "string", "pattern": "a" * 501}, "is no value for 'pattern'"),
        ({"type": "string", "pattern": 3}, "3 is no value for 'pattern'"),
        ({"type": "object", "additionalProperties": 3}, "is a boolean or a schema"),
        ({"type": "object", "properties": [1]}, "'properties' is an object with names"),
        ({"type": "object", "properties": {"": {}}}, "'properties' is an object with names"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": {}}, "beside 'properties'"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "'minProperties' beside 'properties'"),
        ({"type": "object", "properties": {"a": {}}, "required": "a"}, "'required' is a list"),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "required 'b' is not among"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(DefinitionError, match=f"JSON schema can't be used: .*{reason}"):
        parse_type(schema, "answer")


def test_a_schema_that_refers_to_itself_is_refused() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    with pytest.raises(DefinitionError, match=r"refers to itself through the \$ref '#/\$defs/Node'"):
        parse_type({"$defs": {"Node": tree}, "$ref": "#/$defs/Node"})


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


def test_depth_and_size_are_bounded() -> None:
    parse_type(nested(MAX_DEPTH))
    with pytest.raises(DefinitionError, match="17 levels deep"):
        parse_type(nested(MAX_DEPTH + 1))
    for schema in (nested(1000), {"anyOf": [nested(2)] * 600}):
        with pytest.raises(DefinitionError, match="more than 16 levels deep, or has more than 1,000 parts"):
            parse_type(schema)
    with pytest.raises(DefinitionError, match="1,001 parts"):
        parse_type({"type": "object", "properties": {"a": {"enum": list(range(500))}, "b": {"enum": list(range(500))}}})


def test_a_small_schema_that_is_huge_when_written_out_is_refused() -> None:
    """Each level refers to the one below three times: 6 levels are 729 leaves."""
    parts: dict[str, Any] = {"L0": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    for level in range(1, 7):
        below = {"$ref": f"#/$defs/L{level - 1}"}
        parts[f"L{level}"] = {"type": "object", "properties": {"a": below, "b": below, "c": below}}
    with pytest.raises(DefinitionError, match=r"the type has 1,822 parts, 8 levels deep, when it is written out"):
        parse_type({"$defs": parts, "$ref": "#/$defs/L6"})


def test_options_that_are_huge_when_written_out_are_refused_before_they_are_compared() -> None:
    """Two equal chains, each level of which refers to the one below fifty times: comparing them would take years."""

    def chain(name: str) -> dict[str, Any]:
        parts: dict[str, Any] = {f"{name}0": {"type": "string"}}
        for level in range(1, 8):
            below = {"$ref": f"#/$defs/{name}{level - 1}"}
            parts[f"{name}{level}"] = {
                "type": "object",
                "title": "T",
                "properties": {f"x{i}": below for i in range(50)},
            }
        return parts

    with pytest.raises(DefinitionError, match="when it is written out; at most 1,000"):
        parse_type({"$defs": chain("A") | chain("B"), "anyOf": [{"$ref": "#/$defs/A7"}, {"$ref": "#/$defs/B7"}]})


def test_every_keyword_that_is_named_as_known_is_taken_somewhere() -> None:
    """By the walk's own account, so that the documentation, which lists them, is right."""
    values: dict[str, Any] = {"type": "integer", "enum": [1], "const": 1, "anyOf": [{}], "items": {}, "required": []}
    values |= {"properties": {}, "additionalProperties": True, "$defs": {}, "definitions": {}, "pattern": "a"}
    for word in KEYWORDS - {"$ref"}:
        parse_type({word: values.get(word, "text" if word in ("description", "title") else 1)})
