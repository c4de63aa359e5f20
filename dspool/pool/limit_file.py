"""The file in which a pool's workers share what LMs' providers allow; what is in it is theirs alone (limit_records.py).

Where there are memory files (Linux) it is one, and leaves nothing behind however its manager ends. Workers open it by
the manager's entry in /proc: so it comes to them with the handshake, however they were started. Elsewhere it lies in a
private folder, which a manager that is killed leaves behind, with a few KiB in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile


class LimitFile:
    """One pool's file.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._fd: int | None = None
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("dspool-limits")
            self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
            if _others_may_open(self.path, self._fd):
                return
            os.close(self._fd)
            self._fd = None
        self._folder = tempfile.mkdtemp(prefix="dspool-")
        self.path = os.path.join(self._folder, "limits")
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))

    def close(self) -> None:
        """Give it back; workers that have it open keep it. Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _others_may_open(path: str, fd: int) -> bool:
    """Whether other processes of this user find the file there.

    Not without /proc, nor where that is another container's, and not where this process may not be looked into (it has
    capabilities of its own, or has said so): then its entry belongs to root.
    """
    with contextlib.suppress(OSError):
        found = os.path.samestat(os.stat(path), os.fstat(fd))
        return found and os.stat(os.path.dirname(path)).st_uid == os.geteuid()
    return False
