"""Frames: a 4-byte big-endian length, then that many bytes. Sans-IO.

Rules:
    1. The cap is checked as soon as the four bytes are there, before anything is allocated for the body.
    2. The buffer grows with the bytes received, never with the length claimed: to GROWTH times what it holds at most.
    3. Any chunking gives the same frames; only ProtocolError is ever raised, and after it the decoder stays broken.
    4. A large frame's buffer is given back before the next receive, or when give_back() is called. A process keeps one
       of these, the last, for the next large frame on any pipe.

A frame handed out is a view into the decoder's buffer, good until the next call of feed(), space() or give_back().

Knows nothing of sockets, and of a body only how long it is.
"""

from __future__ import annotations

import struct
from collections import deque

from dspool.errors import FrameTooLarge, MalformedFrame

HEADER_BYTES = 4
DEFAULT_MAX_FRAME_BYTES = 64 * 2**20
MAX_LENGTH = 2**32 - 1
"""The longest body that four bytes of length can announce."""
GROWTH = 16
"""With 4 a frame of 16 MB is moved three times, which takes a tenth of the time that it travels; with more, a lie about
a frame's length costs more."""
KEPT = 256 * 1024
"""Bytes: a buffer that grew over this for a frame is given back after it."""

SPARE = 4
"""A buffer that was given back is used for what needs at least so small a part of it."""
LARGEST_SPARE = HEADER_BYTES + DEFAULT_MAX_FRAME_BYTES
"""A longer one is not kept: where `max_frame_bytes` is 4 GB, one such frame must not cost as much for good."""

_spare: deque[bytearray] = deque(maxlen=1)
"""The buffer given back last, in all of the process: fetching the pages of a large one anew for each call takes as long
as sending it does, and on a virtual machine several times as long. A deque's steps are whole, so it needs no lock."""
_LENGTH = struct.Struct(">I")
_ROOM = 64 * 1024
"""What the buffer starts with, and goes back to after a frame for which it grew over KEPT."""
_LITTLE = 4 * 1024
"""With less than this free, and less than the frame still needs, room is made before the next receive."""


def encode_frame(body: bytes | bytearray | memoryview, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> bytearray:
    """A frame with `body` in it.

    Raises:
        FrameTooLarge: the body is over the cap.
    """
    frame = bytearray(HEADER_BYTES)
    frame += body
    seal_frame(frame, max_frame_bytes)
    return frame


def seal_frame(frame: bytearray, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
    """Write the length into the first four bytes of `frame`, whose body stands behind them already.

    Raises:
        FrameTooLarge: the body is over the cap.
    """
    length = len(frame) - HEADER_BYTES
    if length > max_frame_bytes or length > MAX_LENGTH:
        raise FrameTooLarge(f"a message of {length:,} bytes is over max_frame_bytes={max_frame_bytes:,}")
    _LENGTH.pack_into(frame, 0, length)


class FrameDecoder:
    """Bytes in, in any chunks; frames out.

    Either receive into space() and say received(), or feed(); then take next_frame() until it gives None.

    Args:
        max_frame_bytes: the longest body that is taken.
    """

    __slots__ = ("_broken", "_buffer", "_end", "_needed", "_start", "_view", "max_frame_bytes")

    def __init__(self, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray(_ROOM)
        self._view = memoryview(self._buffer)
        self._start = 0  # first byte not handed out
        self._end = 0  # first byte not received
        self._needed = (
            HEADER_BYTES  # bytes from _start that the frame under way takes, header included, as far as known
        )
        self._broken: str | None = None

    @property
    def buffered(self) -> int:
        """Bytes received and not handed out."""
        return self._end - self._start

    def space(self) -> memoryview:
        """Room to receive into, never empty; say with received() how much was used. Views from before are void."""
        if not self._end:
            return self._view
        held = self._end - self._start
        if not held:
            self._start = self._end = 0
            if len(self._buffer) > KEPT:
                large, self._buffer = self._buffer, bytearray(_ROOM)
                self._view = memoryview(self._buffer)
                if len(large) <= LARGEST_SPARE:
                    _spare.append(large)  # last: whatever ends this before, no buffer has two users
            return self._view
        free = len(self._buffer) - self._end
        if free < _LITTLE and free < max(1, self._needed - held):
            self._make_room(held)
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were received into the last space()."""
        self._end += count

    def take(self, count: int) -> memoryview | None:
        """received() and next_frame() in one, for those who wait for one frame.

        Raises:
            FrameTooLarge: the length is over the cap.
        """
        if not self._end and count > HEADER_BYTES:  # one frame and nothing else, as a rule: it leaves nothing behind
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length == count - HEADER_BYTES and length <= self.max_frame_bytes:
                return self._view[HEADER_BYTES:count]
        self._end += count
        return self.next_frame()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take `data`, in place of space() and received().

        Raises:
            FrameTooLarge: the length of the first frame in it is over the cap.
        """
        rest = memoryview(data)
        self._check_header()
        while rest:
            room = self.space()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            self._end += count
            rest = rest[count:]
            self._check_header()

    def next_frame(self) -> memoryview | None:
        """The next whole frame's body, or None until more bytes have come.

        Raises:
            FrameTooLarge: the length is over the cap.
        """
        start, end = self._start, self._end
        if end - start >= HEADER_BYTES and self._broken is None:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            stop = start + HEADER_BYTES + length
            if stop <= end and length <= self.max_frame_bytes:
                self._start = stop
                self._needed = HEADER_BYTES
                return self._view[start + HEADER_BYTES : stop]
        self._check_header()
        return None

    def give_back(self) -> None:
        """The frame handed out last is read, and was longer than KEPT: let go of the buffer that it took."""
        if not self.buffered:
            self.space()

    def finish(self) -> None:
        """The pipe ended. To be called when next_frame() gives None.

        Raises:
            MalformedFrame: it ended inside a frame.
            FrameTooLarge: it was broken before.
        """
        self._check_header()
        if self.buffered:
            raise MalformedFrame(f"the pipe ended after {self.buffered:,} of {self._needed:,} bytes of a frame")

    def _check_header(self) -> None:
        """Learn what the frame under way needs."""
        if self._broken is None and self._end - self._start >= HEADER_BYTES:
            (length,) = _LENGTH.unpack_from(self._buffer, self._start)
            self._needed = HEADER_BYTES + length
            if length > self.max_frame_bytes:
                header = bytes(self._view[self._start : self._start + HEADER_BYTES])
                self._broken = _too_large(header, length, self.max_frame_bytes)
        if self._broken is not None:
            raise FrameTooLarge(self._broken)

    def _make_room(self, held: int) -> None:
        """Move what is held to the front; into a larger buffer, unless there is little of it or its frame fits."""
        size = len(self._buffer)
        if held > size // GROWTH and not held < self._needed <= size:
            size = max(size, min(max(self._needed, 2 * held), GROWTH * held + _ROOM))
        if size > len(self._buffer):
            fresh = _buffer_of(size)
            fresh[:held] = self._view[self._start : self._end]
            self._buffer, self._view = fresh, memoryview(fresh)
        else:
            self._view[:held] = self._view[self._start : self._end]
        self._start, self._end = 0, held


def _buffer_of(size: int) -> bytearray:
    """A buffer of so many bytes: the spare one, if it has as many and not several times more."""
    try:
        spare = _spare.pop()
    except IndexError:
        return bytearray(size)
    return spare if size <= len(spare) <= SPARE * size else bytearray(size)


def _too_large(header: bytes, length: int, cap: int) -> str:
    message = f"a frame says it is {length:,} bytes long; max_frame_bytes={cap:,}"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in header):
        message += f"; its first four bytes are the text {header.decode()!r}: the length header seems to be missing"
    return message
