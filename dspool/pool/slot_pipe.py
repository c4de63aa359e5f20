"""SlotPipe: the manager's end of one slot's pipe: asks and answers. Never waits: it says when it would have to.

Rules:
    1. Whoever reads or writes holds the pipe meanwhile: the lease's caller, or the control plane for an abandoned slot.
    2. The socket is closed when its worker is gone and nobody holds it, by the last who did: closing one that another
       thread polls doesn't wake it, and its number is used again. A pipe that is held is shut down instead, which does.
    3. ECONNRESET before any byte of an answer, or of a piece of one, means that the worker ended with our request
       unread: it never ran.
"""

from __future__ import annotations

import errno
import select
import socket
from typing import Any

from dspool.errors import ProtocolError
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import KEPT, FrameDecoder
from dspool.protocol.messages import Event, Response
from dspool.protocol.requests import stamp


class PipeEnded(Exception):
    """The worker's end is closed.

    Attributes:
        never_ran: the request was not wholly read, so nothing was executed.
    """

    def __init__(self, never_ran: bool) -> None:
        super().__init__("the worker's end of the pipe is closed")
        self.never_ran = never_ran


class SlotPipe:
    """One slot's pipe.

    Args:
        sock: the manager's end, non-blocking; owned from now on.
        max_frame_bytes: the cap.
    """

    __slots__ = (
        "_decoder",
        "_holders",
        "_orphaned",
        "_unsent",
        "asked",
        "pieces",
        "poller",
        "reader",
        "sock",
        "spender",
    )

    def __init__(self, sock: socket.socket, max_frame_bytes: int) -> None:
        self.sock = sock
        self.asked: int | None = None
        """Id of the request whose answer was not read yet."""
        self.pieces = 0
        """Pieces of it that were read: it runs, whatever becomes of the pipe."""
        self.spender: tuple[str, str | None] = ("", None)
        """For which program, and in which session, it spends what it does."""
        self.poller = select.poll()
        self.poller.register(sock, select.POLLIN)
        self.reader: Any = None
        """What an event loop keeps for this socket."""
        self._decoder = FrameDecoder(max_frame_bytes)
        self._unsent = memoryview(b"")
        self._holders: list[None] = []
        """One entry for each. Appending to a list, and taking from it, is one step that no thread comes between."""
        self._orphaned = False

    def hold(self) -> bool:
        """Use the pipe from now on. False: its worker is gone, and so is the pipe.

        The race with orphan(): it sets its mark first and looks for holders then; this enters first and looks for the
        mark then. So at least one sees the other.
        """
        self._holders.append(None)
        if self._orphaned:
            self.let_go()
            return False
        return True

    def let_go(self) -> None:
        """Undo hold(). The last to let go of a pipe whose worker is gone closes it."""
        self._holders.pop()
        if self._orphaned and not self._holders:
            self.close()

    def orphan(self) -> None:
        """The worker is gone: whoever holds the pipe reads what is there, then EOF; held by nobody it is closed."""
        self._orphaned = True
        if self._holders:
            self.shutdown()
        else:
            self.close()

    @property
    def unsent(self) -> bool:
        """Whether a part of the last request is still to be sent."""
        return bool(self._unsent)

    def look(self) -> tuple[str, bool] | None:
        """What is wrong with the pipe of an idle slot, and whether it has ended. None: there is nothing to read."""
        held = self._decoder.buffered
        if not held and not self.poller.poll(0):
            return None
        try:
            held += len(self.sock.recv(64, socket.MSG_PEEK))
        except BlockingIOError:
            pass
        except OSError as error:
            _raise_if_foreign(error)
            return f"its pipe is broken: {error.strerror}", True
        return (
            (f"its pipe holds {held} bytes or more that nobody asked for", False)
            if held
            else ("its pipe is closed", True)
        )

    def ask(self, frame: bytearray, request_id: int, left_s: float | None) -> bool:
        """Stamp a request and begin to send it. Returns whether all of it went.

        Args:
            frame: from requests.encode_request().
            request_id: its id, which the answer must have.
            left_s: seconds until its deadline; only where the frame was made with one.

        Raises:
            PipeEnded: the worker's end is closed.
        """
        stamp(frame, request_id, left_s)
        self.asked = request_id
        self.pieces = 0
        return self.send(frame)

    def message(self) -> Event | Response | None:
        """What a streamed call gives next: a piece, or the answer that ends it; None until more of it has come.

        Raises:
            PipeEnded: the worker's end is closed.
            ProtocolError: a broken frame, no event and no response, or one to something else.
        """
        body = self.receive()
        if body is None:
            return None
        message = MSGPACK.decode_streamed(body)
        if len(body) > KEPT:
            del body
            self._decoder.give_back()
        if message.id != self.asked:
            raise ProtocolError(f"it answered id {message.id} when {self.asked} was asked")
        if isinstance(message, Event):
            self.pieces += 1
        else:
            self.asked = None
        return message

    def answer(self) -> Response | None:
        """The answer to what was asked; None until more of it has come.

        Raises:
            PipeEnded: the worker's end is closed.
            ProtocolError: a broken frame, no response, or one to something else.
        """
        body = self.receive()
        if body is None:
            return None
        response = MSGPACK.decode_response(body)
        if len(body) > KEPT:
            del body
            self._decoder.give_back()
        if response.id != self.asked:
            raise ProtocolError(f"it answered id {response.id} when {self.asked} was asked")
        self.asked = None
        return response

    def send(self, frame: bytearray) -> bool:
        """Begin to send. Returns whether all of it went.

        Raises:
            PipeEnded: the worker's end is closed.
        """
        try:
            sent = self.sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            _raise_if_foreign(error)
            raise PipeEnded(never_ran=True) from error
        if sent == len(frame):
            return True
        self._unsent = memoryview(frame)[sent:]
        return False

    def send_more(self) -> bool:
        """Go on sending. Returns whether all of it went.

        To be called when the pipe can be written or read. Where it can't be written, the worker is at fault: it ended,
        or it answers already.

        Raises:
            PipeEnded: the worker's end is closed; it can't have read the whole request.
            ProtocolError: it answered before it had read the request.
        """
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            if self.receive() is not None:
                raise ProtocolError("the worker answered before it had read the request") from None
            return False
        except OSError as error:
            _raise_if_foreign(error)
            raise PipeEnded(never_ran=True) from error
        if self._unsent:
            return False
        self._unsent = memoryview(b"")
        return True

    def receive(self) -> memoryview | None:
        """The next frame's body, good until the next call; None until more has come.

        Raises:
            PipeEnded: the worker's end is closed.
            ProtocolError: a broken frame.
        """
        decoder = self._decoder
        body = decoder.next_frame() if decoder.buffered else None
        while body is None:
            try:
                count = self.sock.recv_into(decoder.space())
            except BlockingIOError:
                return None
            except OSError as error:
                _raise_if_foreign(error)
                unread = not decoder.buffered and not self.pieces
                raise PipeEnded(never_ran=unread and error.errno == errno.ECONNRESET) from error
            if count == 0:
                decoder.finish()
                raise PipeEnded(never_ran=bool(self._unsent))
            body = decoder.take(count)
        return body

    def shutdown(self) -> None:
        """End the pipe without closing it: the holder reads what is there, then EOF."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the peer is gone already

    def close(self) -> None:
        """Close the socket; an event loop that watches it is told first. Again is nothing."""
        if self.reader is not None:
            self.reader.close()
        self.sock.close()


def _raise_if_foreign(error: OSError) -> None:
    """Let an error through that the system didn't raise.

    The race: 1. send() has sent the request; 2. before it returns, a handler of SIGALRM raises TimeoutError, which is
    an OSError; 3. taken for a pipe that ended, the request would be sent once more to another worker. Only the system's
    errors have a number.
    """
    if error.errno is None:
        raise error
