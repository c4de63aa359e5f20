"""Plain data: what callers pass and programs return, as None, bool, int, float, str, bytes, list, dict and Ext.

Rules:
    1. Value in, value out: str, int, float, bool, None, bytes, list, dict, tuple, set, frozenset, datetime, date, time,
       timedelta, Decimal, UUID and complex come back equal and with their type.
    2. Records become dicts of their fields: pydantic models (custom serializers are respected, excluded fields left
       out), dspy.Image and kin, dspy.Prediction and Example, dataclasses, attrs classes, msgspec Structs. Their classes
       stay behind; values.revive brings them back where a signature names them.
    3. Subclasses become what they extend (a namedtuple is a tuple, a StrEnum's member its str), other Enum members
       their values, paths, URLs and IP addresses text, numpy's scalars and arrays numbers and lists.
    4. A set whose elements are no longer hashable as plain data (frozen models) becomes a list.
    5. Whatever else, cycles, and what is nested over MAX_DEPTH is refused with an EncodeError that names the place.
    6. A container is rebuilt only if something in it changed; nothing that was passed in is ever changed.

pydantic, dspy and numpy are looked up in sys.modules and never imported: a value of theirs can only exist where they
are loaded already. Knows nothing of messages and programs, and nothing of the way back.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import msgspec
from msgspec.msgpack import Ext

from dspool.errors import EncodeError
from dspool.protocol import extensions
from dspool.signals import let_through

MAX_DEPTH = 200
"""Containers within containers. msgspec and Python's own stack take several times as many, on either side."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1
"""What MessagePack has as ints."""

_PLACES_SHOWN = 16
_ATOMS = frozenset({str, float, bool, type(None), bytes})
_ATOMS_AND_INT = _ATOMS | {int}
_TEXT = frozenset({str})

Converter = Callable[[Any, int], Any]
"""Of a value of some type at some depth, makes the plain value."""


class Refused(Exception):
    """A value has no plain form. On its way out each container adds to `path` where in it the value stands."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []

    def to_error(self, name: str) -> EncodeError:
        """What the caller sees; `name` is the outermost value's."""
        places = self.path[::-1]
        if len(places) > _PLACES_SHOWN:
            places[_PLACES_SHOWN // 2 : -_PLACES_SHOWN // 2] = ["..."]
        return EncodeError(f"{name}{''.join(places)} {self.why}")


def to_plain(value: Any, name: str = "value") -> Any:
    """A value as plain data.

    Args:
        value: anything that the module's rules name.
        name: what errors call it, e.g. "inputs".

    Returns:
        None, bool, int, float, str, bytes, list, dict or Ext; `value` itself where it is plain already.

    Raises:
        EncodeError: something in it has no plain form; it says where: "inputs['a'][3] is a <class ...>, ...".
    """
    if type(value) is dict and _ATOMS.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value)):
        return value  # most inputs and outputs: names to text
    try:
        return _plain(value, 0)
    except Refused as refused:
        raise refused.to_error(name) from refused.__cause__
    except Exception as error:  # another thread changes it meanwhile; the stack was nearly full; a key has no repr
        let_through(error)
        raise EncodeError(f"{name} can't be read to its end: {error}") from error


def to_plain_once(obj: Any) -> Any:
    """msgspec's enc_hook: a safety net for what was put into a message without to_plain.

    Raises:
        EncodeError: it has no plain form.
    """
    return to_plain(obj)


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is int and MIN_INT <= value <= MAX_INT:
        return value
    if depth > MAX_DEPTH:
        raise Refused(f"is nested more than {MAX_DEPTH} deep, or holds itself")
    if kind is dict:
        return _plain_dict(value, depth + 1)
    if kind is list:
        return _plain_list(value, depth + 1)
    convert = _EXACT.get(kind) or _converter(kind)
    try:
        return convert(value, depth + 1)
    except Refused:
        raise
    except Exception as error:
        let_through(error)
        raise Refused(f"is a {_named(kind)} that can't be sent: {type(error).__name__}: {error}") from error


def _plain_dict(value: dict[Any, Any], depth: int) -> Any:
    fresh: dict[Any, Any] | None = None
    for key, item in value.items():
        if type(key) is not str and not _is_native_key(key):
            return _plain_pairs(value, depth)
        kind = type(item)
        if kind in _ATOMS or (kind is int and MIN_INT <= item <= MAX_INT):
            continue
        try:
            plain = _plain(item, depth)
        except Refused as refused:
            refused.path.append(f"[{key!r:.80}]")
            raise
        if plain is not item:
            if fresh is None:
                fresh = value.copy()
            fresh[key] = plain
    return value if fresh is None else fresh


def _plain_list(value: list[Any], depth: int) -> list[Any]:
    kinds = set(map(type, value))
    if kinds <= _ATOMS or (kinds == {int} and min(value) >= MIN_INT and max(value) <= MAX_INT):
        return value
    fresh: list[Any] | None = None
    for index, item in enumerate(value):
        try:
            plain = _plain(item, depth)
        except Refused as refused:
            refused.path.append(f"[{index}]")
            raise
        if plain is not item:
            if fresh is None:
                fresh = value.copy()
            fresh[index] = plain
    return value if fresh is None else fresh


def _plain_item(item: Any, depth: int, place: str) -> Any:
    try:
        return _plain(item, depth)
    except Refused as refused:
        refused.path.append(place)
        raise


def _is_native_key(key: Any) -> bool:
    return type(key) in _ATOMS or (type(key) is int and MIN_INT <= key <= MAX_INT)


def _plain_pairs(value: dict[Any, Any], depth: int) -> Any:
    """A dict with other keys than MessagePack has: with their plain forms as keys, else, as for tuples, PAIRS."""
    keys = [_plain_item(key, depth, f", key {key!r:.80}") for key in value]
    items = [_plain_item(item, depth, f"[{key!r:.80}]") for key, item in value.items()]
    if all(map(_is_native_key, keys)):
        fresh = dict(zip(keys, items, strict=True))
        if len(fresh) < len(keys):
            raise Refused("has keys that are equal as plain data; make them plain and different")
        return fresh
    for key, plain in zip(value, keys, strict=True):
        if not extensions.is_hashable(plain):
            raise Refused(f"has the key {key!r:.80}, which is no longer hashable as plain data; use a plain key")
    return extensions.pack_elements(extensions.PAIRS, [part for pair in zip(keys, items, strict=True) for part in pair])


def _plain_tuple(value: Iterable[Any], depth: int) -> Ext:
    return extensions.pack_elements(extensions.TUPLE, _plain_list(list(value), depth))


def _plain_set(code: int) -> Converter:
    def convert(value: Iterable[Any], depth: int) -> Any:
        elements = _plain_list(list(value), depth)
        if _ATOMS_AND_INT.issuperset(map(type, elements)) or all(map(extensions.is_hashable, elements)):
            return extensions.pack_elements(code, elements)
        return elements

    return convert


def _plain_ext(value: Ext, depth: int) -> Ext:
    extensions.from_ext(value.code, memoryview(value.data))  # the receiver would refuse the whole message
    return value


def _plain_record(names: Iterable[str]) -> Converter:
    names = tuple(names)

    def convert(value: Any, depth: int) -> dict[str, Any]:
        fields = ((name, getattr(value, name)) for name in names)
        return {name: _plain_item(item, depth, f".{name}") for name, item in fields if item is not msgspec.UNSET}

    return convert


def _plain_model(kind: Any) -> Converter:
    """For a pydantic model: its fields, but by its own serializers and aliases where it says so."""
    if kind.__pydantic_root_model__:
        return lambda model, depth: _plain(model.root, depth)
    if kind.model_config.get("serialize_by_alias"):
        return lambda model, depth: _plain(model.model_dump(round_trip=True, warnings=False, by_alias=True), depth)
    if kind.__pydantic_decorators__.model_serializers:
        return lambda model, depth: _plain(model.model_dump(round_trip=True, warnings=False), depth)
    names = frozenset(name for name, field in kind.model_fields.items() if not field.exclude)
    dumped = names & _fields_with_serializers(kind)

    def convert(model: Any, depth: int) -> dict[str, Any]:
        items = {name: item for name, item in vars(model).items() if name in names} | (model.model_extra or {})
        if dumped:
            fresh = model.model_dump(include=dumped, round_trip=True, warnings=False)
            items = {name: item for name, item in items.items() if name not in dumped} | fresh
        return {name: _plain_field(model, name, item, depth) for name, item in items.items()}

    return convert


def _fields_with_serializers(kind: Any) -> set[str]:
    own: set[str] = set()
    for decorator in kind.__pydantic_decorators__.field_serializers.values():
        own.update(kind.model_fields if "*" in decorator.info.fields else decorator.info.fields)
    for name, field in kind.model_fields.items():
        words = [getattr(part, "__name__", type(part).__name__) for part in field.metadata]
        if getattr(field, "exclude_if", None) or not {"PlainSerializer", "WrapSerializer", "Json"}.isdisjoint(words):
            own.add(name)
    return own


def _plain_field(model: Any, name: str, item: Any, depth: int) -> Any:
    """A model's field. One of a type that only pydantic knows how to serialize is asked of pydantic."""
    try:
        return _plain_item(item, depth, f".{name}")
    except Refused:
        dumped = model.model_dump(include={name}, round_trip=True, warnings=False).get(name, item)
        if dumped is item:
            raise
        return _plain_item(dumped, depth, f".{name}")


def _plain_dspy_type(value: Any, depth: int) -> dict[str, Any]:
    """dspy.Image and kin: their fields, from which they can be rebuilt. Their own serializer writes prompts."""
    items = vars(value) | (value.model_extra or {})
    return {name: _plain_item(item, depth, f".{name}") for name, item in items.items()}


def _plain_numpy(value: Any, depth: int) -> Any:
    item = value.tolist()
    if type(item) is type(value):
        raise Refused(f"is a {_named(type(value))}, which Python has no number for; round it to a float")
    return _plain(item, depth)


def _refuse(kind: type) -> Converter:
    if issubclass(kind, Iterator):
        hint = "make it a list"
    elif issubclass(kind, Awaitable):
        hint = "await it"
    else:
        hint = "put plain data in its place (numbers, text, lists, dicts, dataclasses, pydantic models, ...)"
    why = f"is a {_named(kind)}, which has no plain form; {hint}"

    def convert(value: Any, depth: int) -> Any:
        raise Refused(why)

    return convert


def _named(kind: type) -> str:
    return f"<class '{kind.__module__}.{kind.__qualname__}'>"


_EXACT: dict[type, Converter] = {
    tuple: _plain_tuple,
    set: _plain_set(extensions.SET),
    frozenset: _plain_set(extensions.FROZENSET),
    int: lambda value, depth: extensions.pack_int(value),
    bytearray: lambda value, depth: bytes(value),
    memoryview: lambda value, depth: bytes(value),
    datetime: lambda value, depth: extensions.pack_datetime(value),
    date: lambda value, depth: extensions.pack_date(value),
    time: lambda value, depth: extensions.pack_time(value),
    timedelta: lambda value, depth: extensions.pack_timedelta(value),
    Decimal: lambda value, depth: extensions.pack_decimal(value),
    UUID: lambda value, depth: extensions.pack_uuid(value),
    complex: lambda value, depth: extensions.pack_complex(value),
    Ext: _plain_ext,
}
_BY_BASE: dict[type, Converter] = {
    str: lambda value, depth: str.__str__(value),
    int: lambda value, depth: _plain(int.__int__(value), depth),
    float: lambda value, depth: float.__float__(value),
    bytes: lambda value, depth: bytes(memoryview(value)),
    **_EXACT,
    list: lambda value, depth: _plain_list(list(value), depth),
    deque: lambda value, depth: _plain_list(list(value), depth),
    Mapping: lambda value, depth: _plain_dict(dict(value), depth),
    PurePath: lambda value, depth: str(value),
    ipaddress._BaseAddress: lambda value, depth: str(value),
    ipaddress._BaseNetwork: lambda value, depth: str(value),
}
"""Tried in this order: a datetime is a date too."""
_URLS = {"AnyUrl", "_BaseUrl", "_BaseMultiHostUrl", "Url", "MultiHostUrl"}
"""Names of pydantic's classes of URLs, through its versions."""
_CONVERTERS: WeakKeyDictionary[type, Converter] = WeakKeyDictionary()
"""What was found for the other types. Weak, since programs come with classes of their own and go again."""


def _converter(kind: type) -> Converter:
    found = _CONVERTERS.get(kind)
    if found is None:
        found = _CONVERTERS[kind] = _find_converter(kind)
    return found


def _find_converter(kind: type) -> Converter:
    if issubclass(kind, Enum):  # first, since its members may be of any other kind too
        return lambda value, depth: _plain(value.value, depth)
    if _is_from("dspy.adapters.types.base_type", "Type", kind):
        return _plain_dspy_type
    if _is_from("pydantic.main", "BaseModel", kind):
        return _plain_model(kind)
    if _is_from("dspy.primitives.example", "Example", kind):
        return lambda value, depth: _plain_dict(dict(value.items()), depth)
    if issubclass(kind, msgspec.Struct):
        return _plain_record(kind.__struct_fields__)
    if dataclasses.is_dataclass(kind):
        return _plain_record(field.name for field in dataclasses.fields(kind))
    if hasattr(kind, "__attrs_attrs__"):
        return _plain_record(attribute.name for attribute in kind.__attrs_attrs__)
    for base, convert in _BY_BASE.items():
        if issubclass(kind, base):
            return convert
    if _is_from("numpy", "generic", kind) or _is_from("numpy", "ndarray", kind):
        return _plain_numpy
    if any(base.__name__ in _URLS and base.__module__.startswith("pydantic") for base in kind.__mro__):
        return lambda value, depth: str(value)
    return _refuse(kind)


def _is_from(module: str, name: str, kind: type) -> bool:
    """Whether `kind` extends a class of a module that may not be loaded; it can't if it isn't."""
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(kind, base)
