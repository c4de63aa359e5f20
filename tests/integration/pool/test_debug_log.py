"""debug_log=: a line for each frame, nothing of what it carries; no code on a call's way where it isn't asked for."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

import dspool
from dspool.pool.slot_pipe import SlotPipe
from dspool.supervisor.control import ControlPipe
from dspool.testing.fake import Die, FakeLauncher
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool

SECRET = "sk-canary-0123456789"


def lines(path: Path) -> list[dict[str, Any]]:
    """What is in the log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(path: Path, *fields: str, **wanted: Any) -> list[tuple[Any, ...]]:
    """These fields of the lines that have those values."""
    return [tuple(line.get(field) for field in fields) for line in lines(path) if wanted.items() <= line.items()]


def echo(**inputs: Any) -> Any:
    """A program."""
    return inputs


def fails() -> None:
    """A program that raises what it knows."""
    raise ValueError(SECRET)


def fakes() -> FakeLauncher:
    """Workers that echo; one that is asked to die does."""
    return FakeLauncher(lambda call: Die() if call.inputs.get("die") else call.inputs)


def give_secrets() -> Iterator[str]:
    """A program whose pieces nobody else should read."""
    yield SECRET
    yield SECRET


@pytest.mark.integration
@pytest.mark.slow
def test_each_piece_of_a_stream_has_its_line(make_pool: MakePool, tmp_path: Path) -> None:
    log = tmp_path / "frames.jsonl"
    pool = make_pool(workers=1, debug_log=log)
    assert list(pool.stream(give_secrets, {})) == [SECRET, SECRET]
    pool.close()
    frames = told(log, "direction", "message", "command", slot=0)[-4:]
    assert frames == [
        ("out", "request", "execute_program"),
        ("in", "chunk", "execute_program"),
        ("in", "chunk", "execute_program"),
        ("in", "response", "execute_program"),
    ]
    assert SECRET not in log.read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.slow
def test_each_frame_of_a_real_worker_has_its_line(make_pool: MakePool, tmp_path: Path) -> None:
    log = tmp_path / "frames.jsonl"
    pool = make_pool(workers=1, debug_log=log, lm={"model": "openai/m", "api_key": SECRET}, warm=["builtins:dict"])
    assert pool.run("builtins:dict", {"secret": SECRET}, session=SECRET) == {"secret": SECRET}
    assert pool.run(echo, {"value": 1}) == {"value": 1}
    with pytest.raises(dspool.ProgramError):
        pool.run(fails, {})
    pool.close()
    requests = [("control", "out", "request", "ping", 0), ("control", "in", "response", "ping", 0)]
    assert told(log, "slot", "direction", "message", "command", "id")[:2] == requests
    assert told(log, "direction", "command", "ok", slot=0)[:2] == [
        ("out", "execute_program", None),
        ("in", "execute_program", True),
    ]
    shipped = ["execute_program", "create_program", "execute_program"]
    assert [command for (command,) in told(log, "command", slot=0, direction="out")] == [
        "execute_program",
        *shipped * 2,
    ]
    assert [ok for (ok,) in told(log, "ok", slot=0, direction="in")] == [True, False, True, True, False, True, False]
    assert ("shutdown", "out") in told(log, "command", "direction", slot="control")
    for line in lines(log):
        assert (line["pool"], line["worker_id"]) == (pool.name, 1)
        assert datetime.fromisoformat(line["time"]).tzinfo is not None
        assert line["message"] == "end" or line["bytes"] > 4
        assert ("took_ms" in line) == (line["message"] == "response")
    assert SECRET not in log.read_text(encoding="utf-8")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_pool_logs_too_and_what_was_there_is_kept(
    make_async_pool: MakeAsyncPool, tmp_path: Path, backend: str
) -> None:
    log = tmp_path / "frames.jsonl"
    log.write_text('{"from": "before"}\n', encoding="utf-8")
    log.chmod(0o644)

    async def main() -> None:
        async with make_async_pool(workers=2, launcher=fakes(), debug_log=str(log)) as pool:
            assert [value async for value in pool.map(echo, [{"n": n} for n in range(20)])] == [
                {"n": n} for n in range(20)
            ]

    anyio.run(main, backend=backend)
    assert lines(log)[0] == {"from": "before"}
    assert len(told(log, "id", command="execute_program", message="response", ok=True)) == 20
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_end_of_a_pipe_is_logged(make_pool: MakePool, tmp_path: Path) -> None:
    log = tmp_path / "frames.jsonl"
    pool = make_pool(workers=1, launcher=fakes(), debug_log=log)
    with pytest.raises(dspool.WorkerLost):
        pool.run(echo, {"die": True})
    ((error,),) = told(log, "error", message="end", worker_id=1, slot=0)
    assert "closed" in error


def test_pipes_that_are_not_logged_are_of_the_plain_classes(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, launcher=fakes())
    (worker,) = pool.workers()
    assert [type(pipe) for pipe in pool._driver.pipes[worker.worker_id]] == [SlotPipe]
    assert pool._control is not None
    assert type(pool._control.supervisor._workers[worker.worker_id]._control) is ControlPipe


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("", "must be a path or None"),
        (5, "must be a path"),
        ("/dev/null", "no regular file"),
        ("/no/such/folder/x", "No such file"),
    ],
)
def test_a_log_that_cannot_be_written_is_refused_before_anything_starts(
    no_leaks: None, pool_name: Callable[[], str], wrong: Any, reason: str
) -> None:
    launcher = fakes()
    with pytest.raises(dspool.OptionsError, match=f"debug_log.*{reason}"):
        dspool.Pool(name=pool_name(), launcher=launcher, debug_log=wrong).open()
    assert not launcher.workers


def test_a_fifo_nobody_reads_is_refused_at_once(no_leaks: None, pool_name: Callable[[], str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(dspool.OptionsError, match="debug_log"):
        dspool.Pool(name=pool_name(), workers=1, launcher=fakes(), debug_log=tmp_path / "fifo").open()


def test_a_log_that_fails_costs_no_call(make_pool: MakePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "frames.jsonl"
    pool = make_pool(workers=1, launcher=fakes(), debug_log=log)
    assert pool._control is not None
    assert pool._control.frame_log is not None
    before = len(lines(log))
    with open("/dev/full", "wb", buffering=0) as full:
        fd = pool._control.frame_log._file._fd
        kept = os.dup(fd)
        os.dup2(full.fileno(), fd)
        assert pool.run(echo, {"n": 1}) == {"n": 1}
    os.close(kept)
    assert pool.run(echo, {"n": 2}) == {"n": 2}
    assert len(lines(log)) == before
