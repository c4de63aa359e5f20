"""One connection of the stub's HTTP server: a parser written by hand for its cost, and one exchange at a time.

Rules:

* Bytes that arrive while an exchange runs stay in the buffer, so pipelined requests are answered one after the
  other and in order.
* Reading is never paused: while an answer waits for its latency, an end of file is the only sign that the client
  has left, and it has to be seen at once. What a client may send ahead is bounded instead (``MAX_BODY_BYTES``).
* An exchange ends in exactly one way: answered, aborted by the client, or cut by the stub.

Everything runs on the loop's thread. This module must not know what an answer says or when something goes wrong:
it asks the server, which was given both.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import socket
import struct
import traceback
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

from dspool.testing.stub_wire import (
    StubRequest,
    Target,
    answer_body,
    answer_events,
    error_body,
    models_body,
    read_request,
    read_target,
)

if TYPE_CHECKING:
    from dspool.testing.stub_server import StubServer

__all__ = ["MAX_BODY_BYTES", "MAX_HEAD_BYTES", "Connection"]

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
_SLOW_PIECES = 8

_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n"
)
_GARBAGE = b"<html>The stub's plan for this request is a body that is not JSON.</html>"
_REASONS = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 411: "Length Required"}
_REASONS |= {413: "Content Too Large", 429: "Too Many Requests", 431: "Request Header Fields Too Large"}
_REASONS |= {500: "Internal Server Error", 503: "Service Unavailable"}


class _Head(NamedTuple):
    """What matters of a request's head; ``place`` is its path without slashes and the ``v1`` in front."""

    method: str
    path: str
    place: str
    target: Target | None
    query: str
    size: int
    close: bool
    expects_continue: bool
    refused: tuple[int, str] | None


@functools.lru_cache(maxsize=1024)
def _read_head(head: bytes) -> _Head:
    """Read a head. Cached: a client's heads differ in their Content-Length alone."""
    line, *fields = head.decode("latin-1").split("\r\n")
    method, _, rest = line.partition(" ")
    target, _, protocol = rest.partition(" ")
    path, _, query = target.partition("?")
    headers = {}
    for field in fields:
        name, _, value = field.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "0")
    refused = None
    if "transfer-encoding" in headers:
        refused = (411, "The stub wants a Content-Length.")
    elif not (length.isascii() and length.isdecimal()):
        refused = (400, "Content-Length is not a number.")
    elif len(length) > 18 or int(length) > MAX_BODY_BYTES:
        refused = (413, f"The stub takes bodies of up to {MAX_BODY_BYTES} bytes.")
    return _Head(
        method=method,
        path=path,
        place=path.removeprefix("/v1").strip("/"),
        target=read_target(path, query, headers),
        query=query,
        size=0 if refused else int(length),
        close=headers.get("connection", "").lower() == "close" or protocol == "HTTP/1.0",
        expects_continue=headers.get("expect", "").lower() == "100-continue",
        refused=refused,
    )


class _Exchange:
    """A request and what of its answer is still to be sent."""

    __slots__ = ("fault", "interval_s", "pieces", "request", "streaming", "timer")

    def __init__(self, request: StubRequest, fault: str | None) -> None:
        self.request = request
        self.fault = fault
        self.pieces: collections.deque[bytes] = collections.deque()
        self.interval_s = 0.0
        self.streaming = False
        self.timer: asyncio.TimerHandle | None = None


class Connection(asyncio.Protocol):
    __slots__ = ("_buffer", "_close", "_exchange", "_parsing", "_server", "_used", "_watch", "transport")

    def __init__(self, server: StubServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._exchange: _Exchange | None = None
        self._watch: int | None = None  # the version that a held GET /stats wants to see exceeded
        self._parsing = False
        self._close = False  # after the current answer
        self._used = False
        self.transport: asyncio.Transport

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        if self._server.stopping:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._exchange is None and self._watch is None:
            self._parse()
        elif len(self._buffer) > MAX_BODY_BYTES + MAX_HEAD_BYTES:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        server = self._server
        if self._exchange is not None:
            if server.stopping:
                server.cut += 1
            else:
                server.aborted += 1
            self._end()
        self._buffer.clear()
        server.closed(self)
        if self._used:  # not for the control side's own connections: waiting would wake itself for ever
            server.used_connections -= 1
            server.changed()

    # -- reading

    def _parse(self) -> None:
        """Begin every request that is complete in the buffer, up to one whose answer has to wait."""
        self._parsing = True  # an answer sent at once comes back here through _finish; it must not recurse
        while self._exchange is None and self._watch is None and not self.transport.is_closing():
            if not self._next():
                break
        self._parsing = False

    def _next(self) -> bool:
        """Begin the first request in the buffer; False if it isn't complete."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > MAX_HEAD_BYTES:
                self._refuse(431, "The request's head is too large.")
            return False
        head = _read_head(bytes(buffer[:end]))
        if head.refused is not None:
            self._refuse(*head.refused)
            return False
        start = end + 4
        if len(buffer) < start + head.size:
            if head.expects_continue and len(buffer) == start:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        raw = bytes(buffer[start : start + head.size])
        del buffer[: start + head.size]
        self._close = head.close
        if head.target is not None and head.method == "POST":
            self._begin(head.target, raw)
        else:
            self._route(head)
        return True

    def _route(self, head: _Head) -> None:
        place = head.place
        if head.target is not None:
            self._write(405, error_body(405, f"Use POST for {head.path}.", head.target.provider))
        elif place == "stats":
            version = head.query.removeprefix("after=") or "-1"
            if not version.removeprefix("-").isdecimal():
                self._write(400, error_body(400, "Use GET /stats or GET /stats?after=VERSION."))
                return
            self._watch = int(version)
            self.answer_watch()
        elif place == "requests":
            self._write(200, b"[" + b",".join(map(_valid_json, self._server.kept_requests())) + b"]")
        elif place == "calls":
            self._write(200, msgspec.json.encode(list(self._server.calls)))
        elif place == "models" or place.startswith("models/"):
            self._write(200, models_body())
        else:
            self._write(404, error_body(404, f"Unknown URL: {head.method} /{place}"))

    # -- model requests

    def _begin(self, target: Target, raw: bytes) -> None:
        server = self._server
        number = server.requests
        server.requests += 1
        server.in_flight += 1
        server.max_in_flight = max(server.max_in_flight, server.in_flight)
        if not self._used:
            self._used = True
            server.used_connections += 1
        server.keep(raw)
        delay_s = server.plan.latency_s()
        try:
            request = read_request(number, target, raw)
        except ValueError as error:
            unread = StubRequest(number, target.endpoint, "", "", "", False, False, 1, raw, target.provider)
            self._exchange = _Exchange(unread, None)
            server.rejected += 1
            self._finish_with(400, str(error))
            return
        server.calls.append(request.call)
        try:
            fault = server.plan.fault(request)
        except Exception:  # the user's function: its traceback is the answer
            self._exchange = _Exchange(request, None)
            self._user_failed()
            return
        exchange = self._exchange = _Exchange(request, fault)
        if fault is not None:
            server.faults[fault] = server.faults.get(fault, 0) + 1
        server.changed()
        if fault == "hang":
            return
        if delay_s > 0:
            exchange.timer = server.loop.call_later(delay_s, self._answer, exchange)
        else:
            self._answer(exchange)

    def _answer(self, exchange: _Exchange) -> None:
        request, fault, server = exchange.request, exchange.fault, self._server
        exchange.timer = None
        if fault is not None and fault.isdecimal():
            self._finish_with(int(fault), f"The stub's plan for request {request.number} is status {fault}.")
            return
        if fault == "garbage":
            self.transport.write(_payload(200, _GARBAGE, self._close))
            self._finish()
            return
        try:
            content = server.say(request)
            if request.stream:
                parts = list(answer_events(request, content))
            else:
                parts = [answer_body(request, [content] * request.choices)]
        except Exception:  # the user's function, or what it returned
            self._user_failed()
            return
        if request.stream:
            self._stream(exchange, parts)
        else:
            self._plain(exchange, parts[0])

    def _plain(self, exchange: _Exchange, body: bytes) -> None:
        payload = _payload(200, body, self._close)
        if exchange.fault is None:  # the common case: one write, no queue
            self.transport.write(payload)
            self._finish()
            return
        pieces = _SLOW_PIECES if exchange.fault == "slow" else 2
        size = -(-len(payload) // pieces)
        exchange.pieces.extend(payload[at : at + size] for at in range(0, len(payload), size))
        exchange.interval_s = self._server.slow_interval_s if exchange.fault == "slow" else 0.0
        self._send(exchange)

    def _stream(self, exchange: _Exchange, events: list[bytes]) -> None:
        self._server.open_streams += 1
        exchange.streaming = True
        head = _STREAM + (b"Connection: close\r\n\r\n" if self._close else b"\r\n")
        for event in events:
            exchange.pieces.append(head + b"%x\r\n%b\r\n" % (len(event), event))
            head = b""
        exchange.pieces[-1] += b"0\r\n\r\n"
        slow = exchange.fault == "slow"
        exchange.interval_s = self._server.slow_interval_s if slow else self._server.piece_interval_s
        self._server.changed()
        self._send(exchange)

    def _send(self, exchange: _Exchange) -> None:
        exchange.timer = None
        pieces = exchange.pieces
        if exchange.fault in ("reset", "stall"):
            half = [pieces.popleft() for _ in range(-(-len(pieces) // 2))]
            self.transport.write(b"".join(half))
            if exchange.fault == "reset":
                self._reset()
            return  # a stalled answer ends when the client leaves
        if exchange.interval_s <= 0:
            self.transport.write(b"".join(pieces))
            self._finish()
            return
        self.transport.write(pieces.popleft())
        if pieces:
            exchange.timer = self._server.loop.call_later(exchange.interval_s, self._send, exchange)
        else:
            self._finish()

    # -- ending an exchange

    def _finish_with(self, status: int, message: str) -> None:
        assert self._exchange is not None
        provider, extra, pause_s = self._exchange.request.provider, b"", None
        if status in (429, 503):
            pause_s = self._server.retry_after_s
            if provider != "gemini":  # Google's server has it in the body
                extra = b"Retry-After: %b\r\n" % f"{pause_s:g}".encode()
        self.transport.write(_payload(status, error_body(status, message, provider, pause_s), self._close, extra))
        self._finish()

    def _user_failed(self) -> None:
        self._server.errors.append(traceback.format_exc(limit=-5))
        self._finish_with(500, self._server.errors[-1])

    def _finish(self) -> None:
        self._server.answered += 1
        self._end()
        self._server.changed()
        if self._close:
            self.transport.close()
        elif self._buffer and not self._parsing:
            self._parse()

    def _reset(self) -> None:
        """Break the connection off with an RST, as a crashed server's kernel does."""
        self._server.cut += 1
        self._end()
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _end(self) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None, "an exchange ends once"
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.streaming:
            self._server.open_streams -= 1
        self._server.in_flight -= 1

    # -- the control side

    def answer_watch(self) -> None:
        """Answer a held GET /stats if the counters have changed enough; otherwise go on holding it."""
        if self._watch is None:
            return
        if self._server.version <= self._watch:
            self._server.watchers.add(self)
            return
        self._watch = None
        self._server.watchers.discard(self)
        self._write(200, msgspec.json.encode(self._server.stats()))
        if not self._parsing:
            self._parse()

    def _write(self, status: int, body: bytes) -> None:
        self.transport.write(_payload(status, body, self._close))
        if self._close:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer bytes that aren't a request, and close: where the next request would begin is unknown."""
        self._close = True
        self._write(status, error_body(status, message))


def _payload(status: int, body: bytes, close: bool, extra: bytes = b"") -> bytes:
    end = b"\r\nConnection: close\r\n\r\n" if close else b"\r\n\r\n"
    if status == 200:
        return _OK + str(len(body)).encode() + end + body
    reason = _REASONS.get(status, "Error")
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + extra + end[2:] + body


def _valid_json(raw: bytes) -> bytes:
    """Return a body as it came if it is JSON; as a JSON string otherwise."""
    try:
        msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return msgspec.json.encode(raw.decode(errors="replace"))
    return raw
