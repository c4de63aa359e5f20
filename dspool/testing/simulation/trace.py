"""A world's trace: each step's time, command and effects, as a hash, as its last lines, and told as it happens.

Rules:
    1. Two runs of a seed are equal if their hashes are: everything that went into the core and came out is in it.
    2. It draws no chance and reads no table: it may be watched, or not, without a difference.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from dspool.pool.core import commands as c
from dspool.types import ExitReport

LINES_KEPT = 30
_encode = msgspec.msgpack.Encoder().encode


class Trace:
    """What happened.

    Args:
        tell: called with each line, as it happens.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._tell = tell
        self._hash = hashlib.blake2b(digest_size=16)
        self._tail: deque[tuple[float, c.Command, list[c.Effect]]] = deque(maxlen=LINES_KEPT)

    def add(self, now: float, command: c.Command, effects: list[c.Effect]) -> None:
        """Note one step of the core."""
        self._tail.append((now, command, effects))
        if self._tell is not None:
            self._tell(_line(now, command, effects))
        self._hash.update(_encode((now, _tagged(command), [_tagged(effect) for effect in effects])))

    def digest(self) -> str:
        """The hash of all steps so far."""
        return self._hash.hexdigest()

    def last_lines(self) -> list[str]:
        """The last steps, one line each."""
        return [_line(*entry) for entry in self._tail]


def _tagged(struct: Any) -> tuple[str, Any]:
    return type(struct).__name__, struct


def _line(now: float, command: c.Command, effects: list[c.Effect]) -> str:
    said = ", ".join(_short(effect) for effect in effects)
    return f"{now:12.6f}  {_short(command)}" + (f"  ->  {said}" if said else "")


def _short(struct: Any) -> str:
    """A command or effect without the fields that have their default values."""
    if isinstance(struct, c.Report):
        fields = {name: value for name, value in struct.fields.items() if name != "report"}
        return f"{struct.event}{fields}"
    parts = []
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if isinstance(value, ExitReport):
            value = value.reason
        if value != field.default:
            parts.append(f"{field.name}={value!r}")
    return f"{type(struct).__name__}({', '.join(parts)})"
