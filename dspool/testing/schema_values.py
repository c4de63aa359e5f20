"""Build a value that satisfies a JSON schema, leaf by leaf.

The walk over the schema is here; what a leaf holds is the business of a ``Maker`` (the stub server echoes the
caller's question, the offline LM picks sentences). Covered is what pydantic writes for the types of DSPy
signatures: objects, arrays, tuples, enums, unions, references, formats of strings, bounds. Regular expressions
(``pattern``) are not: such a field gets the maker's text as it is.

Rules: deterministic; every recursion is bounded (optional parts are left out below ``OPTIONAL_DEPTH``, and
nothing is built below ``MAX_DEPTH``). This module must not know about prompts, adapters or HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

__all__ = ["MAX_DEPTH", "OPTIONAL_DEPTH", "Maker", "build"]

OPTIONAL_DEPTH = 3
MAX_DEPTH = 12
_INTEGER_SPAN = 99
_ARRAY_LENGTH = 2

_FORMATS = {
    "date-time": "2024-01-02T03:04:05Z",
    "date": "2024-01-02",
    "time": "03:04:05",
    "duration": "PT1M",
    "uuid": "00000000-0000-4000-8000-000000000000",
    **{f"uuid{version}": f"00000000-0000-{version}000-8000-000000000000" for version in (1, 3, 4, 5)},
    "email": "stub@example.com",
    "uri": "https://example.com/",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "path": "stub",
}


class Maker(Protocol):
    """What a leaf of a schema holds. ``name`` is the nearest field's or property's name, ``hint`` its description."""

    def text(self, name: str, hint: str) -> str:
        """Return a text of any length."""
        ...

    def texts(self, name: str, hint: str, count: int) -> list[str]:
        """Return ``count`` different texts, or fewer if there are no more."""
        ...

    def integer(self, name: str, hint: str, low: int, high: int) -> int:
        """Return an integer in ``low..high``."""
        ...

    def number(self, name: str, hint: str, low: float, high: float) -> float:
        """Return a number in ``low..high``."""
        ...

    def boolean(self, name: str, hint: str) -> bool:
        """Return True or False."""
        ...

    def choose(self, name: str, hint: str, options: Sequence[Any]) -> Any:
        """Return one of ``options``."""
        ...


def build(
    schema: dict[str, Any],
    maker: Maker,
    name: str,
    hint: str = "",
    *,
    array_length: int = _ARRAY_LENGTH,
    integer_span: int = _INTEGER_SPAN,
) -> Any:
    """Build a value that satisfies a schema.

    Args:
        schema: A JSON schema, its definitions under ``$defs``.
        maker: What fills the leaves.
        name: The name of the field that the value is for.
        hint: The field's description.
        array_length: How many items an array gets where the schema sets no bounds.
        integer_span: How far an integer may be from its bound, or from 0, where the schema sets no other bound.

    Returns:
        Plain data: what ``json.loads`` could have given.
    """
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    return _Walk(definitions, maker, array_length, integer_span).value(schema, name, hint, 0)


class _Walk:
    __slots__ = ("array_length", "definitions", "integer_span", "maker")

    def __init__(self, definitions: dict[str, Any], maker: Maker, array_length: int, integer_span: int) -> None:
        self.definitions = definitions
        self.maker = maker
        self.array_length = array_length
        self.integer_span = integer_span

    def value(self, schema: dict[str, Any], name: str, hint: str, depth: int) -> Any:
        schema = self.resolve(schema)
        hint = hint or str(schema.get("description", ""))
        if depth > MAX_DEPTH:
            return None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self.maker.choose(name, hint, schema["enum"])
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                return self.value(self.pick(schema[key], depth), name, hint, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        if kind == "object":
            return self.object(schema, name, hint, depth)
        if kind == "array":
            return self.array(schema, name, hint, depth)
        if kind in ("integer", "number"):
            return self.numeric(schema, name, hint, whole=kind == "integer")
        if kind == "boolean":
            return self.maker.boolean(name, hint)
        return None if kind == "null" else self.text(schema, name, hint)

    def resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follow references; a chain longer than the table of definitions is a circle and ends in ``{}``."""
        for _ in range(len(self.definitions) + 1):
            if "$ref" not in schema:
                return schema
            target = self.definitions.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
            schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        return {}

    def pick(self, options: Sequence[dict[str, Any]], depth: int) -> dict[str, Any]:
        """Return the first option that says something; deep down null where it is allowed, which ends recursions."""
        null = next((option for option in options if option.get("type") == "null"), None)
        if null is not None and depth > OPTIONAL_DEPTH:
            return null
        return next((option for option in options if option is not null), options[0])

    def object(self, schema: dict[str, Any], name: str, hint: str, depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        made = {
            key: self.value(child, key, "", depth + 1)
            for key, child in schema.get("properties", {}).items()
            if key in required or depth < OPTIONAL_DEPTH
        }
        extra = schema.get("additionalProperties")
        if not made and isinstance(extra, dict) and depth < OPTIONAL_DEPTH:
            made["key"] = self.value(extra, name, hint, depth + 1)
        return made

    def array(self, schema: dict[str, Any], name: str, hint: str, depth: int) -> list[Any]:
        if "prefixItems" in schema:
            return [self.value(item, name, hint, depth + 1) for item in schema["prefixItems"]]
        low = int(schema.get("minItems", 0))
        count = min(max(self.array_length, low), int(schema.get("maxItems", max(self.array_length, low))))
        if depth >= OPTIONAL_DEPTH:
            count = low
        items = self.resolve(schema.get("items") or {})
        if items.get("type", "string") == "string" and not {"enum", "const", "format", "anyOf"} & items.keys():
            texts = self.maker.texts(name, hint, count)
            return texts + [f"{name} {index + 1}" for index in range(len(texts), low)]
        if schema.get("uniqueItems"):
            count = max(low, min(count, 1))
        return [self.value(items, name, hint, depth + 1) for _ in range(count)]

    def numeric(self, schema: dict[str, Any], name: str, hint: str, *, whole: bool) -> int | float:
        step = schema.get("multipleOf") or (1 if whole else 0)  # 0: any number will do
        edge = 1 if whole else 1e-6
        low = schema.get("minimum")
        high = schema.get("maximum")
        if low is None and "exclusiveMinimum" in schema:
            low = schema["exclusiveMinimum"] + edge
        if high is None and "exclusiveMaximum" in schema:
            high = schema["exclusiveMaximum"] - edge
        span = self.integer_span if whole else 1.0
        if low is None:
            low = 0 if high is None or high >= 0 else high - span
        if high is None:
            high = low + span * (step or 1)
        if not step:
            return self.maker.number(name, hint, float(low), max(float(low), float(high)))
        first, last = math.ceil(low / step), math.floor(high / step)
        steps = self.maker.integer(name, hint, first, max(first, last))
        return steps * int(step) if whole else steps * float(step)

    def text(self, schema: dict[str, Any], name: str, hint: str) -> str:
        text = _FORMATS.get(schema.get("format", "")) or self.maker.text(name, hint)
        text = text.ljust(int(schema.get("minLength", 0)), ".")
        return text[: int(schema["maxLength"])] if "maxLength" in schema else text
