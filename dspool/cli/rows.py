"""Rows in: a file, or stdin, with one JSON object a line.

A file is read twice, once to see that every row is good before anything is run, once to run them; it is never held in
memory. Stdin is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dspool.cli.inputs import parse_object


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its number from 0, blank lines not counted; what identifies it together with the program; its inputs."""

    index: int
    digest: str
    inputs: dict[str, Any]


class Rows:
    """The rows of a file or of stdin, any number of times.

    Args:
        source: a path, or "-" for stdin.
        program: the program that they are for; it is part of their digests.
    """

    def __init__(self, source: str, program: str) -> None:
        self.name = "stdin" if source == "-" else source
        self._program = program
        self._path = None if source == "-" else Path(source)
        self._lines = sys.stdin.buffer.readlines() if source == "-" else []

    def __iter__(self) -> Iterator[Row]:
        """Every row in turn.

        Raises:
            UsageError: a line is not a JSON object, or the file can't be read; it names file and line.
        """
        index = 0
        with contextlib.closing(self._numbered()) as lines:
            for number, line in lines:
                if not line.strip():
                    continue
                inputs = parse_object(line, f"{self.name}, line {number}")
                yield Row(index, digest(self._program, inputs), inputs)
                index += 1

    def _numbered(self) -> Generator[tuple[int, bytes]]:
        if self._path is None:
            yield from enumerate(self._lines, 1)
            return
        try:
            with self._path.open("rb") as file:
                yield from enumerate(file, 1)
        except OSError as error:
            raise click.UsageError(f"{self.name}: {error.strerror or error}") from None


def digest(program: str, inputs: dict[str, Any]) -> str:
    """16 hex digits that a row and its program have wherever the file lies and however it is spaced."""
    canonical = json.dumps([program, inputs], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
