"""Program: one thing that a pool can be asked to run, and what a worker is sent of it."""

from __future__ import annotations

import threading
import time
from typing import Any

from dspool.protocol.messages import ProgramSpec


class Program:
    """One distinct definition.

    Attributes:
        program_id: the same for equal definitions, e.g. "ChainOfThought-3f2a9c..."; "callable:app.main.shout#3".
        label: what logs and errors call it; the registered name where it was asked for by name.
        spec: what a worker is sent.
        is_dspy: whether it gives a dspy.Prediction; None where only the worker, which imports it, can know.
        fields: output field -> annotation, as far as known; None until it is first needed.
        size_bytes: of the message that ships it to a worker; known once it is kept.
        unproven: only a worker can say whether it can be loaded.
        runs: how often a registered name was run, and when last; None for any other.
    """

    __slots__ = ("fields", "is_dspy", "label", "program_id", "runs", "size_bytes", "spec", "touched", "unproven")

    def __init__(
        self,
        program_id: str,
        label: str,
        spec: ProgramSpec,
        is_dspy: bool | None,
        fields: dict[str, Any] | None = None,
        *,
        unproven: bool = False,
    ) -> None:
        self.program_id = program_id
        self.label = label
        self.spec = spec
        self.is_dspy = is_dspy
        self.fields = fields
        self.size_bytes = 0
        self.unproven = unproven
        self.runs: Runs | None = None
        self.touched = True
        """Used since it was last considered for eviction."""

    def __repr__(self) -> str:
        return f"<Program {self.label} ({self.program_id})>"

    def named(self, name: str) -> Program:
        """The same program under a registered name, with a count of its own."""
        named = Program(self.program_id, name, self.spec, self.is_dspy, self.fields, unproven=self.unproven)
        named.size_bytes, named.runs = self.size_bytes, Runs()
        return named


class Runs:
    """How often a program was run, and when last. Any thread may count."""

    __slots__ = ("_lock", "count", "last")

    def __init__(self) -> None:
        self.count = 0
        self.last: float | None = None
        self._lock = threading.Lock()

    def add(self) -> None:
        """A call ran, and was answered."""
        with self._lock:
            self.count += 1
            self.last = time.monotonic()
