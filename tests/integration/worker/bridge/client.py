"""A client of the bridge that knows nothing of dspool: processes, pipes, struct and json."""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0
"""How long anything is waited for; only a failing test waits that long."""
COMMAND = (sys.executable, "-m", "dspool.worker.bridge")


class Client:
    """A bridge process and the client's ends of its pipes.

    Args:
        arguments: its command line's.
        folder: where its stderr goes, to a file.
        env: what its environment has beside PATH and the like; no keys are inherited.
        merged: whether its stderr goes into the framed stdout.
        command: what starts it.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        env: Mapping[str, str] | None = None,
        merged: bool = False,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._stderr = folder / f"stderr-{id(self)}"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merged else stderr,
                env=environment(folder, env),
                bufsize=0,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests = self.process.stdin.fileno()
        self.answers = self.process.stdout.fileno()
        self._last_id = 0

    # Asking

    def send_bytes(self, data: bytes) -> None:
        """Write what may be no frame at all."""
        while data:
            data = data[os.write(self.requests, data) :]

    def send_body(self, body: bytes) -> None:
        """Write a frame."""
        self.send_bytes(struct.pack(">I", len(body)) + body)

    def send(self, command: str, /, **args: Any) -> int:
        """Write a request; returns its id."""
        self._last_id += 1
        self.send_request({"id": self._last_id, "command": command, "args": args})
        return self._last_id

    def send_request(self, request: Any) -> None:
        """Write any JSON as a frame."""
        self.send_body(json.dumps(request).encode())

    def receive(self) -> dict[str, Any]:
        """The next answer; EOFError at the end."""
        (length,) = struct.unpack(">I", self.read(4))
        answer: dict[str, Any] = json.loads(self.read(length))
        assert isinstance(answer["timestamp"], float)
        return answer

    def ask(self, command: str, /, **args: Any) -> dict[str, Any]:
        """Write a request and read its answer."""
        request_id = self.send(command, **args)
        answer = self.receive()
        assert answer["id"] == request_id, answer
        return answer

    def result(self, command: str, /, **args: Any) -> Any:
        """The result of a request that must succeed."""
        answer = self.ask(command, **args)
        assert answer["success"] is True, answer
        assert "error" not in answer
        return answer["result"]

    def refusal(self, command: str, /, **args: Any) -> tuple[str, str]:
        """Code and text of a request that must fail."""
        return refusal_in(self.ask(command, **args))

    # Reading

    def read(self, count: int) -> bytes:
        """Exactly so many bytes of its stdout; EOFError where it ends before."""
        data = b""
        deadline = time.monotonic() + PATIENCE_S
        while len(data) < count:
            readable, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"only {len(data):,} of {count:,} bytes came: {data[:200]!r}"
            piece = os.read(self.answers, count - len(data))
            if not piece:
                raise EOFError(f"its stdout ended after {len(data):,} of {count:,} bytes: {data[:200]!r}")
            data += piece
        return data

    def rest(self) -> bytes:
        """All that is left of its stdout."""
        data = b""
        while True:
            try:
                data += self.read(1)
            except EOFError:
                return data

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return self._stderr.read_text()

    # Ending

    def close_requests(self) -> None:
        """The end of its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close_answers(self) -> None:
        """Read no more of its stdout."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def exit_code(self) -> int:
        """Wait for its exit."""
        return self.process.wait(PATIENCE_S)

    def dispose(self) -> None:
        """End it, if it hasn't."""
        self.close_requests()
        try:
            self.exit_code()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(PATIENCE_S)
            self.close_answers()


def refusal_in(answer: Mapping[str, Any]) -> tuple[str, str]:
    """Code and text of an answer that must be a refusal, whole."""
    assert answer["success"] is False, answer
    assert "result" not in answer
    info = answer["error_info"]
    assert {"code", "type", "traceback", "retryable"} <= info.keys(), info
    assert isinstance(answer["error"], str)
    return info["code"], answer["error"]


def environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A bridge's environment: this one without its keys, with a cache of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE", "_BASE_URL"))
    }
    return {**kept, "DSPY_CACHEDIR": str(folder / "cache"), "PYTHONWARNINGS": "error", **(more or {})}


def signature(inputs: str, outputs: str) -> dict[str, Any]:
    """A signature from names, "answer" or "answer:int"."""

    def fields(text: str) -> list[dict[str, str]]:
        split = (name.partition(":") for name in text.split())
        return [{"name": name, "type": kind} if kind else {"name": name} for name, _, kind in split]

    return {"inputs": fields(inputs), "outputs": fields(outputs)}


QA = signature("question", "answer")
