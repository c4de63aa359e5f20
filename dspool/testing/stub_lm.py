"""A server on loopback that speaks as OpenAI's, Anthropic's and Gemini's do, so that DSPy's real HTTP path is used.

    with StubLM(latency=("lognormal", 0.2, 0.5), faults={"429": 0.05}) as stub:
        dspy.configure(lm=stub.lm())
        dspy.Predict("question -> answer")(question="why?").answer      # "echo: why?"

By default the server runs in a thread of its own; with ``process=True``, or as
``python -m dspool.testing.stub_lm --port 0``, in a process of its own, which is what benchmarks want: it then
shares no interpreter lock with the calls it serves.

Rules:

* Loopback only, nothing is ever sent elsewhere. No key is checked; `StubLM.calls` says which one came.
* Deterministic: equal requests get equal answers; what goes wrong with request n depends on the seed and n alone.
* The server never outlives its owner: leaving the ``with`` block closes every connection, and a child process
  ends when its owner's end of its standard input is gone, however the owner died.

This module holds the public face and the command line. The server is `stub_server`, the bodies `stub_wire` and a
module for each provider, what is said `stub_answers`, what goes wrong `stub_plan`. dspy is imported by `StubLM.lm`
alone.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.client
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import msgspec

from dspool.testing.stub_answers import Answers, answer
from dspool.testing.stub_plan import FaultSpec, LatencySpec, Plan
from dspool.testing.stub_request import Provider, StubCall, StubRequest
from dspool.testing.stub_server import StubServer, StubStats

__all__ = ["StubCall", "StubLM", "StubRequest", "StubStats"]

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


class StubLM:
    """A stand-in for OpenAI's, Anthropic's and Gemini's servers at once. A context manager; or `start` and `stop`.

    Args:
        answers: What to say. None echoes the caller's question in every field: text fields say
            ``echo: <question>``, lists of text hold that twice, numbers and choices depend on it; bounds, choices
            and JSON schemas that the prompt names are kept. A dict gives values by field name, or functions of
            the inputs (a ``dict[str, str]``). A function of the `StubRequest` writes the assistant's whole message.
        latency: Seconds before the first byte, errors included; or ``("uniform", low, high)``,
            ``("exponential", mean)``, ``("lognormal", median, sigma)``. The clock's grain is about 1 ms.
        faults: What goes wrong. ``{fault: share}`` with shares from 0 to 1, ``{fault: text}`` for requests whose
            messages contain the text, a list of names by request number (None or ``"ok"`` for a good answer; all is
            well after its end), or a function of the `StubRequest` that returns a name or None. Names: a status
            from ``"400"`` to ``"599"``; ``"hang"`` (no byte until the client leaves), ``"garbage"`` (status 200
            and a body that isn't JSON), ``"reset"`` (half an answer, then RST), ``"stall"`` (half an answer,
            then nothing until the client leaves), ``"slow"`` (the answer in pieces, ``slow_interval_s`` apart).
        seed: What random latencies and faults are drawn from.
        retry_after_s: When statuses 429 and 503 ask to be tried again, in seconds: the ``Retry-After`` header; from
            Gemini the error's text and details.
        piece_interval_s: The pause between two events of a streamed answer, in seconds.
        slow_interval_s: The pause between two pieces of a slow answer, in seconds.
        keep_requests: How many of the last requests `requests` returns (8 MiB of them at most).
        port: The port; 0 for any free one.
        process: Run the server as a child process. Functions can't be sent there.

    Functions run on the server's thread, one at a time; one that raises gives status 500 and an entry in
    ``stats().errors``.

    Raises:
        ValueError: A latency or a fault is unknown or out of range, or a function was given with ``process=True``.
    """

    def __init__(
        self,
        *,
        answers: Answers = None,
        latency: LatencySpec = 0.0,
        faults: FaultSpec | None = None,
        seed: int = 0,
        retry_after_s: float = 0.0,
        piece_interval_s: float = 0.0,
        slow_interval_s: float = 0.02,
        keep_requests: int = 100,
        port: int = 0,
        process: bool = False,
    ) -> None:
        durations = {
            "retry_after_s": retry_after_s,
            "piece_interval_s": piece_interval_s,
            "slow_interval_s": slow_interval_s,
        }
        for name, value in durations.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r}: seconds are finite and not negative")
        self._options: dict[str, Any] = {
            "answers": dict(answers) if isinstance(answers, Mapping) else answers,
            "latency": latency,
            "faults": faults,
            "seed": seed,
            "keep_requests": keep_requests,
            **durations,
        }
        Plan(latency, faults, seed)  # refuse nonsense here, not in the server's thread
        self._host: _ThreadHost | _ProcessHost
        self._host = _ProcessHost(self._options, port) if process else _ThreadHost(self._options, port)
        self._port: int | None = None
        self._last_stats = StubStats()
        self._last_requests: list[Any] = []
        self._last_calls: list[StubCall] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start serving, and return once connections are accepted.

        Raises:
            RuntimeError: It runs already, or its process didn't come up.
            OSError: The port is taken.
        """
        if self._port is not None:
            raise RuntimeError("this stub is running already")
        self._port = self._host.start()
        return self

    def stop(self) -> None:
        """Close every connection and end the server; `stats` and `requests` keep what it last knew. Idempotent."""
        if self._port is None:
            return
        try:
            self._last_requests, self._last_calls = self.requests, self.calls
            self._last_stats = self.stats()
        except (OSError, http.client.HTTPException):
            pass  # a killed child has nothing more to say; the owner must still be able to clean up
        finally:
            self._port = None
            self._host.stop()

    @property
    def url(self) -> str:
        """What to give a client of OpenAI's or Anthropic's as ``api_base``: ``http://127.0.0.1:PORT/v1``.

        Raises:
            RuntimeError: The stub isn't running.
        """
        return self.url_for("openai")

    def url_for(self, provider: Provider) -> str:
        """Return what to give a provider's client as ``api_base``.

        Args:
            provider: ``openai``, ``anthropic`` or ``gemini``, whose addresses begin with ``/v1beta``.

        Raises:
            RuntimeError: The stub isn't running.
        """
        if self._port is None:
            raise RuntimeError("this stub is not running; use it as a context manager, or call start()")
        return f"http://127.0.0.1:{self._port}/{'v1beta' if provider == 'gemini' else 'v1'}"

    def settings(self, provider: Provider = "openai", **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of a ``dspy.LM`` that talks to this stub, without DSPy's cache.

        Args:
            provider: Whose protocol it is to speak.
            kwargs: Further arguments, or others in the place of these: ``model``, ``api_key``, ``num_retries``, ...
        """
        base = {"model": f"{provider}/stub", "api_base": self.url_for(provider), "api_key": "stub-key", "cache": False}
        return {**base, **kwargs}

    def lm(self, provider: Provider = "openai", **kwargs: Any) -> Any:
        """Return a ``dspy.LM`` that talks to this stub, without DSPy's cache.

        It sets ``LITELLM_LOCAL_MODEL_COST_MAP`` for this process unless it is set: without it DSPy's first call
        fetches a price list from the internet.

        Args:
            provider: Whose protocol it is to speak.
            kwargs: Passed on to ``dspy.LM``: ``num_retries``, ``timeout``, ``model_type``, ...
        """
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
        import dspy

        return dspy.LM(**self.settings(provider, **kwargs))

    @property
    def requests(self) -> list[Any]:
        """The bodies of the last requests, decoded, oldest first; a body that wasn't JSON is a string."""
        if self._port is None:
            return self._last_requests
        bodies: list[Any] = json.loads(self._get("/requests", _STOP_TIMEOUT_S))
        return bodies

    @property
    def calls(self) -> list[StubCall]:
        """Who asked whom in the last requests, oldest first: provider, endpoint, model, key."""
        if self._port is None:
            return self._last_calls
        return msgspec.json.decode(self._get("/calls", _STOP_TIMEOUT_S), type=list[StubCall])

    def stats(self) -> StubStats:
        """Return the counters as they are now, or as they were when the stub was stopped."""
        if self._port is None:
            return self._last_stats
        return msgspec.json.decode(self._get("/stats", _STOP_TIMEOUT_S), type=StubStats)

    def wait(self, condition: Callable[[StubStats], bool], *, timeout_s: float = 5.0) -> StubStats:
        """Wait until the counters meet a condition; the server reports each change, nothing polls.

        Args:
            condition: For instance ``lambda stats: stats.in_flight == 0``.
            timeout_s: How long to wait, in seconds.

        Returns:
            The counters that met it.

        Raises:
            TimeoutError: They didn't in time; the message shows the last ones.
        """
        deadline = time.monotonic() + timeout_s
        stats = self.stats()
        while not condition(stats):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"the stub's counters did not meet the condition within {timeout_s} s: {stats}")
            try:
                reply = self._get(f"/stats?after={stats.version}", left_s)
            except TimeoutError:
                continue
            stats = msgspec.json.decode(reply, type=StubStats)
        return stats

    def wait_idle(self, *, timeout_s: float = 5.0) -> StubStats:
        """Wait until no request is in flight and no stream is open; see `wait`."""
        return self.wait(lambda stats: stats.in_flight == 0 and stats.open_streams == 0, timeout_s=timeout_s)

    def _get(self, path: str, timeout_s: float) -> bytes:
        if self._port is None:
            raise RuntimeError("this stub is not running")
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().read()
        finally:
            connection.close()


def _make_server(
    *, answers: Answers, latency: LatencySpec, faults: FaultSpec | None, seed: int, **settings: Any
) -> StubServer:
    return StubServer(functools.partial(answer, answers=answers), Plan(latency, faults, seed), **settings)


class _ThreadHost:
    """Runs the server on a loop in a thread of this process."""

    def __init__(self, options: dict[str, Any], port: int) -> None:
        self._options = options
        self._port = port
        self._server: StubServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        server = self._server = _make_server(**self._options)
        listening: Future[int] = Future()

        def run() -> None:
            try:
                asyncio.run(server.serve(self._port, listening.set_result))
            except BaseException as error:
                if listening.done():
                    raise
                listening.set_exception(error)

        self._thread = threading.Thread(target=run, name="dspool-stub-lm", daemon=True)
        self._thread.start()
        return listening.result(_START_TIMEOUT_S)

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise RuntimeError("the stub's thread did not end; is a function given for answers or faults blocked?")


class _ProcessHost:
    """Runs the server as ``python -m dspool.testing.stub_lm``."""

    def __init__(self, options: dict[str, Any], port: int) -> None:
        for name in ("answers", "faults"):
            value = options[name]
            if callable(value) or (isinstance(value, Mapping) and any(map(callable, value.values()))):
                raise ValueError(f"{name}: a function can't be sent to the stub's process; leave out process=True")
        latency = options["latency"]
        if isinstance(latency, Sequence) and not isinstance(latency, str):
            latency = f"{latency[0]}:{','.join(map(str, latency[1:]))}"
        values = {**options, "latency": latency, "port": port}
        self._arguments = ["--lifeline"]
        for name, value in values.items():
            if value is not None:
                text = json.dumps(value) if name in ("answers", "faults") else str(value)
                self._arguments.append(f"--{name.replace('_', '-')}={text}")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> int:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "dspool.testing.stub_lm", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdout is not None
        poller = select.poll()
        poller.register(process.stdout, select.POLLIN | select.POLLHUP)
        ready = poller.poll(_START_TIMEOUT_S * 1000)
        line = process.stdout.readline().strip() if ready else ""
        if not line:
            self.stop()
            raise RuntimeError(f"the stub's process did not come up (exit code {process.returncode}); see its stderr")
        return int(line.removesuffix("/v1").rpartition(":")[2])

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # the lifeline
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


async def _serve_until_told(server: StubServer, port: int, lifeline: bool) -> None:
    """Serve until SIGINT, SIGTERM, or, with a lifeline, the end of standard input."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, server.stop)

    def owner_spoke() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            server.stop()

    def listening(port: int) -> None:
        if lifeline:
            loop.add_reader(sys.stdin.fileno(), owner_spoke)
        print(f"http://127.0.0.1:{port}/v1", flush=True)

    await server.serve(port, listening)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stub in the foreground; print its URL as one line once it listens.

    Returns:
        0 after SIGINT, SIGTERM or the end of the lifeline; 2 when an argument is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m dspool.testing.stub_lm", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 (the default) for any free one")
    parser.add_argument("--latency", default="0", metavar="SPEC", help="seconds, or for instance lognormal:0.2,0.5")
    parser.add_argument("--faults", type=json.loads, metavar="JSON", help='{"429": 0.1} or ["ok", "hang"]')
    parser.add_argument("--answers", type=json.loads, metavar="JSON", help='{"answer": "42"}')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-after-s", type=float, default=0.0, metavar="S")
    parser.add_argument("--piece-interval-s", type=float, default=0.0, metavar="S", help="pause between SSE events")
    parser.add_argument("--slow-interval-s", type=float, default=0.02, metavar="S", help="pause of the fault 'slow'")
    parser.add_argument("--keep-requests", type=int, default=100, metavar="N")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input does")
    options = vars(parser.parse_args(arguments))
    port, lifeline = options.pop("port"), options.pop("lifeline")
    try:
        server = _make_server(**options)
        asyncio.run(_serve_until_told(server, port, lifeline))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
