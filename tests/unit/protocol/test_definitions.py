"""Definitions from anywhere: what is taken, and what is refused with which words."""

from __future__ import annotations

import sys
from typing import Any, Literal, Optional

import pytest

from dspool.worker.definitions import DefinitionError, parse, parse_type

pytestmark = pytest.mark.unit


def definition(**changes: Any) -> dict[str, Any]:
    signature = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer", "type": "int", "extra": 1}]}
    return {"signature": signature | changes.pop("signature", {}), "id": "ignored", **changes}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("str", str),
        (" int ", int),
        ("float", float),
        ("bool", bool),
        ("list", list),
        ("dict", dict),
        ("list[str]", list[str]),
        ("dict[str, list[int]]", dict[str, list[int]]),
        ("Literal['a', 2, True]", Literal["a", 2, True]),
        ("Literal['a']", Literal["a"]),
        ("Optional[list[float]]", Optional[list[float]]),  # noqa: UP045
        ("int | None", Optional[int]),  # noqa: UP045
    ],
)
def test_types_on_the_list(text: str, expected: object) -> None:
    assert parse_type(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "os",
        "dspy.Image",
        "list[os.system]",
        "list[int, str]",
        "dict[str]",
        "dict[list[int], int]",
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
def test_types_off_the_list_are_refused_and_nothing_is_imported(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(DefinitionError, match="is not one of str, int, float"):
        parse_type(text)
    assert set(sys.modules) == before


def test_a_definition_with_defaults() -> None:
    parsed = parse(definition())
    assert (parsed.program_type, parsed.instructions) == ("predict", None)
    assert [(field.name, field.type) for field in parsed.signature.inputs] == [("question", "str")]
    assert [(field.name, field.type) for field in parsed.signature.outputs] == [("answer", "int")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signature": {"outputs": []}}, "has no outputs"),
        ({"program_type": "react"}, "Invalid enum value 'react'"),
        ({"instructions": 3}, "Expected `str | null`"),
        ({"signature": {"inputs": [{"name": "answer"}]}}, "two fields have the same name: answer"),
        ({"signature": {"inputs": [{"name": "a b"}]}}, "'a b' must have a name that Python can use"),
        ({"signature": {"inputs": [{"name": "class"}]}}, "'class' must have a name"),
        ({"signature": {"inputs": [{"name": "x", "type": "os"}]}}, "type 'os' is not one of"),
        ({"signature": {"inputs": [{}]}}, "missing required field `name`"),
    ],
)
def test_what_is_wrong_with_a_definition_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse(definition(**changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["lm", "config", "demos", "signature", "fields", "instructions", "model_config", "_x"])
def test_input_names_that_dspy_keeps_for_itself_are_refused_by_name(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"the input name '{name}' is reserved"):
        parse(definition(signature={"inputs": [{"name": name}]}))


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "copy", "inputs", "labels", "lm", "demos"])
def test_output_names_that_only_look_dangerous_are_taken(name: str) -> None:
    parse(definition(signature={"outputs": [{"name": name}]}))


@pytest.mark.parametrize("name", ["signature", "fields", "instructions", "model_config", "_x"])
def test_output_names_that_a_signature_has_itself_are_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"the output name '{name}' is reserved"):
        parse(definition(signature={"outputs": [{"name": name}]}))


def test_a_definition_without_signature_is_refused() -> None:
    with pytest.raises(DefinitionError, match="missing required field `signature`"):
        parse({})
