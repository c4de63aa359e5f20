"""One framed pipe, whatever carries it: read a request, have it answered, write the answer.

Rules:
    1. A request is read whole before it is answered, and the pipe is waited for without limit. Deadlines are the other
       side's: while it writes it also looks for an answer, so a large request meeting a large answer can't deadlock.
    2. A whole frame with a bad body is answered with what is wrong with it. A broken frame raises ProtocolError: after
       it nothing on this pipe can be understood.
    3. A request is answered exactly once. What can't be sent is answered with the reason instead. A streamed call's
       events go out before its answer; one that can't be sent raises, and ends the call.

Transport and codec are the caller's: a socket with MessagePack, or two file objects with JSON. Knows no command.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from dspool.errors import EncodeError, FrameTooLarge, InvalidMessage
from dspool.protocol.codec import MSGPACK, Codec
from dspool.protocol.frames import DEFAULT_MAX_FRAME_BYTES, KEPT, FrameDecoder
from dspool.protocol.messages import ErrorInfo, Event, Request, Response, refused

Answer = Callable[[Request], Response]

_SHORT_MESSAGE = 200
"""Characters of an error's text that fit into any frame (`max_frame_bytes` is at least 1,024)."""


class Pipe:
    """A framed pipe's receiving and sending half.

    Args:
        receive_into: fills some of the buffer, waiting for at least one byte; 0 is the end.
        send: writes all of the buffer.
        codec: the notation.
        max_frame_bytes: the longest message either way.
    """

    def __init__(
        self,
        receive_into: Callable[[memoryview], int],
        send: Callable[[bytearray], object],
        codec: Codec,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
    ) -> None:
        self.codec = codec
        self._receive_into = receive_into
        self._send = send
        self._decoder = FrameDecoder(max_frame_bytes)

    @classmethod
    def over_socket(cls, sock: socket.socket, codec: Codec = MSGPACK) -> Pipe:
        """A pipe over a connected stream socket, which is made blocking."""
        sock.setblocking(True)
        return cls(sock.recv_into, sock.sendall, codec)

    @property
    def max_frame_bytes(self) -> int:
        """The longest message that is taken or sent."""
        return self._decoder.max_frame_bytes

    @max_frame_bytes.setter
    def max_frame_bytes(self, value: int) -> None:
        self._decoder.max_frame_bytes = value

    def receive(self) -> memoryview | None:
        """The next frame's body, good until the next receive(); None at the pipe's end.

        Raises:
            ProtocolError: the frame is over the cap, or the pipe ended inside it.
        """
        decoder = self._decoder
        body = decoder.next_frame() if decoder.buffered else None
        while body is None:
            try:
                count = self._receive_into(decoder.space())
            except ConnectionResetError:  # the other side went away with answers of ours unread
                return None
            if not count:
                decoder.finish()
                return None
            body = decoder.take(count)
        return body

    def give_back(self) -> None:
        """The body received last is read: let go of the memory that it took."""
        self._decoder.give_back()

    def send(self, response: Response) -> None:
        """Write an answer, or the reason why it can't be sent.

        Raises:
            OSError: nobody reads it any more.
        """
        try:
            frame = self.codec.encode(response, self._decoder.max_frame_bytes)
        except (EncodeError, FrameTooLarge) as error:
            frame = self._encode_reason(response, error)
        self._send(frame)

    def send_event(self, event: Event) -> None:
        """Write an event of a streamed call.

        Raises:
            EncodeError, FrameTooLarge: it can't be sent.
            OSError: nobody reads it any more.
        """
        self._send(self.codec.encode(event, self._decoder.max_frame_bytes))

    def _encode_reason(self, response: Response, error: EncodeError | FrameTooLarge) -> bytearray:
        info = response.error_info
        if info is not None:  # an error that doesn't fit is sent without what makes it long
            short = ErrorInfo(
                info.code, info.message[:_SHORT_MESSAGE], info.type[:_SHORT_MESSAGE], retryable=info.retryable
            )
        elif isinstance(error, FrameTooLarge):
            short = ErrorInfo("result_too_large", f"the result can't be sent: {error}")
        else:
            short = ErrorInfo("encode_error", f"the result {error}"[:_SHORT_MESSAGE])
        limit = self._decoder.max_frame_bytes
        try:
            return self.codec.encode(refused(response.id, short, response.spent), limit)
        except FrameTooLarge:  # many models with long names
            return self.codec.encode(refused(response.id, short), limit)


def serve(pipe: Pipe, answer: Answer, answered: Callable[[], None] | None = None) -> None:
    """Answer requests until the pipe ends or nobody reads the answers any more.

    Args:
        pipe: the pipe.
        answer: makes the response to a request; it never raises.
        answered: called after each response is written.

    Raises:
        ProtocolError: a broken frame.
    """
    while (request := _receive(pipe)) is not None:
        try:
            pipe.send(answer(request) if isinstance(request, Request) else request)
        except OSError:
            return
        del request  # so that an idle worker keeps no call's data alive
        if answered is not None:
            answered()


def _receive(pipe: Pipe) -> Request | Response | None:
    """The next request, or what is answered to a frame that is none; None at the pipe's end."""
    body = pipe.receive()
    if body is None:
        return None
    try:
        request = pipe.codec.decode_request(body)
    except InvalidMessage as error:
        return refused(error.request_id, ErrorInfo(error.code, str(error)))
    if len(body) > KEPT:
        del body
        pipe.give_back()
    return request
