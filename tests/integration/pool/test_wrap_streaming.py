"""dspy.streamify over pool.wrap gives what it gives in one process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import dspool
from dspool.testing.pytest_plugin import MakeAsyncPool, MakePool
from dspool.testing.stub_lm import StubLM

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.anyio]

QUESTION = "why is the sky so very blue today?"
DEADLINE_S = 60


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """What streamify's users run."""
    return "asyncio"


@pytest.fixture
def stub() -> Iterator[StubLM]:
    """Where the LM is."""
    with StubLM() as stub:
        yield stub


Wrapped = contextlib.AbstractAsyncContextManager[Callable[[Any], Any]]


@pytest.fixture(params=["threads", "on one loop", "async pool", "async pool on one loop"])
def wrapping(request: Any, make_pool: MakePool, make_async_pool: MakeAsyncPool) -> Callable[[], Wrapped]:
    """A pool of each kind, open inside of a running loop."""
    options: dict[str, Any] = {"workers": 1, "timeout_s": 30}
    if "one loop" in request.param:
        options |= {"execution": "async", "slots": 4}

    @contextlib.asynccontextmanager
    async def wrapping() -> AsyncIterator[Callable[[Any], Any]]:
        if "async pool" in request.param:
            async with make_async_pool(**options) as pool:
                yield pool.wrap
        else:
            yield make_pool(**options).wrap

    return wrapping


def seen(piece: Any) -> Any:
    """A piece as it can be compared."""
    if type(piece).__name__ == "EngineChunk":  # an LM's, whose answer has an id of its own each time
        return "EngineChunk", [dict(choice) for choice in piece.choices]
    if type(piece).__name__ == "Prediction":
        return "Prediction", dict(piece.items())
    return type(piece).__name__, piece if isinstance(piece, dict) else vars(piece)


async def streamed(program: Any, dspy: Any, stub: StubLM, inputs: Any = None, **options: Any) -> list[Any]:
    """All that streamify gives."""
    with dspy.context(lm=stub.lm(cache=False)):
        pieces = dspy.streamify(program, **options)(**({"question": QUESTION} if inputs is None else inputs))
        async with asyncio.timeout(DEADLINE_S):
            return [seen(piece) async for piece in pieces]


async def test_the_pieces_are_those_of_the_process(
    wrapping: Callable[[], Wrapped], programs: Any, dspy: Any, stub: StubLM
) -> None:
    def listener(field: str, program: Any = None, **options: Any) -> Any:
        options |= {} if program is None else {"predict": program.think.predict, "predict_name": "mine"}
        return dspy.streaming.StreamListener(field, **options)

    cases: list[Callable[[Any], dict[str, Any]]] = [
        lambda program: {},
        lambda program: {"stream_listeners": [listener("answer")]},
        lambda program: {"stream_listeners": [listener("reasoning"), listener("final")]},
        lambda program: {"stream_listeners": [listener("answer", program)]},
        lambda program: {
            "stream_listeners": [listener("final")],
            "include_final_prediction_in_output_stream": False,
        },
        lambda program: {
            "stream_listeners": [listener("final")],
            "status_message_provider": programs.Teller(),
        },
    ]
    async with wrapping() as wrap:
        for kind, is_async in ((programs.Aloud, False), (programs.Aloud, True), (programs.AloudOnAThread, False)):
            program = kind()
            wrapper = wrap(program)
            for case in cases:
                expected = await streamed(program, dspy, stub, is_async_program=is_async, **case(program))
                found = await streamed(wrapper, dspy, stub, is_async_program=is_async, **case(program))
                assert found == expected
                assert len(found) > 4


async def test_a_predictor_is_streamed_by_itself_and_a_listener_used_again(
    wrapping: Callable[[], Wrapped], dspy: Any, stub: StubLM
) -> None:
    program = dspy.Predict("question -> answer")
    async with wrapping() as wrap:
        wrapper = wrap(program)
        for target in (wrapper, program):
            listener = dspy.streaming.StreamListener("answer", predict=target, predict_name="qa", allow_reuse=True)
            for _ in range(2):
                found = await streamed(wrapper, dspy, stub, stream_listeners=[listener])
                assert [kind for kind, _ in found] == ["StreamResponse"] * (len(found) - 1) + ["Prediction"]
                assert "".join(piece["chunk"] for _, piece in found[:-1]) == f"echo: {QUESTION}"
                assert {piece["predict_name"] for _, piece in found[:-1]} == {"qa"}


async def test_a_wrapper_inside_of_another_program_is_streamed(
    wrapping: Callable[[], Wrapped], programs: Any, dspy: Any, stub: StubLM
) -> None:
    async with wrapping() as wrap:
        program = dspy.Predict("question -> answer")
        found = []
        for inner in (program, wrap(program)):
            listener = dspy.streaming.StreamListener("answer")
            found.append(await streamed(programs.Outer(inner), dspy, stub, stream_listeners=[listener]))
        own, pooled = ([piece for piece in pieces if piece[0] == "StreamResponse"] for pieces in found)
        assert pooled == own
        assert len(own) > 4


async def test_a_wrapper_that_nobody_listens_to_asks_for_no_pieces(wrapping: Callable[[], Wrapped], dspy: Any) -> None:
    class Both(dspy.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner
            self.again = dspy.Predict("draft -> final")

        async def aforward(self, question: str) -> Any:
            return await self.again.acall(draft=(await self.inner.acall(question=question)).answer)

    asked: dict[str, bool] = {}

    def see(request: Any) -> None:
        asked.update(dict.fromkeys(request.inputs, request.stream))

    with StubLM(faults=see) as stub:
        async with wrapping() as wrap:
            program = Both(wrap(dspy.Predict("question -> answer")))
            listener = dspy.streaming.StreamListener("final")
            await streamed(program, dspy, stub, stream_listeners=[listener], is_async_program=True)
    assert asked == {"question": False, "draft": True}


async def test_other_adapters_are_streamed(wrapping: Callable[[], Wrapped], dspy: Any, stub: StubLM) -> None:
    program = dspy.Predict("question -> answer, score: int")
    async with wrapping() as wrap:
        wrapper = wrap(program)
        for adapter in (dspy.JSONAdapter(), dspy.XMLAdapter()):
            with dspy.context(adapter=adapter):
                found = [
                    await streamed(each, dspy, stub, stream_listeners=[dspy.streaming.StreamListener("answer")])
                    for each in (program, wrapper)
                ]
            assert found[0] == found[1]


async def test_what_a_program_sends_itself_arrives(
    wrapping: Callable[[], Wrapped], programs: Any, dspy: Any, stub: StubLM
) -> None:
    async with wrapping() as wrap:
        found = [
            await streamed(each, dspy, stub, inputs={}, is_async_program=True)
            for each in (programs.Sends(), wrap(programs.Sends()))
        ]
        assert found[0] == found[1]
        assert len(found[0]) == 4


async def test_traces_and_usage_come_with_a_stream(
    wrapping: Callable[[], Wrapped], programs: Any, dspy: Any, stub: StubLM
) -> None:
    program = programs.Aloud()
    async with wrapping() as wrap:
        counts = []
        for each in (program, wrap(program)):
            with dspy.context(trace=[], track_usage=True), dspy.track_usage() as tracker:
                await streamed(each, dspy, stub, is_async_program=True)
                steps = [predictor for predictor, _, _ in dspy.settings.trace]
            counts.append((steps, tracker.get_total_tokens()))
        assert counts[0] == counts[1]
        assert counts[0][0] == [program.think.predict, program.again]


async def test_an_error_ends_the_stream_and_can_be_caught_as_what_it_was(
    wrapping: Callable[[], Wrapped], programs: Any, dspy: Any, stub: StubLM
) -> None:
    async with wrapping() as wrap:
        with pytest.raises(ValueError, match="no use for") as caught:
            await streamed(wrap(programs.Fails()), dspy, stub)
        assert isinstance(caught.value, dspool.ProgramError)
        assert len(await streamed(wrap(programs.Aloud()), dspy, stub)) > 4


async def test_leaving_early_closes_the_request_and_keeps_the_worker(
    wrapping: Callable[[], Wrapped], programs: Any, dspy: Any, stub: StubLM
) -> None:
    with StubLM(piece_interval_s=0.05) as slow:
        async with wrapping() as wrap:
            for kind, is_async in ((programs.Aloud, False), (programs.Aloud, True), (programs.AloudOnAThread, False)):
                wrapper = wrap(kind())
                before = await workers_of(wrapper)
                came = asyncio.Event()

                async def read(wrapper: Any = wrapper, is_async: bool = is_async, came: asyncio.Event = came) -> None:
                    listener = dspy.streaming.StreamListener("reasoning")
                    stream = dspy.streamify(wrapper, stream_listeners=[listener], is_async_program=is_async)
                    with dspy.context(lm=slow.lm(cache=False)):
                        async for _ in stream(question=QUESTION):
                            came.set()

                async with asyncio.timeout(DEADLINE_S):
                    reading = asyncio.ensure_future(read())
                    await came.wait()
                    reading.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reading
                assert await asyncio.to_thread(slow.wait_idle, timeout_s=DEADLINE_S)
                assert len(await streamed(wrapper, dspy, stub)) > 4
                assert await workers_of(wrapper) == before


async def workers_of(wrapper: Any) -> list[int]:
    """The pids of the wrapper's pool."""
    found = wrapper._dspool.pool.workers()
    return [worker.pid for worker in (await found if asyncio.iscoroutine(found) else found)]


def test_a_stream_for_threads(make_pool: MakePool, programs: Any, dspy: Any, stub: StubLM) -> None:
    program = programs.Aloud()
    found = []
    for each in (program, make_pool(workers=1).wrap(program)):
        with dspy.context(lm=stub.lm(cache=False)):
            listeners = [dspy.streaming.StreamListener("answer")]
            pieces = dspy.streamify(each, stream_listeners=listeners, async_streaming=False)(question=QUESTION)
            found.append([seen(piece) for piece in pieces])
    assert found[0] == found[1]
    assert len(found[0]) > 4


async def test_a_provider_that_can_not_be_sent_is_named(
    make_pool: MakePool, programs: Any, dspy: Any, stub: StubLM
) -> None:
    provider = programs.Teller()
    provider.lock = threading.Lock()
    with pytest.raises(dspool.EncodeError, match=r"callback\.status_message_provider\.lock: a _thread\.lock"):
        await streamed(make_pool(workers=1).wrap(programs.Aloud()), dspy, stub, status_message_provider=provider)


def test_where_nothing_can_be_sent_from_the_answer_comes_alone(make_pool: MakePool, dspy: Any, stub: StubLM) -> None:
    """A thread that no loop has started, as those of dspy.Parallel."""
    wrapper = make_pool(workers=1).wrap(dspy.Predict("question -> answer"))
    provider = dspy.streaming.StatusMessageProvider()
    provider.lock = threading.Lock()  # not sent, so it does no harm
    callbacks = [dspy.streaming.messages.StatusStreamingCallback(provider)]
    with dspy.context(lm=stub.lm(cache=False), send_stream=object(), callbacks=callbacks):
        assert wrapper(question=QUESTION).answer == f"echo: {QUESTION}"
