"""The names that programs are registered under, each with what stands for it.

A name always stands for exactly one program; one program may have several names. Not safe for threads: the store has
the lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from dspool.errors import PoolError, ProgramExists
from dspool.pool import defined
from dspool.pool.program import Program
from dspool.protocol.definitions import shown_signature
from dspool.protocol.messages import DefinedProgram, LMSpec, PickledProgram, SignatureProgram

MAX_NAMES = 10_000


class Candidate(NamedTuple):
    """What may be registered: looked at and ready to be sent, but under no name yet."""

    name: str
    definition: Any
    program: Program
    allow_pickle: bool

    def __repr__(self) -> str:  # a definition may hold its LM's key
        return f"<Candidate {self.name!r} ({self.program.program_id})>"


class Registered(NamedTuple):
    """A program under its name, since when."""

    candidate: Candidate
    created_at: datetime

    def info(self) -> dict[str, Any]:
        """What is known of it, as plain data; see ProgramStore.info()."""
        program, signature, kind = self.candidate.program, None, ""
        lms: Iterable[LMSpec | None] = ()
        match program.spec:
            case SignatureProgram(signature=text):
                signature = text
            case DefinedProgram(definition=definition, lm=lm):
                signature, lms = shown_signature(definition.get("signature")), [lm]
                kind = defined.kind_of(program.spec)
            case PickledProgram(lms=by_predictor):
                lms = by_predictor.values()
        runs = program.runs
        assert runs is not None
        ago = None if runs.last is None else timedelta(seconds=time.monotonic() - runs.last)
        return {
            "program_id": self.candidate.name,
            "id": program.program_id,
            "kind": kind or str(type(program.spec).__struct_config__.tag),
            "label": program.label,
            "signature": signature,
            "lm": ", ".join(sorted({lm.model for lm in lms if lm is not None})) or None,
            "bytes": program.size_bytes,
            "created_at": self.created_at.isoformat(),
            "execution_count": runs.count,
            "last_executed": None if ago is None else (datetime.now(UTC) - ago).isoformat(),
        }


class Names:
    """The registered names of one pool.

    Args:
        pool: its name, for errors.
    """

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._registered: dict[str, Registered] = {}
        self._counts: dict[str, int] = {}
        """Program id -> how many names stand for it."""

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._registered))

    def get(self, name: str) -> Registered | None:
        """What has that name; without a lock, too."""
        return self._registered.get(name)

    def check(self, name: str, *, replace: bool) -> None:
        """Raise where the name can't be given.

        Raises:
            ProgramExists: it is taken, and may not be replaced.
            PoolError: there are too many.
        """
        if name in self._registered:
            if not replace:
                raise ProgramExists(
                    f"pool {self._pool!r} has a program named {name!r} already; pass replace=True to put another in "
                    f"its place"
                )
        elif len(self._registered) >= MAX_NAMES:
            raise PoolError(
                f"pool {self._pool!r} has {MAX_NAMES:,} registered programs; delete some before {name!r:.80}"
            )

    def put(self, registered: Registered) -> str | None:
        """Give a name to a program, from now on. The id of the one that had it, if that has no name any more."""
        name, program_id = registered.candidate.name, registered.candidate.program.program_id
        before = self._registered.get(name)
        self._counts[program_id] = self._counts.get(program_id, 0) + 1
        self._registered[name] = registered
        return None if before is None else self._uncount(before)

    def pop(self, name: str) -> tuple[Program, str | None] | None:
        """Take a name away: its program, and that one's id if it has no other; None where there is no such name."""
        registered = self._registered.pop(name, None)
        return None if registered is None else (registered.candidate.program, self._uncount(registered))

    def has_program(self, program_id: str) -> bool:
        """Whether any name stands for it."""
        return program_id in self._counts

    def _uncount(self, registered: Registered) -> str | None:
        program_id = registered.candidate.program.program_id
        self._counts[program_id] -= 1
        if self._counts[program_id]:
            return None
        del self._counts[program_id]
        return program_id
