"""Workers' memory, seen from outside: resident size, its peak, its limit, and the kernel's out-of-memory kills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

LARGE_SHARE = 0.25
"""Of the memory there is: a worker that had so much may have been killed for it, whoever counts such kills."""


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
        limit_bytes: how much memory there is, for tests.
    """

    def __init__(self, files: Sequence[Path] | None = None, limit_bytes: int | None = None) -> None:
        candidates = cgroup_files("memory", "memory.events", "memory.oom_control") if files is None else files
        self._file = next((path for path in candidates if _count(path) is not None), None)
        self._limit_bytes = memory_limit() if limit_bytes is None else limit_bytes
        self._explained = self._read()

    def count(self) -> int | None:
        """How often it struck so far; None where that can't be read."""
        return None if self._file is None else _count(self._file)

    def suspected(self, peak_rss_bytes: int | None) -> bool:
        """Whether a SIGKILL that nobody here sent may be its doing: it struck, or else the worker was that large.

        The killer of the whole machine, or of a cgroup further up, counts its strikes where nobody here can read.
        """
        return self.explains_a_kill() or (peak_rss_bytes or 0) >= LARGE_SHARE * self._limit_bytes

    def explains_a_kill(self) -> bool:
        """Whether there is a strike that explained nothing yet; it does now."""
        if self._read() <= self._explained:
            return False
        self._explained += 1
        return True

    def _read(self) -> int:
        return self.count() or 0


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def memory_limit() -> int:
    """How much memory this process and its workers may have: the machine's, or what a cgroup allows."""
    limits = _numbers(cgroup_files("memory", "memory.max", "memory.limit_in_bytes"))
    return min([int(psutil.virtual_memory().total), *limits.values()])


def memory_left() -> int:
    """How much of it nobody has now."""
    left = cgroup_left("memory", ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    return min(int(psutil.virtual_memory().available), 2**63 if left is None else left)


def cgroup_left(controller: str, v2: tuple[str, str], v1: tuple[str, str]) -> int | None:
    """What is left of a limit of this cgroup, the tightest where there are several; None where there is no limit.

    Args:
        controller: the controller's name.
        v2: names of the files with the limit and with what is used.
        v1: the same in the older version.
    """
    limits, used = (_numbers(cgroup_files(controller, *names)) for names in zip(v2, v1, strict=True))
    return min((max(0, limit - used[folder]) for folder, limit in limits.items() if folder in used), default=None)


def _numbers(files: Sequence[Path]) -> dict[Path, int]:
    """Folder -> the number in its file, where it can be read and isn't "max", no limit."""
    found: dict[Path, int] = {}
    for path in files:
        try:
            found[path.parent] = int(path.read_text())
        except (OSError, ValueError):
            continue
    return found


def cgroup_files(controller: str, name: str, name_in_v1: str) -> list[Path]:
    """Where a figure of this cgroup may be: v2 and v1, by the full path and as seen from inside a container."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    paths: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            paths += [root / path.lstrip("/") / name, root / name]
        elif controller in controllers.split(","):
            base = root / controller
            paths += [base / path.lstrip("/") / name_in_v1, base / name_in_v1]
    return paths
