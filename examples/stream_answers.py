"""Streaming: an answer while it is written, a generator's items, and leaving early, which closes the LM's request."""

import asyncio
from collections.abc import Iterator

import dspy

import dspool
from dspool.testing.stub_lm import StubLM


def countdown(start: int) -> Iterator[int]:
    """A generator is a program too: its items are the pieces."""
    yield from range(start, 0, -1)


def show(pool: dspool.Pool, question: str) -> None:
    """Everything that a stream may give."""
    for piece in pool.stream(dspy.ChainOfThought("question -> answer"), {"question": question}):
        match piece:
            case dspy.streaming.StreamResponse():
                print(piece.chunk, end="", flush=True)
            case dspy.streaming.StatusMessage():
                print(f"[{piece.message}]")
            case dspy.Prediction():
                print("\n", piece.answer)  # last, as pool.run gives it


def threads(stub: StubLM) -> None:
    """Three streams of a pool, the last one left early."""
    program = dspy.ChainOfThought("question -> answer")
    with dspool.Pool(workers=1, lm=stub.settings()) as pool:
        for piece in pool.stream(program, {"question": "why is the sky blue?"}, fields="answer"):
            if isinstance(piece, dspy.streaming.StreamResponse):
                print(piece.chunk, end="|")
            else:
                print("\nwhole:", piece.answer)
        show(pool, "what do you say?")
        print("items:", list(pool.stream(countdown, {"start": 3})))
        with pool.stream(program, {"question": "what is enough?"}) as pieces:
            print("first:", next(pieces).chunk)
        left = stub.wait_idle()
        print("requests closed early:", left.aborted, "workers replaced:", pool.stats().replaced)


async def tasks(stub: StubLM) -> None:
    """The same in an event loop; a deadline covers the whole stream."""
    async with dspool.AsyncPool(workers=1, lm=stub.settings()) as pool:
        pieces = [piece async for piece in pool.stream("question -> answer", {"question": "and so?"}, timeout_s=30)]
        print("last:", pieces[-1].answer)


with StubLM(piece_interval_s=0.01) as stub:
    threads(stub)
    asyncio.run(tasks(stub))
