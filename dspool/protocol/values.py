"""Values: what a caller passes and a program returns <-> plain data, which MessagePack and JSON can carry.

    to_plain        any supported value -> plain data (plain.py has the rules)
    to_plain_once   the same, as msgspec's enc_hook
    from_ext        one Ext -> the value it carries, msgspec's ext_hook (extensions.py has the table)
    to_json         any supported value -> plain JSON
    revive          a plain value -> the type that a signature's field declares

JSON has fewer types: a tuple or set is an array there, bytes are base64 text, date and time ISO 8601, Decimal, UUID and
ints beyond 64 bits text. NaN and infinities, which it has no notation for, are refused.

pydantic is looked up in sys.modules and never imported. Knows nothing of messages and programs.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from dspool.errors import EncodeError
from dspool.protocol.extensions import from_ext as from_ext
from dspool.protocol.plain import MAX_INT, MIN_INT, Refused, to_plain as to_plain, to_plain_once as to_plain_once
from dspool.signals import let_through

_ADAPTERS_KEPT = 512
_SAME_IN_JSON = frozenset({str, bool, type(None)})


def to_json(value: Any, name: str = "value") -> Any:
    """A value as plain JSON.

    Args:
        value: anything that to_plain takes.
        name: what errors call it, e.g. "result".

    Returns:
        None, bool, int (64 bits), finite float, str, list or dict with str keys.

    Raises:
        EncodeError: something in it has no JSON form; it says where and what.
    """
    try:
        return _json(to_plain(value, name))
    except Refused as refused:
        raise refused.to_error(name) from None
    except RecursionError as error:  # the stack was nearly full already
        raise EncodeError(f"{name} can't be read to its end: {error}") from error


def revive(value: Any, annotation: Any) -> Any:
    """A plain value as the type that an annotation names: models, dspy.Image, enums, datetimes, containers of them.

    Args:
        value: plain data, as it came through a pipe.
        annotation: a type, as in a signature's field.

    Returns:
        The revived value; `value` itself where it doesn't fit, or where pydantic isn't loaded.
    """
    if annotation is Any or type(value) is annotation:
        return value
    if "pydantic" not in sys.modules:
        return value
    try:
        adapter = _adapter(annotation)
    except TypeError:  # metadata that can't be hashed: Annotated[str, {}]
        adapter = _adapter.__wrapped__(annotation)
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value, by_alias=True, by_name=True)
    except Exception as error:  # a validation error, or whatever a validator of the user's raises
        let_through(error)
        return value


@functools.lru_cache(_ADAPTERS_KEPT)
def _adapter(annotation: Any) -> Any:
    try:
        return sys.modules["pydantic"].TypeAdapter(annotation)
    except Exception as error:  # not a type that pydantic has a schema for
        let_through(error)
        return None


def _json(plain: Any) -> Any:
    if plain is None or isinstance(plain, str | bool):
        return plain
    if isinstance(plain, int):
        return plain if MIN_INT <= plain <= MAX_INT else str(plain)
    if isinstance(plain, float):
        if not math.isfinite(plain):
            raise Refused(f"is {plain}, which JSON has no notation for; send None or text in its place")
        return plain
    if isinstance(plain, list | tuple | set | frozenset):
        return _json_array(plain)
    if isinstance(plain, dict):
        return _json_object(plain)
    if isinstance(plain, Ext):
        return _json(from_ext(plain.code, memoryview(plain.data)))
    if isinstance(plain, complex):
        raise Refused("is a complex number, which has no JSON form; send its real and imaginary parts")
    return msgspec.to_builtins(plain)


def _json_array(plain: Collection[Any]) -> list[Any]:
    if _SAME_IN_JSON.issuperset(map(type, plain)):
        return list(plain)
    array: list[Any] = []
    for item in plain:
        try:
            array.append(_json(item))
        except Refused as refused:
            refused.path.append(f"[{len(array)}]")
            raise
    return array


def _json_object(plain: dict[Any, Any]) -> dict[str, Any]:
    fresh: dict[str, Any] = {}
    for key, item in plain.items():
        try:
            fresh[key if type(key) is str else _json_key(key)] = _json(item)
        except Refused as refused:
            refused.path.append(f"[{key!r:.80}]")
            raise
    if len(fresh) < len(plain):
        raise Refused("has keys that are equal as JSON, where every key is text; make them different text")
    return fresh


def _json_key(key: Any) -> str:
    """A key as text, the way Python's own json writes it."""
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    text = _json(key)
    if isinstance(text, list):
        raise Refused("has a key that is a tuple or set, which has no JSON form; make it text")
    return str(text)
