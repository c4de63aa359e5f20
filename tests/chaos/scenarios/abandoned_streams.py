"""Streams that are left at random points: no slot is lost, no request stays open at the LM, no worker is replaced.

Threads and tasks stream from a stub LM over HTTP, two kinds of programs: one whose `aforward` is its own, one that has
a `forward` alone and streams from a thread. Each stream is left after a random number of pieces (closed, dropped), at a
deadline of a random moment, or by a task's cancellation at one; one in eight is read to its end. What is read has to be
the beginning of its own question's answer. In the end every slot has to run a call, and the stub has to be idle.

A thread has a pool of its own with one worker, so that it can see when its slot comes back.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import anyio

import dspool
from dspool.testing.stub_lm import StubLM
from tests.chaos.crowd import Crowd
from tests.chaos.finding import Finding, Plan
from tests.chaos.premises import Premises

THREADS, TASKS = 2, 4
PATIENCE_S = 60.0
PIECE_S = 0.002
WORDS = 20
BACK_GOAL_MS = 1000.0


def _programs() -> list[Any]:
    import dspy

    class OnThread(dspy.Module):
        def __init__(self) -> None:
            self.qa = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    return [dspy.Predict("question -> answer"), OnThread()]


class _Books:
    """What was done and seen, of all callers."""

    def __init__(self, plan: Plan, streams: int) -> None:
        self.streams = streams
        self.done: Counter[str] = Counter()
        self.lost: Counter[str] = Counter({"wrong_text": 0, "errors": 0, "slots": 0, "workers": 0, "callers_stuck": 0})
        self.back_ms: list[float] = []
        self._plan = plan
        self._lock = threading.Lock()
        self._begun = 0

    def next(self) -> tuple[random.Random, dict[str, str]] | None:
        """The chances and the inputs of one more stream; None: there were enough."""
        with self._lock:
            if self._begun == self.streams:
                return None
            number = self._begun
            self._begun += 1
        self._plan.say(f"{number:,} of {self.streams:,} streams")
        words = " ".join(f"w{number}" for _ in range(WORDS))
        return random.Random(f"{self._plan.seed}-{number}"), {"question": words}

    def ended(self, how: str, question: str, pieces: Iterable[Any]) -> None:
        """A stream was left, or read to its end."""
        answer, text = f"echo: {question}", ""
        whole: str | None = None
        for piece in pieces:
            if hasattr(piece, "chunk"):
                text += piece.chunk
            else:
                whole = piece.answer
        right = answer.startswith(text) and (whole is None if how != "read" else whole == text == answer)
        with self._lock:
            self.done[how] += 1
            self.lost["wrong_text"] += not right

    def failed(self, how: str, error: dspool.DspoolError) -> None:
        """A stream ended with an error; the LM may give up just before the call's own deadline."""
        if how == "deadline" and isinstance(error, dspool.ProgramError) and error.code == "lm_error":
            return
        with self._lock:
            self.lost["errors"] += 1
        self._plan.say(f"an error that nobody made: {error!r}")

    def closed(self, pool_stats: dspool.PoolStats) -> None:
        """A pool at rest: all slots are there, in the workers of its beginning."""
        with self._lock:
            self.lost["slots"] += pool_stats.leased + pool_stats.workers - pool_stats.idle
            self.lost["workers"] += sum(pool_stats.exits.values())


def abandoned_streams(plan: Plan) -> Finding:
    """See the module's docstring."""
    streams = plan.pick(short=100, chaos=1_000, soak=10_000)
    books = _Books(plan, streams // 2)
    programs = _programs()
    with StubLM(piece_interval_s=PIECE_S, process=True) as stub, Premises() as premises:
        with Crowd(THREADS, partial(_thread, books, programs, stub)) as crowd:
            books.lost["callers_stuck"] += crowd.join(time.monotonic() + PATIENCE_S + streams)
        books.streams = streams
        anyio.run(_tasks, books, programs, stub)
        still = stub.wait(lambda stats: stats.in_flight == 0, timeout_s=PATIENCE_S)
        left = premises.left()
    back = sorted(books.back_ms)
    slowest = back[-1] if back else 0.0
    late = f"a slot came back after {slowest:.0f} ms; under a second is promised"
    return Finding(
        scenario="abandoned_streams",
        seed=plan.seed,
        done={**books.done, "requests": still.requests, "requests_closed_early": still.aborted},
        lost=books.lost,
        left={**left, "open_requests": still.in_flight, "open_streams": still.open_streams},
        measured={"slot_back_p50_ms": back[len(back) // 2] if back else 0.0, "slot_back_max_ms": slowest},
        missed=() if slowest < BACK_GOAL_MS else (late,),
    )


def _options(stub: StubLM) -> dict[str, Any]:
    return {"lm": stub.settings(), "cancel_grace_s": PATIENCE_S, "timeout_s": PATIENCE_S}


def _leave_at(rng: random.Random) -> tuple[str, int, float]:
    """How a stream is left, after how many pieces, and with which deadline."""
    how = rng.choice(["close", "drop", "close", "drop", "deadline", "deadline", "deadline", "read"])
    if how == "read":
        return how, 10 * WORDS, PATIENCE_S
    return how, rng.randrange(1, WORDS), rng.uniform(0.001, PIECE_S * WORDS) if how == "deadline" else PATIENCE_S


def _thread(books: _Books, programs: list[Any], stub: StubLM, number: int) -> None:
    with dspool.Pool(workers=1, **_options(stub)) as pool:
        while (chosen := books.next()) is not None:
            rng, inputs = chosen
            how, most, timeout_s = _leave_at(rng)
            pieces = []
            stream = pool.stream(rng.choice(programs), inputs, timeout_s=timeout_s)
            try:
                for piece in stream:
                    pieces.append(piece)
                    if how != "deadline" and len(pieces) == most:
                        break
            except (dspool.CallTimeout, dspool.QueueTimeout):
                pass
            except dspool.DspoolError as error:
                books.failed(how, error)
            else:
                how = "read" if how == "deadline" else how
            left_at = time.monotonic()
            if how == "close":
                stream.close()
            del stream
            while pool.stats().idle < 1 and time.monotonic() < left_at + PATIENCE_S:
                time.sleep(0.0005)
            books.back_ms.append(1000 * (time.monotonic() - left_at))
            books.ended(how, inputs["question"], pieces)
        books.closed(pool.stats())


async def _tasks(books: _Books, programs: list[Any], stub: StubLM) -> None:
    async with dspool.AsyncPool(workers=2, slots=2, **_options(stub)) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(_task, books, programs, pool)
        with anyio.move_on_after(PATIENCE_S):
            while (await pool.stats()).idle < 2:  # noqa: ASYNC110  no event tells of it
                await anyio.sleep(0.001)
        rows = [{"question": f"last {number}"} for number in range(4)]
        async for row in pool.map("question -> answer", rows, concurrency=4):
            books.lost["slots"] += not row.answer.startswith("echo: last")
        books.closed(await pool.stats())


async def _task(books: _Books, programs: list[Any], pool: dspool.AsyncPool) -> None:
    while (chosen := books.next()) is not None:
        rng, inputs = chosen
        how, most, timeout_s = _leave_at(rng)
        if how == "deadline" and rng.random() < 0.5:
            how = "cancel"
        limit_s = timeout_s if how == "cancel" else PATIENCE_S
        pieces: list[Any] = []
        stream = pool.stream(rng.choice(programs), inputs, timeout_s=PATIENCE_S if how == "cancel" else timeout_s)
        try:
            with anyio.move_on_after(limit_s) as scope:
                async for piece in stream:
                    pieces.append(piece)
                    if how in ("close", "drop") and len(pieces) == most:
                        break
        except (dspool.CallTimeout, dspool.QueueTimeout):
            pass
        except dspool.DspoolError as error:
            books.failed(how, error)
        else:
            how = "read" if how in ("deadline", "cancel") and not scope.cancelled_caught else how
        if how == "close":
            await stream.aclose()
        del stream
        books.ended(how, inputs["question"], pieces)
