"""Requests that are encoded before a worker is known, and stamped when they are sent.

A call's inputs are encoded before its checkout, so that bad inputs touch no worker and no lock is held meanwhile. Its
id, and what is left of its deadline, are known only when it is written. So these two stand first in the message, at
fixed places and in fixed widths, and `stamp` fills them in. The message is plain MessagePack, as any other request's.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from dspool.errors import EncodeError, FrameTooLarge
from dspool.protocol import values
from dspool.protocol.frames import HEADER_BYTES, seal_frame
from dspool.signals import let_through

_ENCODER = msgspec.msgpack.Encoder(enc_hook=values.to_plain_once)
_ID_AT = HEADER_BYTES + 1 + 3 + 1  # frame header, map header, "id", type byte
_DEADLINE_AT = _ID_AT + 8 + 12 + 1  # id, "deadline_ms", type byte
_MAX_DEADLINE_MS = 2**32 - 1
_ID = struct.Struct(">Q")
_DEADLINE = struct.Struct(">I")


def _prefix(command: str, *, deadline: bool, session: bool) -> bytes:
    """Everything up to the value that comes last: frame header, id, deadline, command, and the next key."""
    fields = bytes([0x80 | (3 + deadline + session)])
    fields += _ENCODER.encode("id") + b"\xcf" + bytes(8)
    if deadline:
        fields += _ENCODER.encode("deadline_ms") + b"\xce" + bytes(4)
    fields += _ENCODER.encode("command") + _ENCODER.encode(command)
    fields += _ENCODER.encode("session_id" if session else "args")
    return bytes(HEADER_BYTES) + fields


_PREFIXES = {
    (command, deadline, session): _prefix(command, deadline=deadline, session=session)
    for command in ("execute_program", "create_program")
    for deadline in (False, True)
    for session in (False, True)
}
_ARGS_KEY = _ENCODER.encode("args")


def encode_request(
    command: str, args: Any, max_frame_bytes: int, *, deadline: bool = False, session: str | None = None
) -> bytearray:
    """A whole frame with id 0 and deadline 0; `stamp` it before it is sent.

    Args:
        command: "execute_program" or "create_program".
        args: its args, as the struct of `messages`; values in it plain already (`values.to_plain`).
        max_frame_bytes: the cap.
        deadline: whether the request has a deadline.
        session: its session_id.

    Raises:
        EncodeError: a value can't be sent, or the frame is over the cap.
    """
    frame = bytearray(_PREFIXES[command, deadline, session is not None])
    try:
        if session is not None:
            frame += _ENCODER.encode(session)
            frame += _ARGS_KEY
        _ENCODER.encode_into(args, frame, len(frame))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        let_through(error)
        raise EncodeError(f"the inputs can't be sent as plain data: {error}") from error
    try:
        seal_frame(frame, max_frame_bytes)
    except FrameTooLarge as error:
        raise EncodeError(f"the inputs are too large: {error}; raise max_frame_bytes or send less") from None
    return frame


def stamp(frame: bytearray, request_id: int, left_s: float | None = None) -> None:
    """Put in the id and what is left of the deadline.

    Args:
        frame: from encode_request.
        request_id: 0 to 2**64 - 1.
        left_s: seconds left; only where the frame was made with a deadline. Beyond 49 days it is cut to that.
    """
    _ID.pack_into(frame, _ID_AT, request_id)
    if left_s is not None:
        _DEADLINE.pack_into(frame, _DEADLINE_AT, min(_MAX_DEADLINE_MS, max(0, int(left_s * 1000))))
