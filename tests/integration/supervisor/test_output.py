"""What workers write to stdout and stderr: log lines, a bounded tail, and never a hold-up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import structlog

from dspool.supervisor import output
from dspool.supervisor.output import LINE_BYTES, LINES_PER_S, TAIL_BYTES, WorkerOutput
from tests.integration.supervisor.harness import PATIENCE_S, dead, lab, one_backend, tell

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    quiet = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
    with structlog.testing.capture_logs() as lines:
        yield lines
    structlog.configure(wrapper_class=quiet)


KEY = "sk-a-key-that-a-program-prints"


class Pipes:
    """stdout and stderr of a worker that the test plays itself."""

    def __init__(self) -> None:
        self.ends = {"stdout": os.pipe(), "stderr": os.pipe()}
        for read_fd, _ in self.ends.values():
            os.set_blocking(read_fd, False)
        fds = {name: ends[0] for name, ends in self.ends.items()}
        self.output = WorkerOutput(fds, {"worker_id": 1}, lambda text: text.replace(KEY, "***"))

    def write(self, data: bytes, stream: str = "stdout") -> None:
        os.write(self.ends[stream][1], data)

    def close(self) -> None:
        for fd in (fd for ends in self.ends.values() for fd in ends):
            os.close(fd)


@pytest.fixture
def pipes(logged: list[Any]) -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


def texts(lines: list[Any]) -> list[str]:
    return [entry["event"] for entry in lines]


@pytest.mark.slow
async def test_each_line_is_logged_with_its_worker(logged: list[Any]) -> None:
    async with lab() as tests:
        worker = await tests.ready()
        for text in ("say stdout one", "say stderr two", "say stdout dr\N{LATIN SMALL LETTER E WITH ACUTE}i"):
            assert await tests.order(worker, text) == "ok"
        tell(worker, "exit 3")
        report = await tests.exited(worker)
    assert report.output_tail.splitlines() == ["one", "two", "dréi"]
    fields = {"pool": "lab", "worker_id": worker.worker_id, "pid": worker.pid, "log_level": "info"}
    assert {"event": "one", "stream": "stdout", **fields} in logged
    assert {"event": "two", "stream": "stderr", **fields} in logged
    assert {"event": "dréi", "stream": "stdout", **fields} in logged


@pytest.mark.slow
async def test_a_flood_on_both_streams_holds_up_nobody(logged: list[Any]) -> None:
    async with lab(ping_timeout_s=5.0) as tests:
        flooding, other = await tests.ready(), await tests.ready()
        tell(flooding, "flood 1000000")
        # Each round trip of a neighbour goes through the same loop.
        slowest = 0.0
        with anyio.fail_after(PATIENCE_S):
            while True:
                at = time.monotonic()
                tests.supervisor.probe(other.worker_id)
                await tests.recorder.wait("probe", other.worker_id, len(tests.recorder.of("probe")) + 1)
                slowest = max(slowest, time.monotonic() - at)
                try:
                    assert flooding.slots[0].recv(3) == b"ok\n"
                    break
                except BlockingIOError:
                    pass
        tell(flooding, "exit 0")
        report = await tests.exited(flooding)
    assert slowest < 1.0
    assert report.output_tail == "x" * (TAIL_BYTES % 100 - 1) + "\n" + ("x" * 99 + "\n") * (TAIL_BYTES // 100)
    shown = [entry for entry in logged if entry["event"] == "x" * 99]
    suppressed = sum(entry.get("suppressed", 0) for entry in logged)
    assert len(shown) + suppressed == 20_000
    assert suppressed > 0


@pytest.mark.slow
@one_backend
async def test_a_grandchild_that_holds_the_pipes_open_delays_no_report() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        grandchild = int(await tests.order(worker, "daemon"))
        tell(worker, "exit 3")
        at = time.monotonic()
        report = await tests.exited(worker)
        assert (report.reason, report.exit_code) == ("exited", 3)
        assert time.monotonic() - at < 2
        assert "flooding" in report.output_tail
    # It left the group and its session; its next write to the closed pipe ends it.
    await dead(grandchild)


@pytest.mark.slow
@one_backend
async def test_a_logger_that_fails_harms_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def info(self, *args: object, **fields: object) -> None:
            raise OSError("the disk is full")

    monkeypatch.setattr(output, "get_logger", lambda *args, **fields: Broken())
    async with lab() as tests:
        worker = await tests.ready()
        assert await tests.order(worker, "say stdout one") == "ok"
        tell(worker, "exit 0")
        report = await tests.exited(worker)
        assert (report.reason, report.output_tail) == ("exited", "one\n")


def test_lines_are_put_together_from_pieces(pipes: Pipes, logged: list[Any]) -> None:
    for piece in (b"on", b"e\r\ntw", b"o\n\nthree"):
        pipes.write(piece)
        pipes.output._take("stdout", output._read(pipes.ends["stdout"][0]) or b"")
    pipes.write(b"error", "stderr")
    pipes.output.drain_rest()
    assert texts(logged) == ["one", "two", "", "three", "error"]
    assert pipes.output.tail() == "one\r\ntwo\n\nthreeerror"


def test_a_long_line_is_logged_in_pieces(pipes: Pipes, logged: list[Any]) -> None:
    pipes.write(b"a" * (2 * LINE_BYTES + 5) + b"\nb\n")
    pipes.output.drain_rest()
    assert [len(text) for text in texts(logged)] == [LINE_BYTES, LINE_BYTES, 5, 1]


def test_a_line_without_an_end_is_not_kept_in_memory(pipes: Pipes, logged: list[Any]) -> None:
    for _ in range(100):
        pipes.write(b"a" * LINE_BYTES)
        pipes.output._take("stdout", output._read(pipes.ends["stdout"][0]) or b"")
    assert len(pipes.output._partial["stdout"]) < LINE_BYTES
    assert len(pipes.output._tail) == TAIL_BYTES + output.MARGIN_BYTES
    assert len(pipes.output.tail()) == TAIL_BYTES


def test_more_lines_than_allowed_are_counted(pipes: Pipes, logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now))
    assert pipes.output._take("stdout", b"x\n" * LINES_PER_S)
    assert not pipes.output._take("stderr", b"y\n" * 70)
    assert not pipes.output._take("stdout", b"y" * LINE_BYTES)
    pipes.output._log_waiting(LINES_PER_S)
    assert texts(logged) == ["x"] * LINES_PER_S
    now = 101.0
    assert pipes.output._take("stdout", b"z\n")
    pipes.output._log_waiting(LINES_PER_S)
    assert texts(logged)[LINES_PER_S:] == ["71 lines suppressed: too many at a time", "z"]


def test_of_a_dead_workers_lines_the_last_are_logged(pipes: Pipes, logged: list[Any]) -> None:
    pipes.write(b"".join(b"%d\n" % number for number in range(300)))
    pipes.output.drain_rest()
    assert texts(logged) == ["200 lines suppressed: too many at a time", *map(str, range(200, 300))]


async def test_a_closed_stream_ends_its_drain(pipes: Pipes) -> None:
    spare = os.dup(pipes.ends["stdout"][0])
    os.close(pipes.ends["stdout"][1])
    try:
        with anyio.fail_after(PATIENCE_S):
            await pipes.output.drain("stdout")
    finally:
        os.dup2(spare, pipes.ends["stdout"][1])
        os.close(spare)


@one_backend
async def test_keys_are_in_no_line_and_no_tail(pipes: Pipes, logged: list[Any]) -> None:
    pipes.write(f"the key is {KEY}\n".encode() + b"\xff is no text\n")
    pipes.write(b"x" * (LINE_BYTES - 10) + KEY.encode() + b"\n", "stderr")  # across where a long line is cut
    pipes.write(f"and {KEY} without an end".encode())
    pipes.output.drain_rest()
    assert texts(logged)[:2] == ["the key is ***", "\N{REPLACEMENT CHARACTER} is no text"]
    assert not any("sk-" in text or "prints" in text for text in texts(logged))
    assert KEY not in pipes.output.tail()
    assert "and *** without an end" in pipes.output.tail()


@one_backend
@pytest.mark.parametrize("before", range(0, 40, 3))
async def test_a_key_is_not_halved_where_the_tail_is_cut(pipes: Pipes, before: int) -> None:
    kept = output.TAIL_BYTES + output.MARGIN_BYTES
    pipes.write(b"y" * 100 + KEY.encode() + b"x" * (kept - before))  # the cut is before, in, or behind the key
    pipes.output.drain_rest()
    tail = pipes.output.tail()
    assert set(tail) <= {"x", "*"}
    assert len(tail) <= TAIL_BYTES
