"""Round trip of a small echo call: what the pool adds to a bare framed pipe.

    python benchmarks/calls.py            pinned to one core, then unpinned
    python benchmarks/calls.py --quick

Floor and pools take turns in rounds within one run, so that a noisy neighbour hits all of them alike. Waking a process
on another core costs 30-60 us on a virtual machine and hides everything else: pinned to one core one sees what the code
costs, unpinned what a user sees. CPU time is that of both processes, per call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import select
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import msgspec

import dspool

PAYLOAD = {"question": "What is 2+2?", "context": "x" * 60}
WARM_UP = 300


def echo(**inputs: Any) -> dict[str, Any]:
    """The program of every contestant."""
    return inputs


class Contestant:
    """One way to make a call: `call` makes one, `pids` are the other side's processes."""

    def __init__(self, name: str, call: Callable[[], Any], pids: Callable[[], list[int]]) -> None:
        self.name = name
        self.call = call
        self.pids = pids
        self.times: list[float] = []
        self.cpu_s = 0.0

    def round(self, calls: int) -> None:
        """Time so many calls."""
        for _ in range(WARM_UP):
            self.call()
        clock, call, times = time.perf_counter, self.call, self.times
        cpu = self._cpu()
        for _ in range(calls):
            began = clock()
            call()
            times.append(clock() - began)
        self.cpu_s += self._cpu() - cpu

    def _cpu(self) -> float:
        mine = sum(os.times()[:2])
        tick = os.sysconf("SC_CLK_TCK")
        for pid in self.pids():
            with suppress(OSError), open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                mine += (int(fields[11]) + int(fields[12])) / tick
        return mine


# --- the floor: a process at the other end of a socket pair -------------------------------------------------


def _read(sock: socket.socket, count: int) -> bytes:
    data = sock.recv(count)
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def _serve_raw(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def _serve_framed(sock: socket.socket) -> None:
    decoder, encoder = msgspec.msgpack.Decoder(), msgspec.msgpack.Encoder()
    while True:
        (length,) = struct.unpack(">I", _read(sock, 4))
        message = decoder.decode(_read(sock, length))
        body = encoder.encode({"id": message["id"], "success": True, "result": message["args"]["inputs"]})
        sock.sendall(struct.pack(">I", len(body)) + body)


@contextmanager
def floor(name: str, serve: Callable[[socket.socket], None]) -> Iterator[Contestant]:
    """A child process that serves a socket pair."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        with suppress(BaseException):
            serve(theirs)
        os._exit(0)
    theirs.close()
    decoder, encoder = msgspec.msgpack.Decoder(), msgspec.msgpack.Encoder()
    request = {"id": 1, "command": "execute_program", "args": {"program_id": "echo", "inputs": PAYLOAD}}
    raw = encoder.encode(request)

    def call_raw() -> None:
        ours.sendall(raw)
        ours.recv(65536)

    poll = select.poll()
    poll.register(ours, select.POLLIN)

    def call_framed() -> Any:
        body = encoder.encode(request)
        ours.sendall(struct.pack(">I", len(body)) + body)
        poll.poll(30_000)
        (length,) = struct.unpack(">I", _read(ours, 4))
        return decoder.decode(_read(ours, length))

    try:
        yield Contestant(name, call_raw if serve is _serve_raw else call_framed, lambda: [pid])
    finally:
        ours.close()
        os.waitpid(pid, 0)


# --- pools --------------------------------------------------------------------------------------------------


@contextmanager
def blocking_pool() -> Iterator[Contestant]:
    """dspool.Pool."""
    with dspool.Pool(workers=1, name="bench") as pool:
        pids = [worker.pid for worker in pool.workers() if worker.pid is not None]
        yield Contestant("Pool", lambda: pool.run(echo, PAYLOAD), lambda: pids)


async def async_pool(name: str, calls: int, rounds: int) -> Contestant:
    """dspool.AsyncPool, timed inside its own loop."""
    async with dspool.AsyncPool(workers=1) as pool:
        pids = [worker.pid for worker in await pool.workers() if worker.pid is not None]
        contestant = Contestant(name, lambda: None, lambda: pids)
        for _ in range(WARM_UP):
            await pool.run(echo, PAYLOAD)
        cpu = contestant._cpu()
        for _ in range(calls * rounds):
            began = time.perf_counter()
            await pool.run(echo, PAYLOAD)
            contestant.times.append(time.perf_counter() - began)
        contestant.cpu_s = contestant._cpu() - cpu
        return contestant


def run_async(backend: str, calls: int, rounds: int) -> Contestant | None:
    """One async contestant on one backend, or None where it isn't installed."""
    name = f"AsyncPool, {backend}"
    try:
        if backend == "uvloop":
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(async_pool(name, calls, rounds))
        return anyio.run(async_pool, name, calls, rounds, backend=backend)
    except ImportError:
        return None


# --- the run ------------------------------------------------------------------------------------------------


def measure(calls: int, rounds: int) -> list[Contestant]:
    """All contestants, the blocking ones taking turns."""
    raw = floor("raw socketpair", _serve_raw)
    framed = floor("framed socketpair (floor)", _serve_framed)
    with raw as first, framed as second, blocking_pool() as third:
        contestants = [first, second, third]
        for _ in range(rounds):
            for contestant in contestants:
                contestant.round(calls)
    for backend in ("asyncio", "uvloop", "trio"):
        if (asynchronous := run_async(backend, calls, rounds)) is not None:
            contestants.append(asynchronous)
    return contestants


def report(title: str, contestants: list[Contestant]) -> list[dict[str, Any]]:
    """Print a table; give its rows."""
    print(f"\n{title}")
    print(f"{'':28} {'p50 us':>8} {'p99 us':>8} {'x floor':>8} {'CPU us':>8} {'samples':>8}")
    base = statistics.median(contestants[1].times)
    rows = []
    for contestant in contestants:
        times = sorted(contestant.times)
        p50, p99 = statistics.median(times), times[int(len(times) * 0.99)]
        cpu = contestant.cpu_s / len(times)
        print(
            f"{contestant.name:28} {p50 * 1e6:8.1f} {p99 * 1e6:8.1f} {p50 / base:8.2f} {cpu * 1e6:8.1f} {len(times):8}"
        )
        row = {"name": contestant.name, "p50_us": p50 * 1e6, "p99_us": p99 * 1e6, "x_floor": p50 / base}
        rows.append({**row, "cpu_us": cpu * 1e6, "samples": len(times)})
    return rows


def main() -> None:
    """Run pinned and unpinned, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    calls, rounds = (1000, 3) if options.quick else (3000, 7)
    cores = os.sched_getaffinity(0)
    print(f"{platform.system()} {platform.release()}, {len(cores)} cores, Python {platform.python_version()}, ", end="")
    print(f"dspool {dspool.__version__}, msgspec {msgspec.__version__}")
    figures: dict[str, Any] = {"python": platform.python_version(), "cores": len(cores)}
    try:
        os.sched_setaffinity(0, {min(cores)})
        figures["pinned"] = report("pinned to one core", measure(calls, rounds))
    finally:
        os.sched_setaffinity(0, cores)
    figures["unpinned"] = report("unpinned", measure(calls, rounds))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
