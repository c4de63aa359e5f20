"""An LM that costs next to nothing: one canned answer over HTTP, after a latency that can be changed while it runs.

dspool's own stub (dspool.testing.StubLM) reads the prompt and answers what was asked, which costs it a third of a
millisecond of CPU per call. On two cores that would be a tenth of what is measured here. This one reads no more of a
request than where it ends. What the caller does is the same: a real request, a real answer, parsed by DSPy.

    with CannedLM() as lm:
        lm.set_latency(0.05)
        dspy.LM("openai/stub", api_base=lm.url, ...)

The server is this module run as a script, so that it shares no interpreter lock with its callers. It ends when its
standard input does.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Self

from benchmarks.harness.processes import cpu_s

ANSWER = "It is four."
SHORTEST_REQUEST = 512
"""No request of a DSPy adapter is shorter, by far: its instructions alone are not."""
_MESSAGE = f"[[ ## reasoning ## ]]\nTwo and two.\n\n[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"


class CannedLM:
    """The server's process."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.url = f"http://127.0.0.1:{int(self._line())}/v1"
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def set_latency(self, latency_s: float) -> int:
        """What every request from now on waits. Returns how many were answered so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{latency_s}\n")
        return int(self._line())

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        return cpu_s([self._process.pid])

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the canned LM ended; its own message is above")
        return line


def _response() -> bytes:
    body = {
        "id": "chatcmpl-canned",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": _MESSAGE}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    encoded = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(encoded)}\r\n\r\n"
    return head.encode() + encoded


def _rest(request: bytes) -> int:
    """How many bytes of a request are still to come; 1 where that can't be known yet."""
    end = request.find(b"\r\n\r\n")
    if end < 0:
        return 1
    head = request[:end].lower()
    place = head.find(b"content-length:")
    length = int(head[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
    return end + 4 + length - len(request)


def serve() -> None:
    """Serve until standard input ends. Answers leave in the order in which requests came: each waits equally long."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    epoll.register(0, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    begun: dict[int, bytes] = {}
    waiting: deque[tuple[float, socket.socket]] = deque()
    latency_s, answered, response = 0.0, 0, _response()
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else -1
        for fd, _ in epoll.poll(timeout_s):
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Head and body come in two pieces; being woken for the head alone would double the cost.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, SHORTEST_REQUEST)
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
            elif fd == 0:
                if not (line := sys.stdin.readline()):
                    return
                latency_s = float(line)
                print(answered, flush=True)
            else:
                connection = connections[fd]
                try:
                    data = connection.recv(262144)
                except OSError:
                    data = b""
                if not data:
                    epoll.unregister(fd)
                    connections.pop(fd).close()
                    begun.pop(fd, None)
                    continue
                request = begun.pop(fd, b"") + data
                if _rest(request) > 0:
                    begun[fd] = request
                elif latency_s:
                    waiting.append((time.monotonic() + latency_s, connection))
                else:
                    answered += _answer(connection, response)
        while waiting and waiting[0][0] <= time.monotonic():
            answered += _answer(waiting.popleft()[1], response)


def _answer(connection: socket.socket, response: bytes) -> int:
    """Send it, to a client that may have left. The answer fits the socket's buffer."""
    try:
        connection.sendall(response)
    except OSError:
        return 0
    return 1


if __name__ == "__main__":
    serve()
