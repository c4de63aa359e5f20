"""The thread behind the fakes, and the worker's end of a framed pipe on it. See `fake`."""

from __future__ import annotations

import queue
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from dspool.errors import ProtocolError
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import FrameDecoder
from dspool.protocol.messages import Request, Response


class FakeLoop:
    """The thread behind the fakes: a selector, and work that is handed to it."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self.selector.register(self._wake_out, selectors.EVENT_READ, self._take_work)
        self._running = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dspool-fakes", daemon=True)
        self._thread.start()

    def do(self, work: Callable[..., None], *args: Any, wait: bool = False) -> None:
        """Have work done on the thread; with `wait`, return when it is done."""
        if threading.current_thread() is self._thread:
            work(*args)
            return
        done = threading.Event()

        def work_and_tell() -> None:
            try:
                work(*args)
            finally:
                done.set()

        self._post(work_and_tell)
        while wait and not done.wait(0.1) and not self._over.is_set():
            pass

    def stop(self) -> None:
        """End the thread, after the work that was handed to it."""
        self._post(None)
        self._over.wait()
        self._thread.join()

    def _post(self, work: Callable[[], None] | None) -> None:
        self._work.put(work)
        try:
            self._wake_in.send(b"\0")
        except OSError:
            return  # it has a wake-up waiting, or is over

    def _take_work(self, events: int) -> None:
        try:
            while self._wake_out.recv(4096):
                pass
        except BlockingIOError:
            pass
        while not self._work.empty():
            work = self._work.get()
            if work is None:
                self._running = False
            else:
                work()

    def _serve(self) -> None:
        try:
            while self._running:
                for key, events in self.selector.select():
                    if self.selector.get_map().get(key.fd) is key:  # an earlier one of this round may have closed it
                        key.data(events)
        finally:
            self._over.set()
            self.selector.close()
            self._wake_out.close()
            self._wake_in.close()


class Owner(Protocol):
    """Whose pipe it is."""

    frozen: bool

    def ended(self, conn: Conn) -> None:
        """The manager closed the pipe."""

    def broken(self) -> None:
        """The manager wrote something that is no frame."""


class Conn:
    """The worker's end of one framed pipe. Reads whole requests, never blocks on writing."""

    def __init__(
        self, worker: Owner, loop: FakeLoop, sock: socket.socket, serve: Callable[[Conn, Request], None]
    ) -> None:
        self.closed = False
        self.busy = False
        self._worker = worker
        self._selector = loop.selector
        self._sock = sock
        self._serve = serve
        self._decoder = FrameDecoder()
        self._unsent = bytearray()
        self._watched = 0

    def watch(self) -> None:
        """Say to the selector what is waited for."""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        wanted = 0 if self.closed or self._worker.frozen else wanted
        if wanted == self._watched:
            return
        if not wanted:
            self._selector.unregister(self._sock)
        elif not self._watched:
            self._selector.register(self._sock, wanted, self._ready)
        else:
            self._selector.modify(self._sock, wanted, self._ready)
        self._watched = wanted

    def send(self, response: Response) -> None:
        """An answer."""
        self.send_bytes(MSGPACK.encode(response))

    def send_bytes(self, data: bytes | bytearray) -> None:
        """Any bytes, in order after what waits already."""
        if not self.closed:
            self._unsent += data
            self._flush()

    def close(self) -> None:
        """Close this end."""
        if not self.closed:
            self.closed = True
            self.watch()
            self._sock.close()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()
        self.watch()

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and not self.closed:
            self._receive()

    def _receive(self) -> None:
        try:
            count = self._sock.recv_into(self._decoder.space())
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._worker.ended(self)
            return
        self._decoder.received(count)
        try:
            while not self.closed and (body := self._decoder.next_frame()) is not None:
                self._serve(self, MSGPACK.decode_request(body))
        except ProtocolError:
            self._worker.broken()
