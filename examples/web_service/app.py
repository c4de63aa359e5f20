"""A web service over a pool: answers as JSON, answers while they are written, health.

OPENAI_API_KEY=... uvicorn --factory app:create_app --app-dir examples/web_service --timeout-graceful-shutdown 10
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import dspy
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

import dspool

log = logging.getLogger("my_app")


class Question(BaseModel):
    """What a client sends."""

    question: str


def create_app(**options: Any) -> FastAPI:
    """The service. Options are the pool's."""
    options = {"workers": 2, "slots": 16, "execution": "async", "lm": "openai/gpt-4o-mini", "timeout_s": 60, **options}
    program = dspy.ChainOfThought("question -> answer")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with dspool.AsyncPool(name="web", warm=[program], **options) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(dspool.DspoolError, refuse)

    @app.post("/answer")
    async def answer(asked: Question, request: Request) -> dict[str, str]:
        pool = request.app.state.pool
        found = await while_connected(request, pool.run(program, {"question": asked.question}))
        return {"reasoning": found.reasoning, "answer": found.answer}

    @app.post("/stream")
    async def stream(asked: Question, request: Request) -> EventSourceResponse:
        pool = request.app.state.pool
        pieces = pool.stream(program, {"question": asked.question}, fields="answer", status=False)
        first = await while_connected(request, anext(pieces))  # before the response, which then has the right status
        return EventSourceResponse(events(first, pieces), shutdown_grace_period=10)

    @app.get("/healthz")
    async def healthz(request: Request) -> JSONResponse:
        health = await request.app.state.pool.health()
        said = {"status": health.status, "ready": health.ready, "target": health.target, "reason": health.reason}
        return JSONResponse(said, status_code=503 if health.status == "unhealthy" else 200)

    return app


async def while_connected(request: Request, call: Awaitable[Any]) -> Any:
    """Await a call, and cancel it when the client goes away. FastAPI itself would let it run to its end."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(call), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise HTTPException(499)
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def events(first: Any, pieces: Any) -> AsyncIterator[dict[str, str]]:
    """Server-sent events: `piece`s of the text, then the whole `answer`, or an `error`."""
    async with pieces:  # left early, the LM's request is closed in the worker
        yield event(first)
        try:
            async for piece in pieces:
                yield event(piece)
        except dspool.DspoolError as error:
            log.warning("%s", error)
            yield {"event": "error", "data": json.dumps(type(error).__name__)}


def event(piece: Any) -> dict[str, str]:
    """One of them."""
    if isinstance(piece, dspy.Prediction):
        return {"event": "answer", "data": json.dumps(piece.answer)}
    return {"event": "piece", "data": json.dumps(piece.chunk)}


def status_of(error: Exception) -> tuple[int, float | None]:
    """The HTTP status for an error, and after how many seconds to try again."""
    match error:
        case dspool.ProgramError(code="lm_error", retryable=True):  # the provider is busy, or limits us
            return 503, error.retry_after_s or 1
        case dspool.ProgramError(code="lm_error"):
            return 502, None
        case dspool.ProgramError(code="invalid_args") | dspool.EncodeError():
            return 422, None
        case dspool.CallTimeout():
            return 504, None
        case dspool.WorkerLost():
            return 502, None
        case dspool.ProgramQuarantined():
            return 503, error.retry_after_s
        case dspool.PoolError():  # saturated, no worker in time, closing, broken
            return 503, 1 if error.retryable else None
    return 500, None


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Clients get the kind of error; the text, with workers and tracebacks, is for the log."""
    log.warning("%s: %s", request.url.path, error)
    status, retry_after_s = status_of(error)
    headers = {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}
    said = {"error": type(error).__name__, "retryable": getattr(error, "retryable", False)}
    return JSONResponse(said, status_code=status, headers=headers)
