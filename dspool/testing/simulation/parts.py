"""What a simulated world is made of: processes with their pipes, callers, and what a caller may wait for.

Rules:
    1. Records only: what happens to them stands in the world's layers.
    2. Nothing here knows the core. A lease is a number.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

from dspool.types import ExitReason


class SimulationFailure(AssertionError):
    """A law was broken, or something never ended."""


class GaveUp(Exception):
    """Thrown into a caller: it is cancelled where it waits."""


class Wait(NamedTuple):
    """What a caller waits for: "grant", "read" or "sleep"; and until when."""

    kind: str
    until: float


Steps = Generator[Wait, None, str]
"""A caller on its way. It returns how it ended."""


class Pipe:
    """A slot's pipe: what was written to the worker and not answered, and what was answered and not read."""

    __slots__ = ("answer", "frame", "left_by", "lies", "reader")

    def __init__(self) -> None:
        self.frame: int | None = None
        self.answer: int | None = None
        self.lies = False
        """What it answered is no answer: a broken frame, or one with a foreign id."""
        self.left_by: int | None = None
        self.reader: Caller | None = None


class Template:
    """A warm process that others are forked from."""

    __slots__ = ("alive",)

    def __init__(self) -> None:
        self.alive = True


class Kind:
    """A group's template, the one that is being started, and the workers that wait for it."""

    __slots__ = ("generation", "starting", "template", "waiting")

    def __init__(self) -> None:
        self.template: Template | None = None
        self.generation = 0
        self.starting: Template | None = None
        self.waiting: list[Process] = []


class Process:
    """A simulated worker process."""

    __slots__ = (
        "dead", "group", "hung", "pipes", "ready", "reason", "reported", "template", "wanted", "worker_id",
    )  # fmt: skip

    def __init__(self, worker_id: int, group: str, slots: int) -> None:
        self.worker_id = worker_id
        self.group = group
        self.pipes = [Pipe() for _ in range(slots)]
        self.ready = self.dead = self.hung = self.reported = False
        self.reason: ExitReason = "exited"
        self.template: Template | None = None
        """What it was forked from; None while it waits for that."""
        self.wanted = 0
        """The generation that its template must be of, at least."""


class Caller:
    """One call, or one lease with several runs: what it asks for, and how it went."""

    __slots__ = (
        "closed", "deadline", "ended", "executions", "idempotent", "lease_id", "name", "runs",
        "steps", "token", "waiting", "wants", "written",
    )  # fmt: skip

    def __init__(self, name: int, wants: dict[str, Any], deadline: float, *, idempotent: bool, runs: int) -> None:
        self.name = name
        self.wants = wants
        self.deadline = deadline
        self.idempotent = idempotent
        self.runs = runs
        """0: one call with its program. More: a lease without a program, and so many runs in it."""
        self.lease_id = 0
        self.written = self.closed = False
        self.ended: str | None = None
        self.executions = 0
        self.steps: Steps
        self.token = 0
        self.waiting: Wait | None = None

    def __str__(self) -> str:
        kind = f"lease with {self.runs} runs" if self.runs else "call"
        return f"{kind} {self.name} (lease {self.lease_id}, written={self.written}, waits for {self.waiting})"
