"""The control pipe: pings, late pongs, and what is not our protocol."""

from __future__ import annotations

import anyio
import pytest

from tests.integration.supervisor.harness import freeze, lab, line, one_backend, options, tell, thaw

pytestmark = [pytest.mark.integration, pytest.mark.anyio, pytest.mark.slow]


async def test_a_probe_is_answered_also_while_a_call_runs() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tests.supervisor.probe(worker.worker_id)
        assert (await tests.recorder.wait("probe", worker.worker_id)).value is True
        tell(worker, "spin")
        await line(worker.slots[0])
        tests.supervisor.probe(worker.worker_id)
        assert (await tests.recorder.wait("probe", worker.worker_id, 2)).value is True


@one_backend
async def test_one_ping_is_open_at_a_time() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        for _ in range(5):
            tests.supervisor.probe(worker.worker_id)
        await tests.recorder.wait("probe", worker.worker_id)
        await anyio.wait_all_tasks_blocked()
        assert len(tests.recorder.of("probe")) == 1


@one_backend
async def test_a_probe_of_a_worker_that_is_not_ready_does_nothing() -> None:
    async with lab() as tests:
        worker_id = tests.start("boot_silent")
        tests.supervisor.probe(worker_id)
        tests.supervisor.kill(worker_id, "killed", "")
        await tests.exited(worker_id)
        assert not tests.recorder.of("probe")


async def test_a_stopped_worker_misses_its_pings() -> None:
    async with lab(ping_timeout_s=0.05) as tests:
        worker = await tests.ready()
        freeze(worker)
        for number in (1, 2, 3):
            tests.supervisor.probe(worker.worker_id)
            assert (await tests.recorder.wait("probe", worker.worker_id, number)).value is False
        thaw(worker)
        tests.supervisor.probe(worker.worker_id)
        await tests.recorder.wait("probe", worker.worker_id, 4)
        assert not tests.recorder.of("unwell")


async def test_a_late_pong_does_not_answer_the_next_ping() -> None:
    async with lab(ping_timeout_s=0.3) as tests:
        worker = await tests.ready("hold_pongs")
        tests.supervisor.probe(worker.worker_id)
        assert await line(worker.slots[0]) == "held"
        assert (await tests.recorder.wait("probe", worker.worker_id)).value is False
        tests.supervisor.probe(worker.worker_id)
        assert await line(worker.slots[0]) == "held"
        # The first ping's answer alone: nobody's.
        assert await tests.order(worker, "pong 1") == "ok"
        assert (await tests.recorder.wait("probe", worker.worker_id, 2)).value is False
        assert await tests.order(worker, "pong 2") == "ok"
        tests.supervisor.probe(worker.worker_id)
        assert await line(worker.slots[0]) == "held"
        assert await tests.order(worker, "pong 3") == "ok"
        assert (await tests.recorder.wait("probe", worker.worker_id, 3)).value is True
        assert not tests.recorder.of("unwell")


@pytest.mark.parametrize(
    ("order", "detail"),
    [
        ("raw 00000003c10000", "control pipe: not a response"),
        ("raw ffffffff", "control pipe: a frame says it is 4,294,967,295 bytes long"),
        ("raw 48545450", "the length header seems to be missing"),
        ("foreign 4711", "control pipe: an answer to request 4711, which is not open"),
        ("foreign 0", "control pipe: an answer to request 0, which is not open"),
        ("end_control", "its control pipe ended while the process lives"),
    ],
)
@one_backend
async def test_what_is_not_our_protocol_makes_a_worker_unwell(order: str, detail: str) -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, order)
        reason, text = (await tests.recorder.wait("unwell", worker.worker_id)).value
        assert reason == "protocol_error"
        assert detail in text
        tell(worker, "raw ffffffff")
        tests.supervisor.kill(worker.worker_id, reason, text)
        report = await tests.exited(worker)
        assert (report.reason, report.detail, report.signal) == ("protocol_error", text, "SIGKILL")
        assert len(tests.recorder.of("unwell")) == 1


@one_backend
async def test_a_pipe_that_ends_inside_a_frame_makes_a_worker_unwell() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        assert await tests.order(worker, "raw 0000000aff") == "ok"
        tell(worker, "end_control")
        _, text = (await tests.recorder.wait("unwell", worker.worker_id)).value
        assert text == "control pipe: the pipe ended after 5 of 14 bytes of a frame"


@one_backend
async def test_a_control_pipe_that_ends_with_its_process_is_no_news() -> None:
    async with lab() as tests:
        worker = await tests.ready()
        tell(worker, "exit 0")
        await tests.exited(worker)
        assert not tests.recorder.of("unwell")


@one_backend
async def test_a_worker_that_does_not_read_gets_no_more_pings() -> None:
    async with lab(ping_timeout_s=0.001) as tests:
        worker = await tests.ready()
        freeze(worker)
        number = 0
        while not worker._control.blocked:
            number += 1
            tests.supervisor.probe(worker.worker_id)
            await tests.recorder.wait("probe", worker.worker_id, number)
        tests.supervisor.probe(worker.worker_id)
        assert (await tests.recorder.wait("probe", worker.worker_id, number + 1)).value is False
        assert len(worker._control._unsent) == 1
        thaw(worker)
        worker._options = options(ping_timeout_s=0.2)
        answered = False
        while not answered:
            tests.supervisor.probe(worker.worker_id)
            number += 1
            answered = (await tests.recorder.wait("probe", worker.worker_id, number + 1)).value
        # They come in order.
        assert not worker._control._given_up
        assert not tests.recorder.of("unwell")
