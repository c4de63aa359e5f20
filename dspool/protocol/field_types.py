"""The types that a definition's fields may have: text or JSON schema -> a tree, checked against an allow-list.

    text      str, int, float, bool, Any, image, list, list[...], dict, dict[str, ...], Literal[...], Optional[...],
              ... | None; "string", "integer", "number", "boolean", "array" and "object" are taken too
    schema    an object with the keywords of KEYWORDS; "$ref" to its own "$defs"

Rules:
    1. A type may come from anywhere. Nothing is imported or evaluated, and whatever is not on the list is refused by
       name: a keyword that was ignored would let values through that its author excluded.
    2. The tree is bounded, written out in full: MAX_DEPTH levels, MAX_SIZE parts. A schema that refers to one part from
       many places is small as text and may be huge where types are written out, as DSPy does for a prompt.
    3. "format", "title" and "examples" are words for the reader: a date stays text.

Pure; `annotations` makes Python's types of a tree.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec

MAX_TYPE_CHARS = 500
MAX_DEPTH = 16
MAX_SIZE = 1000
MAX_PATTERN_CHARS = 500

ALLOWED = (
    "str, int, float, bool, Any, image, list[...], dict[str, ...], Literal[...], Optional[...], or a JSON schema as an "
    "object"
)
NAMES = {
    **{name: name for name in ("str", "int", "float", "bool", "Any", "list", "dict", "image")},
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array": "list",
    "object": "dict",
    "any": "Any",
    "Image": "image",
    "dspy.Image": "image",
}
"""The names that stand for a type by themselves. The original bridge looked at no type, so its clients may send
whatever their own language calls it."""
_KEYS = ("str", "int", "float", "bool")
_JSON_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "null"}
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}

_LIMITS = {
    "str": {"minLength": "min_length", "maxLength": "max_length", "pattern": "pattern"},
    "number": {
        "minimum": "ge",
        "exclusiveMinimum": "gt",
        "maximum": "le",
        "exclusiveMaximum": "lt",
        "multipleOf": "multiple_of",
    },
    "list": {"minItems": "min_length", "maxItems": "max_length"},
    "dict": {"minProperties": "min_length", "maxProperties": "max_length"},
}
"""Keyword -> what pydantic calls it, by the kind of value that it limits."""
_WORDS = frozenset(
    "title description default examples format deprecated readOnly writeOnly $comment $schema $id".split()
)
_STRUCTURE = frozenset(
    "type enum const anyOf items properties required additionalProperties $ref $defs definitions".split()
)
KEYWORDS = _STRUCTURE | _WORDS | {word for words in _LIMITS.values() for word in words}
"""Those of JSON schema that are understood; any that begins with "x-" is passed over."""


class DefinitionError(ValueError):
    """A definition, or a type in one, that no program can be made from. The text says which part."""


class Plain(msgspec.Struct, frozen=True):
    """A type that has a name: str, int, float, bool, Any, null, list, dict, image."""

    name: str


class Choice(msgspec.Struct, frozen=True):
    """One of these values: texts, whole numbers, booleans, None."""

    values: tuple[str | int | bool | None, ...]


class ListOf(msgspec.Struct, frozen=True):
    """A list of items of one type."""

    item: FieldType


class DictOf(msgspec.Struct, frozen=True):
    """A dict with values of one type. `key`: str, int, float or bool."""

    key: str
    item: FieldType


class OneOf(msgspec.Struct, frozen=True):
    """A value of any of these types."""

    options: tuple[FieldType, ...]


class Limited(msgspec.Struct, frozen=True):
    """A type whose values are limited; `limits` in pydantic's words: ge, max_length, pattern, ..."""

    base: FieldType
    limits: dict[str, Any]


class Property(msgspec.Struct, frozen=True):
    """A property of a model. `default` is UNSET where there is none."""

    name: str
    type: FieldType
    required: bool
    default: Any = msgspec.UNSET
    description: str | None = None


class Model(msgspec.Struct, frozen=True):
    """An object with properties. `extra`: what becomes of others: "ignore", "allow" or "forbid"."""

    name: str
    properties: tuple[Property, ...]
    description: str | None = None
    extra: str = "ignore"


FieldType = Plain | Choice | ListOf | DictOf | OneOf | Limited | Model


def parse_type(source: Any, name: str = "Model") -> FieldType:
    """The tree of a type.

    Args:
        source: its text, or its JSON schema as a dict.
        name: what a model is called whose schema has no title.

    Raises:
        DefinitionError: it is not on the list, or too deep or too large; the text says which part.
    """
    tree = _Schema(source).type(source, name, 0) if isinstance(source, Mapping) else _parse_text(source)
    _check_size(tree)
    return tree


# --- text -------------------------------------------------------------------------------------------------------------


def _parse_text(text: str) -> FieldType:
    try:
        if len(text) > MAX_TYPE_CHARS:
            raise SyntaxError(f"it is longer than {MAX_TYPE_CHARS} characters")
        return _type_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", error)  # without the place in a text that is Python's own
        raise DefinitionError(f"the type {text!r:.100} is not one of {ALLOWED}: {reason}") from None


def _type_of(node: ast.expr) -> FieldType:
    match node:
        case ast.Name() | ast.Attribute():
            name = NAMES.get(ast.unparse(node))
            if name is not None:
                return Plain(name)
        case ast.Subscript(value=ast.Name(id="list" | "List"), slice=item):
            return ListOf(_type_of(item))
        case ast.Subscript(value=ast.Name(id="dict" | "Dict"), slice=ast.Tuple(elts=[key, item])):
            name = NAMES.get(ast.unparse(key), "")
            if name not in _KEYS:
                raise SyntaxError("a dict's keys are str, int, float or bool")
            return DictOf(name, _type_of(item))
        case ast.Subscript(value=ast.Name(id="Optional"), slice=item):
            return _or_none(_type_of(item))
        case ast.BinOp(left=item, op=ast.BitOr(), right=ast.Constant(value=None)):
            return _or_none(_type_of(item))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            nodes = choices.elts if isinstance(choices, ast.Tuple) and choices.elts else [choices]
            return Choice(tuple(_choice(_written(node)) for node in nodes))
    raise SyntaxError(f"{ast.unparse(node):.80} is not allowed")


def _written(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SyntaxError(f"a choice that is text has quotes around it: {ast.unparse(node)!r:.80}") from None


def _choice(value: Any) -> str | int | bool | None:
    if value is not None and not isinstance(value, str | int):
        raise SyntaxError(f"a choice is a text, a whole number, a boolean or null, not {value!r:.40}")
    return value


def _or_none(tree: FieldType) -> FieldType:
    options = tree.options if isinstance(tree, OneOf) else (tree,)
    return tree if Plain("null") in options or tree == Plain("Any") else OneOf((*options, Plain("null")))


# --- JSON schema ------------------------------------------------------------------------------------------------------


class _Schema:
    """One walk over one schema. Each part that is referred to is read once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._parts: dict[str, Any] = {}
        for group in ("definitions", "$defs"):
            parts = root.get(group, {})
            if not isinstance(parts, Mapping):
                _refuse(f"{group!r} must be an object")
            self._parts |= {f"#/{group}/{name}": part for name, part in parts.items()}
        self._read: dict[str, FieldType | None] = {}
        """None: it is being read."""
        self._count = 0

    def type(self, schema: Any, name: str, depth: int) -> FieldType:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_SIZE:
            _refuse(f"it is more than {MAX_DEPTH} levels deep, or has more than {MAX_SIZE:,} parts")
        if schema is True:
            return Plain("Any")
        if not isinstance(schema, Mapping):
            _refuse(f"{name}: a schema is an object, not {schema!r:.40}")
        self._check_keywords(schema, name)
        if "$ref" in schema:
            return self._referred(schema, name, depth)
        if "enum" in schema or "const" in schema:
            return self._choice(schema, name)
        if "anyOf" in schema:
            options = self._list(schema, "anyOf", name)
            return _any_of([self.type(option, name, depth + 1) for option in options])
        kinds = schema.get("type")
        if isinstance(kinds, list) and kinds:
            return _any_of([self._of_kind(kind, schema, name, depth) for kind in kinds])
        return Plain("Any") if kinds is None else self._of_kind(kinds, schema, name, depth)

    def _check_keywords(self, schema: Mapping[str, Any], name: str) -> None:
        for word in schema:
            if word not in KEYWORDS and not str(word).startswith("x-"):
                _refuse(f"{name}: the schema keyword {word!r:.40} is not supported")
        described = schema.get("description")
        if described is not None and not isinstance(described, str):
            _refuse(f"{name}: a description is a text")

    def _referred(self, schema: Mapping[str, Any], name: str, depth: int) -> FieldType:
        path = schema["$ref"]
        beside = sorted(schema.keys() - _WORDS - {"$ref", "$defs", "definitions"})
        if beside:
            _refuse(f"{name}: {beside[0]!r} beside a $ref is not supported")
        if not isinstance(path, str) or path not in self._parts:
            _refuse(f"{name}: the $ref {path!r:.80} is not in the schema's own $defs")
        if path in self._read:
            found = self._read[path]
            if found is None:
                _refuse(f"{name}: the schema refers to itself through the $ref {path!r:.80}")
            return found
        self._read[path] = None
        tree = self.type(self._parts[path], path.rpartition("/")[2], depth + 1)
        self._read[path] = tree
        return tree

    def _choice(self, schema: Mapping[str, Any], name: str) -> FieldType:
        values = [schema["const"]] if "const" in schema else self._list(schema, "enum", name)
        kind = _JSON_TYPES.get(str(schema.get("type")))
        for value in values:
            try:
                _choice(value)
            except SyntaxError as error:
                _refuse(f"{name}: {error.msg}")
            if kind in _PYTHON_TYPES and not _is(value, kind):
                _refuse(f"{name}: the choice {value!r:.40} is no {schema['type']}")
        return Choice(tuple(values))

    def _of_kind(self, kind: Any, schema: Mapping[str, Any], name: str, depth: int) -> FieldType:
        if kind == "array":
            items = schema.get("items")
            plain = items is None or items is True
            base: FieldType = Plain("list") if plain else ListOf(self.type(items, f"{name}Item", depth + 1))
            return self._limited(base, schema, "list", name)
        if kind == "object":
            return self._object(schema, name, depth)
        if not isinstance(kind, str) or kind not in _JSON_TYPES:
            _refuse(f"{name}: the schema type {kind!r:.40} is not one of {', '.join(_JSON_TYPES)}, array, object")
        base = Plain(_JSON_TYPES[kind])
        limits = {"str": "str", "int": "number", "float": "number"}.get(base.name)
        return base if limits is None else self._limited(base, schema, limits, name)

    def _limited(self, base: FieldType, schema: Mapping[str, Any], kind: str, name: str) -> FieldType:
        limits: dict[str, Any] = {}
        for word, own in _LIMITS[kind].items():
            if word not in schema:
                continue
            value = limits[own] = schema[word]
            if word == "pattern":
                fits = isinstance(value, str) and len(value) <= MAX_PATTERN_CHARS
            elif kind == "number":
                fits = _is(value, "float") and not (word == "multipleOf" and value <= 0)
            else:
                fits = _is(value, "int") and value >= 0
            if not fits:
                _refuse(f"{name}: {value!r:.40} is no value for {word!r}")
        return Limited(base, limits) if limits else base

    def _object(self, schema: Mapping[str, Any], name: str, depth: int) -> FieldType:
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        if not isinstance(others, bool | Mapping | None):
            _refuse(f"{name}: 'additionalProperties' is a boolean or a schema")
        if not properties:
            base: FieldType = Plain("dict")
            if isinstance(others, Mapping):
                base = DictOf("str", self.type(others, f"{name}Value", depth + 1))
            return self._limited(base, schema, "dict", name)
        if not isinstance(properties, Mapping) or not all(isinstance(key, str) and key for key in properties):
            _refuse(f"{name}: 'properties' is an object with names")
        if isinstance(others, Mapping):
            _refuse(f"{name}: 'additionalProperties' with a schema beside 'properties' is not supported")
        if unsupported := sorted(_LIMITS["dict"].keys() & schema.keys()):
            _refuse(f"{name}: {unsupported[0]!r} beside 'properties' is not supported")
        required = self._list(schema, "required", name) if "required" in schema else []
        if unknown := [each for each in required if each not in properties]:
            _refuse(f"{name}: the required {unknown[0]!r:.40} is not among the properties")
        found = tuple(self._property(key, part, key in required, name, depth) for key, part in properties.items())
        extra = {None: "ignore", True: "allow", False: "forbid"}[others]
        return Model(_model_name(schema.get("title") or name), found, schema.get("description"), extra)

    def _property(self, key: str, schema: Any, required: bool, owner: str, depth: int) -> Property:
        tree = self.type(schema, f"{owner}.{key}", depth + 1)
        words: Mapping[str, Any] = schema if isinstance(schema, Mapping) else {}
        return Property(key, tree, required, words.get("default", msgspec.UNSET), words.get("description"))

    def _list(self, schema: Mapping[str, Any], word: str, name: str) -> list[Any]:
        values = schema[word]
        if not isinstance(values, list | tuple) or (not values and word != "required") or len(values) > MAX_SIZE:
            _refuse(f"{name}: {word!r} is a list of 1 to {MAX_SIZE:,} items")
        return list(values)


def _refuse(reason: str) -> NoReturn:
    raise DefinitionError(f"the type's JSON schema can't be used: {reason}")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _any_of(options: list[FieldType]) -> FieldType:
    if Plain("Any") in options:
        return Plain("Any")
    _check_size(OneOf(tuple(options)))  # what is huge when it is written out can't be compared either
    distinct = tuple(option for number, option in enumerate(options) if option not in options[:number])
    return distinct[0] if len(distinct) == 1 else OneOf(distinct)


def _model_name(text: Any) -> str:
    words = re.findall(r"[^\W_]+", str(text)[:80])
    name = "".join(word[0].upper() + word[1:] for word in words) or "Model"
    return f"Model{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


# --- size -------------------------------------------------------------------------------------------------------------


def _check_size(tree: FieldType) -> None:
    size, depth = _measure(tree, {})
    if depth > MAX_DEPTH or size > MAX_SIZE:
        raise DefinitionError(
            f"the type has {size:,} parts, {depth} levels deep, when it is written out; at most {MAX_SIZE:,} and "
            f"{MAX_DEPTH} are taken"
        )


def _measure(tree: FieldType, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many parts a tree has, written out in full, and how many levels."""
    found = known.get(id(tree))
    if found is None:
        inner = [_measure(part, known) for part in _parts(tree)]
        own = len(tree.values) if isinstance(tree, Choice) else 1
        size, depth = own + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        found = known[id(tree)] = (size, depth)
    return found


def _parts(tree: FieldType) -> Iterator[FieldType]:
    match tree:
        case ListOf(item=item) | DictOf(item=item):
            yield item
        case OneOf(options=options):
            yield from options
        case Limited(base=base):
            yield base
        case Model(properties=properties):
            yield from (each.type for each in properties)
