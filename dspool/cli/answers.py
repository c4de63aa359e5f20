"""Rows out: a file with one JSON object a line, which a later run can go on with.

    {"index": 0, "digest": "...", "outputs": {...}}
    {"index": 1, "digest": "...", "error": {"type": "WorkerLost", "message": "...", ...}}

Rules:
    1. A line is written whole, with its end, in one write: after a kill only the last line can be torn, and a torn line
       is one without an end. It is cut off when the file is resumed.
    2. The digest names row and program. A resumed file whose digests don't fit the rows is refused, never mixed.
    3. One process at a time: the file is locked while it is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from dspool.cli.rows import Row


class Answers:
    """The out file.

    Args:
        target: a path, or "-" for stdout.
    """

    def __init__(self, target: str) -> None:
        self.name = "stdout" if target == "-" else target
        self.done: dict[int, str] = {}
        """Index of each row whose answer or error is in the file already -> its digest."""
        self.failed: set[int] = set()
        """Those of them that are errors."""
        self._path = None if target == "-" else Path(target)
        self._file: BinaryIO | None = None
        self._overwrites = False
        """Whether the file still holds what is to be overwritten."""

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Open it, and with `resume` read what it holds and cut off a torn last line.

        Raises:
            UsageError: it exists and neither was asked for; it is another file than one of ours; another process writes
                it; it can't be opened.
        """
        if self._path is None:
            if resume:
                raise click.UsageError("--resume needs a file to go on with: -o FILE")
            self._file = sys.stdout.buffer
            return
        try:
            if not (resume or overwrite) and self._path.exists() and self._path.stat().st_size:
                raise click.UsageError(f"{self.name} exists: --resume goes on with it, --overwrite begins it anew")
            self._file = self._path.open("a+b")
            self._lock(self._file)
            self._overwrites = overwrite and bool(self._path.stat().st_size)
            if not overwrite:
                self._read(self._file)
        except OSError as error:
            self.close()
            raise click.UsageError(f"{self.name}: {error.strerror or error}") from None
        except click.UsageError:
            self.close()
            raise

    def check(self, rows: Iterable[Row]) -> int:
        """Compare what is there with the rows.

        Returns:
            How many rows there are.

        Raises:
            UsageError: the file was made from other rows or for another program.
        """
        count = 0
        for row in rows:
            count += 1
            if self.done.get(row.index, row.digest) != row.digest:
                raise click.UsageError(
                    f"{self.name} can't be resumed: its answer {row.index} was made from another row, or for another "
                    "program. Name another -o, or --overwrite it"
                )
        if self.done and max(self.done) >= count:
            raise click.UsageError(
                f"{self.name} can't be resumed: it has an answer {max(self.done)}, and there are {count} rows only"
            )
        return count

    def begin(self) -> None:
        """Throw away what is to be overwritten. Up to here the file is as it was. Idempotent."""
        if self._overwrites and self._file is not None:
            self._file.truncate(0)
            self._overwrites = False

    def forget_failed(self) -> None:
        """Take the errors out of the file, so that their rows are run again.

        The file without them is written beside it and put in its place: a kill leaves the one or the other.
        """
        if not self.failed or self._path is None or self._file is None:
            return
        beside = self._path.with_name(self._path.name + ".new")
        fresh = beside.open("w+b")
        self._lock(fresh)
        self._file.seek(0)
        fresh.writelines(line for line in self._file if json.loads(line)["index"] not in self.failed)
        fresh.flush()
        os.fsync(fresh.fileno())
        os.replace(beside, self._path)
        self._file.close()
        self._file = fresh
        for index in self.failed:
            del self.done[index]
        self.failed.clear()

    def write(self, row: Row, **answer: Any) -> None:
        """One line, for good: it is with the system when this returns."""
        assert self._file is not None
        line = {"index": row.index, "digest": row.digest, **answer}
        self._file.write(json.dumps(line, ensure_ascii=False, separators=(", ", ": ")).encode() + b"\n")
        self._file.flush()
        self.done[row.index] = row.digest
        if "error" in answer:
            self.failed.add(row.index)

    def state(self) -> str:
        """What is there and how to go on, for people."""
        if self._overwrites:
            return f"{self.name} is as it was"
        again = "; the same command with --resume goes on" if self._path is not None else ""
        return f"{len(self.done)} rows are in {self.name}{again}"

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._path is not None and self._file is not None:
            self._file.close()
        self._file = None

    def _lock(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.UsageError(f"{self.name} is being written by another process") from None

    def _read(self, file: BinaryIO) -> None:
        file.seek(0)
        whole = 0
        for number, line in enumerate(_whole_lines(file), 1):
            whole += len(line)
            try:
                record = json.loads(line)
                index, self.done[record["index"]] = record["index"], record["digest"]
                if not isinstance(index, int):
                    raise TypeError
            except (ValueError, TypeError, KeyError):
                raise click.UsageError(
                    f"{self.name}, line {number}, is not a line that `dspool map` has written; it is left as it is"
                ) from None
            (self.failed.add if "error" in record else self.failed.discard)(index)
        if whole < os.fstat(file.fileno()).st_size:
            file.truncate(whole)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))
