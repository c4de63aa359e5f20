"""Progress of a map on stderr: a bar where rich is installed and stderr is a terminal, else one line at the end."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Counts rows and shows them.

    Args:
        total: how many there will be; None: not known.
        label: what is worked on.
        shown: False: show nothing.
    """

    def __init__(self, total: int | None, label: str, *, shown: bool) -> None:
        self._total = total
        self._label = label
        self._shown = shown
        self._rows = 0
        self._failed = 0
        self._began = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._shown and sys.stderr.isatty():
            self._bar = _rich_bar()
            if self._bar is not None:
                self._bar.start()
                self._task = self._bar.add_task(self._label, total=self._total, failed="")
        return self

    def row_done(self, *, failed: bool) -> None:
        """A row has ended."""
        self._rows += 1
        self._failed += failed
        if self._bar is not None:
            self._bar.update(self._task, advance=1, failed=f"{self._failed} failed" if self._failed else "")

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown:
            took_s = time.monotonic() - self._began
            of = f" of {self._total}" if self._total is not None and self._rows != self._total else ""
            failed = f", {self._failed} failed" if self._failed else ""
            rate = f" ({self._rows / took_s:.1f}/s)" if took_s > 0 else ""
            print(f"dspool: {self._label}: {self._rows}{of} rows in {took_s:.1f} s{rate}{failed}", file=sys.stderr)


def _rich_bar() -> Any:
    """A bar of rich's, or None where rich isn't installed."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress as Bar,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        return None
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # into a file it must go on going where it goes
    )
