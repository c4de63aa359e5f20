"""pool.stream() over real workers: a result handed out while it is made, and what becomes of its slot after it."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import anyio
import msgspec
import pytest

import dspool
from dspool.protocol.frames import encode_frame
from dspool.protocol.messages import Event, ItemChunk
from dspool.testing.scripted import behave
from dspool.testing.stub_lm import StubLM
from tests.contract.backends import DEADLINE_S, SHORT_S
from tests.contract.subject import World, beside, in_thread

pytestmark = [pytest.mark.only("real"), pytest.mark.every_front]

ASK = {"question": "why is the sky blue?"}
ANSWER = "echo: why is the sky blue?"
QA = "question -> answer"


def count(start: int, end: int) -> Iterator[int]:
    yield from range(start, end)


def count_and_return(end: int) -> Generator[int, None, dict[str, int]]:
    yield from range(end)
    return {"counted": end}


async def count_async(end: int) -> AsyncIterator[int]:
    for number in range(end):
        await asyncio.sleep(0)
        yield number


def plain(value: int) -> int:
    return value + 1


async def coroutine(value: int) -> int:
    return value + 1


def fail_after(good: int) -> Iterator[int]:
    yield from range(good)
    raise LookupError("no more")


def die_after(good: int) -> Iterator[int]:
    yield from range(good)
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_first(path: str) -> Iterator[str]:
    """Dies before its first piece, the first time."""
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    yield "lived"


async def wait_forever(first: str) -> AsyncIterator[str]:
    yield first
    await asyncio.Event().wait()


def give_and_meet(path: str) -> Iterator[str]:
    """Gives a piece, and then is in a call that can't be cancelled."""
    yield "x"
    behave("meet", path=path)


def flood(size: int) -> Iterator[bytes]:
    while True:
        yield bytes(size)


def worker_pid() -> Iterator[int]:
    yield os.getpid()


def give_unsendable(kind: str) -> Iterator[Any]:
    yield 1
    yield bytes(30_000) if kind == "over the cap" else threading.Lock()


def give_and_lie(data: bytes) -> Iterator[str]:
    """Gives a piece, and then what the worker would never send."""
    yield "x"
    behave("garbage", data=data)


# --- generators -------------------------------------------------------------------------------------------------------


async def test_a_generators_items_come_as_its_pieces(world: World) -> None:
    async with world.pool() as pool:
        assert await pool.stream(count, {"start": 2, "end": 5}).all() == [2, 3, 4]
        assert await pool.stream(count_async, {"end": 40}).all() == list(range(40))
        assert await pool.stream(count_and_return, {"end": 2}).all() == [0, 1, {"counted": 2}]
        assert await pool.stream(count, {"start": 0, "end": 0}).all() == []
        stats = await pool.stats()
        assert (stats.calls_ok, stats.leased, stats.idle) == (4, 0, 1)


async def test_a_callable_that_gives_no_pieces_gives_its_value(world: World) -> None:
    async with world.pool() as pool:
        assert await pool.stream(plain, {"value": 1}).all() == [2]
        assert await pool.stream(coroutine, {"value": 1}).all() == [2]


async def test_nothing_is_sent_before_the_first_piece_is_asked_for(world: World) -> None:
    async with world.pool() as pool:
        stream = pool.stream(plain, {"value": 1})
        assert (await pool.stats()).checkouts == 0
        await stream.close()
        assert await stream.all() == []
        assert (await pool.stats()).checkouts == 0


async def test_what_can_not_run_is_refused_at_once(world: World) -> None:
    async with world.pool() as pool:
        with pytest.raises(dspool.OptionsError, match=r"has no argument 'field'.*did you mean 'fields'"):
            pool.stream(plain, {"value": 1}, field="x")
        with pytest.raises(dspool.OptionsError, match="fields must be names"):
            pool.stream(plain, {"value": 1}, fields=[1])
        with pytest.raises(dspool.EncodeError):
            pool.stream(plain, {"value": object()})
        with pytest.raises(dspool.OptionsError, match="status must be True, False"):
            pool.stream(plain, {"value": 1}, status=threading.Lock())
        with pytest.raises(dspool.EncodeError, match=r"can't be sent.* because of status.*: a _thread\.lock"):
            pool.stream(plain, {"value": 1}, status=functools.partial(print, threading.Lock()))


async def test_a_program_that_fails_does_so_after_its_pieces(world: World) -> None:
    async with world.pool() as pool:
        stream = pool.stream(fail_after, {"good": 3})
        with pytest.raises(dspool.ProgramError, match="no more"):
            await stream.all()
        assert stream.given == [0, 1, 2]
        assert await stream.all() == []
        stats = await pool.stats()
        assert (stats.calls_failed, stats.started, stats.idle) == (1, 1, 1)


@pytest.mark.parametrize("kind", ["no plain form", "over the cap"])
async def test_a_piece_that_can_not_be_sent_ends_the_call_and_not_its_worker(world: World, kind: str) -> None:
    async with world.pool(max_frame_bytes=20_000) as pool:
        stream = pool.stream(give_unsendable, {"kind": kind})
        assert await anext(stream) == 1
        with pytest.raises(dspool.ProgramError, match="a piece of the result can't be sent"):
            await anext(stream)
        assert await pool.run("echo", value=1) == 1
        assert (await pool.stats()).started == 1


async def test_a_worker_that_dies_in_mid_stream_is_lost_and_the_call_not_sent_again(world: World) -> None:
    async with world.pool() as pool:
        stream = pool.stream(die_after, {"good": 3}, idempotent=True)
        with pytest.raises(dspool.WorkerLost, match=r"3 pieces of its stream had come") as caught:
            await stream.all()
        assert stream.given == [0, 1, 2]
        assert caught.value.report is not None
        assert caught.value.report.signal == "SIGKILL"
        assert (await pool.stats()).retries == 0


async def test_an_idempotent_stream_is_sent_again_before_its_first_piece(world: World) -> None:
    async with world.pool() as pool:
        path = str(world.backend.folder() / "died")
        assert await pool.stream(die_at_first, {"path": path}, idempotent=True).all() == ["lived"]
        assert (await pool.stats()).retries == 1


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (Event(2**40, "chunk", ItemChunk("foreign")), "answered id 1099511627776 when"),
        (Event(1, "status", ItemChunk("x")), "with other data"),
        ({"id": 1, "event": "noise", "data": {}}, "not a response"),
    ],
)
async def test_an_event_that_nobody_asked_for_costs_the_worker(world: World, message: Any, detail: str) -> None:
    lie = bytes(encode_frame(msgspec.msgpack.encode(message)))
    async with world.pool() as pool:
        stream = pool.stream(give_and_lie, {"data": lie})
        with pytest.raises(dspool.WorkerLost, match=detail) as caught:
            await stream.all()
        assert stream.given == ["x"]
        assert caught.value.report is not None
        assert caught.value.report.reason == "protocol_error"
        assert await pool.run("echo", value=1) == 1


# --- leaving early ----------------------------------------------------------------------------------------------------


async def test_leaving_an_async_generator_gives_its_slot_back_without_a_kill(world: World) -> None:
    async with world.pool() as pool:
        (pid,) = await pool.stream(worker_pid, {}).all()
        for leave in ("close", "drop"):
            stream = pool.stream(wait_forever, {"first": leave})
            assert await anext(stream) == leave
            if leave == "close":
                await stream.close()
                await stream.close()
                assert await stream.all() == []
            del stream
            assert await pool.stream(worker_pid, {}).all() == [pid]
        stats = await pool.stats()
        assert (stats.calls_cancelled, stats.started, stats.exits) == (2, 1, {})


async def test_leaving_what_can_not_be_cancelled_costs_the_worker(world: World) -> None:
    async with world.pool(cancel_grace_s=0.05) as pool:
        gate = world.gate()
        stream = pool.stream(give_and_meet, {"path": gate.path})
        assert await anext(stream) == "x"
        await gate.arrival()
        await stream.close()
        assert await pool.run("echo", value=1) == 1
        ended = await pool.events.wait("worker.ended")
        assert ended["report"].reason == "cancelled"
        stats = await pool.stats()
        assert (stats.calls_cancelled, stats.started) == (1, 2)


async def test_a_caller_that_does_not_read_holds_its_program_up_and_can_still_leave(world: World) -> None:
    async with world.pool() as pool:
        (pid,) = await pool.stream(worker_pid, {}).all()
        stream = pool.stream(flood, {"size": 100_000})
        for _ in range(3):
            assert await anext(stream) == bytes(100_000)
        await stream.close()
        assert await pool.stream(worker_pid, {}).all() == [pid]


async def test_the_deadline_ends_a_stream_that_gives_nothing_more(world: World) -> None:
    async with world.pool() as pool:
        (pid,) = await pool.stream(worker_pid, {}).all()
        stream = pool.stream(wait_forever, {"first": "x"}, timeout_s=SHORT_S)
        assert await anext(stream) == "x"
        with pytest.raises(dspool.CallTimeout, match="was told to cancel it"):
            await anext(stream)
        assert await pool.stream(worker_pid, {}).all() == [pid]


async def test_the_deadline_ends_a_stream_whose_caller_stays_away(world: World) -> None:
    async with world.pool(cancel_grace_s=0.05) as pool:
        stream = pool.stream(flood, {"size": 100_000})
        await anext(stream)  # the program is loaded
        await stream.close()
        stream = pool.stream(flood, {"size": 100_000}, timeout_s=SHORT_S)
        await anext(stream)
        ended = await pool.events.wait("worker.ended")
        assert ended["report"].reason == "timeout"
        with pytest.raises(dspool.CallTimeout):
            await stream.all()
        assert await pool.run("echo", value=1) == 1


@pytest.mark.only("asyncio", "trio")
async def test_a_cancelled_task_cancels_its_stream(world: World) -> None:
    async with world.pool() as pool:
        (pid,) = await pool.stream(worker_pid, {}).all()
        stream = pool.stream(wait_forever, {"first": "x"})
        assert await anext(stream) == "x"
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await anext(stream)

            scopes: list[anyio.CancelScope] = []
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(dspool.PoolError, match="one piece at a time"):
                await stream.close()
            scopes[0].cancel()
        assert await stream.all() == []
        assert await pool.stream(worker_pid, {}).all() == [pid]


async def test_a_pool_that_closes_ends_its_streams(world: World) -> None:
    async with world.pool() as pool:
        stream = pool.stream(wait_forever, {"first": "x"})
        assert await anext(stream) == "x"
        await pool.call("close", 0.0)
        with pytest.raises(dspool.PoolClosed):
            await anext(stream)


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_lease_streams_and_goes_on(world: World) -> None:
    async with world.pool(workers=2) as pool:
        async with await pool.checkout() as lease:
            token = await lease.run("pid")
            assert await lease.stream(worker_pid, {}).all() == await lease.stream(worker_pid, {}).all()
            stream = lease.stream(fail_after, {"good": 2})
            with pytest.raises(dspool.ProgramError, match="no more"):
                await stream.all()
            assert stream.given == [0, 1]
            stream = lease.stream(wait_forever, {"first": "x"})
            assert await anext(stream) == "x"
            with pytest.raises(dspool.PoolError, match="runs one at a time"):
                await lease.run("pid")
            with pytest.raises(dspool.OptionsError, match=r"lease.stream\(\) has no argument 'field'"):
                lease.stream(worker_pid, {}, field="x")
            del stream
            with pytest.raises(dspool.PoolError, match="is over"):
                lease.stream(worker_pid, {})
        assert token in await pool.tokens()
        stats = await pool.stats()
        assert (stats.calls_ok, stats.calls_failed, stats.calls_cancelled, stats.exits) == (3, 1, 1, {})


async def test_leaving_a_leases_stream_gives_its_slot_back_without_a_kill(world: World) -> None:
    async with world.pool() as pool:
        (pid,) = await pool.stream(worker_pid, {}).all()
        lease = await pool.checkout()
        stream = lease.stream(wait_forever, {"first": "x"})
        assert await anext(stream) == "x"
        await stream.close()
        assert await pool.stream(worker_pid, {}).all() == [pid]
        await lease.close()
        stats = await pool.stats()
        assert (stats.started, stats.leased, stats.exits) == (1, 0, {})


async def test_the_deadline_ends_a_leases_stream_and_the_lease(world: World) -> None:
    async with world.pool() as pool:
        (pid,) = await pool.stream(worker_pid, {}).all()
        lease = await pool.checkout()
        stream = lease.stream(wait_forever, {"first": "x"}, timeout_s=SHORT_S)
        assert await anext(stream) == "x"
        with pytest.raises(dspool.CallTimeout, match="was told to cancel it"):
            await anext(stream)
        with pytest.raises(dspool.PoolError, match="is over"):
            await lease.run()
        assert await pool.stream(worker_pid, {}).all() == [pid]


async def test_a_run_after_a_leases_stream_is_not_taken_for_one(world: World) -> None:
    async with world.pool() as pool:
        lease = await pool.checkout()
        (pid,) = await lease.stream(worker_pid, {}).all()
        with pytest.raises(dspool.CallTimeout):
            await lease.run("meet", path=world.gate().path, timeout_s=SHORT_S)
        assert (await pool.events.wait("worker.ended"))["report"].reason == "timeout"
        assert await pool.stream(worker_pid, {}).all() != [pid]


# --- DSPy -------------------------------------------------------------------------------------------------------------


def fields_of(pieces: list[Any]) -> dict[str, str]:
    """predictor.field -> its whole text."""
    texts: dict[str, str] = {}
    for piece in pieces:
        name = f"{piece.predict_name}.{piece.signature_field_name}"
        texts[name] = texts.get(name, "") + piece.chunk
    return texts


async def test_the_text_fields_of_a_dspy_program_come_and_then_its_prediction(world: World) -> None:
    import dspy
    from dspy.streaming import StreamResponse

    class Sync(dspy.Module):
        def __init__(self) -> None:
            self.think = dspy.ChainOfThought("question -> answer, score: int")

        def forward(self, question: str) -> Any:
            return self.think(question=question)

    with StubLM() as stub:
        async with world.pool(lm=stub.settings()) as pool:
            for program, prefix in ((dspy.ChainOfThought("question -> answer, score: int"), ""), (Sync(), "think.")):
                *pieces, prediction = await pool.stream(program, ASK).all()
                assert all(isinstance(piece, StreamResponse) for piece in pieces)
                name = f"{prefix}predict"
                assert fields_of(pieces) == {f"{name}.reasoning": ANSWER, f"{name}.answer": ANSWER}
                assert isinstance(prediction, dspy.Prediction)
                assert (prediction.answer, type(prediction.score)) == (ANSWER, int)
                assert prediction.get_lm_usage()["openai/stub"]["total_tokens"] > 0
                *pieces, prediction = await pool.stream(program, ASK, fields=["answer", f"{name}.score"]).all()
                assert set(fields_of(pieces)) == {f"{name}.answer", f"{name}.score"}
            with pytest.raises(dspool.ProgramError, match=r"no output field 'anser'.*it has reasoning") as caught:
                await pool.stream(Sync(), ASK, fields="anser").all()
            assert caught.value.code == "invalid_fields"


def make_teller() -> Any:
    """A provider, by its import path."""
    from dspy.streaming import StatusMessageProvider

    class Teller(StatusMessageProvider):
        def lm_start_status_message(self, instance: Any, inputs: Any) -> str:
            return "asking"

    return Teller()


async def test_status_messages_come_on_the_way(world: World) -> None:
    import dspy
    from dspy.streaming import StatusMessage, StatusMessageProvider

    def look(place: str) -> str:
        return "found"

    class Teller(StatusMessageProvider):
        def lm_start_status_message(self, instance: Any, inputs: Any) -> str:
            return "asking"

    class Asynchronous(dspy.Module):
        def __init__(self) -> None:
            self.look = dspy.Tool(look)
            self.qa = dspy.Predict(QA)

        async def aforward(self, question: str) -> Any:
            await self.look.acall(place="x")
            return await self.qa.acall(question=question)

    class Sync(Asynchronous):
        def forward(self, question: str) -> Any:
            self.look(place="x")
            return self.qa(question=question)

    def messages(pieces: list[Any]) -> list[str]:
        return [piece.message for piece in pieces if isinstance(piece, StatusMessage)]

    with StubLM() as stub:
        async with world.pool(lm=stub.settings()) as pool:
            for program in (Asynchronous(), Sync()):
                told = messages(await pool.stream(program, ASK).all())
                assert told[0] == "Calling tool look..."
                assert len(told) == 2
                assert messages(await pool.stream(program, ASK, status=False).all()) == []
                for teller in (Teller, Teller(), f"{__name__}:make_teller"):
                    assert "asking" in messages(await pool.stream(program, ASK, status=teller).all())


@pytest.mark.parametrize("kind", ["its own aforward", "forward alone"])
async def test_leaving_a_dspy_stream_closes_the_request_and_keeps_the_worker(world: World, kind: str) -> None:
    import dspy

    class Sync(dspy.Module):
        def __init__(self) -> None:
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    with StubLM(piece_interval_s=0.01, answers={"answer": "word " * 1000}) as stub:
        async with world.pool(lm=stub.settings(), cancel_grace_s=DEADLINE_S) as pool:
            stream = pool.stream(dspy.Predict(QA) if kind == "its own aforward" else Sync(), ASK)
            await anext(stream)
            assert stub.stats().open_streams == 1
            await stream.close()
            left = await in_thread(functools.partial(stub.wait_idle, timeout_s=DEADLINE_S))
            assert (left.aborted, left.answered) == (1, 0)
            stats = await pool.until(lambda stats: stats.idle == 1)
            assert (stats.calls_cancelled, stats.started, stats.exits) == (1, 1, {})


async def test_an_error_of_the_lm_comes_after_the_pieces(world: World) -> None:
    # Not "reset": that takes back what was not read yet, and an answer of which nothing came is asked for again.
    with StubLM(faults=["stall", "ok"], piece_interval_s=0.001) as stub:
        async with world.pool(lm=stub.settings(num_retries=3, timeout=2)) as pool:
            stream = pool.stream(QA, ASK)
            with pytest.raises(dspool.ProgramError) as caught:
                await stream.all()
            assert caught.value.code == "lm_error"
            assert ANSWER.startswith("".join(piece.chunk for piece in stream.given))
            assert stub.stats().requests == 1
            assert (await pool.stream(QA, ASK).all())[-1].answer == ANSWER


async def test_streams_of_one_worker_run_beside_one_another(world: World) -> None:
    with StubLM(piece_interval_s=0.005) as stub:
        async with world.pool(lm=stub.settings(), slots=4) as pool, beside() as calls:
            streams = [calls.start(pool.stream(QA, {"question": str(number)}).all) for number in range(8)]
            for number, stream in enumerate(streams):
                *pieces, prediction = await stream.get()
                assert "".join(piece.chunk for piece in pieces) == prediction.answer == f"echo: {number}"
            assert stub.stats().max_in_flight > 1
