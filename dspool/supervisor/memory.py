"""Workers' memory, seen from outside: resident size, its peak, and the kernel's count of out-of-memory kills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil


class RssGauge:
    """The resident memory of one process.

    Until the process is reaped its number can't be another's: a sample is good only if the process lived after it.

    Attributes:
        rss_bytes: when it was last sampled, or None.
        peak_bytes: the largest sample, or None.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._process: psutil.Process | None = None
        self.rss_bytes: int | None = None
        self.peak_bytes: int | None = None

    def sample(self) -> int | None:
        """Its resident memory now, in bytes; None where it is dead."""
        try:
            self._process = self._process or psutil.Process(self._pid)
            rss_bytes = int(self._process.memory_info().rss)
        except psutil.Error:
            return None
        if rss_bytes == 0:
            return None
        self.rss_bytes = rss_bytes
        self.peak_bytes = max(rss_bytes, self.peak_bytes or 0)
        return rss_bytes


class OomCounter:
    """How often the kernel's OOM killer struck in this process's cgroup, where workers live too.

    It can't be known whom it struck, so each new strike explains one SIGKILL that nobody here sent: a suspicion.

    Args:
        files: where the count may be read, for tests; the first that can be read is used.
    """

    def __init__(self, files: Sequence[Path] | None = None) -> None:
        candidates = _counter_files() if files is None else files
        self._file = next((path for path in candidates if _count(path) is not None), None)
        self._explained = self._read()

    def explains_a_kill(self) -> bool:
        """Whether there is a strike that explained nothing yet; it does now."""
        if self._read() <= self._explained:
            return False
        self._explained += 1
        return True

    def _read(self) -> int:
        return 0 if self._file is None else _count(self._file) or 0


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _counter_files() -> list[Path]:
    """Where the count may be: cgroup v2 and v1, by the full path and as seen from inside a container."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    paths: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            paths += [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            base = root / "memory"
            paths += [base / path.lstrip("/") / "memory.oom_control", base / "memory.oom_control"]
    return paths
