"""The file that a log of frames is written to, in the manager and in the bridge.

Rules:
    1. It is the user's alone (0600), and only appended to; each line is one write, so several may share it.
    2. Once a line can't be written, no other is: who wrote it is told why.
"""

from __future__ import annotations

import os
import stat


class LineFile:
    """A file of lines. Not safe for threads.

    Args:
        path: where; made if it is missing.

    Raises:
        OSError: it can't be written, or is no regular file.
    """

    def __init__(self, path: str) -> None:
        # Non-blocking, so that a FIFO nobody reads is an error and not a wait; to a regular file it means nothing.
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(0, "it is no regular file")
            os.fchmod(self._fd, 0o600)  # one that was there may have been open to others
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether nothing is written any more."""
        return self._fd == -1

    def write(self, line: bytes) -> str:
        """Append a line, given without its end; nothing happens after close().

        Returns:
            Why it was not written, and the file is closed now; empty where all is well.
        """
        if self.closed:  # its number may be another file's by now
            return ""
        try:
            problem = "" if os.write(self._fd, line + b"\n") > len(line) else "a line was written in part"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            self.close()
        return problem

    def close(self) -> None:
        """Write no more. Idempotent."""
        if not self.closed:
            fd, self._fd = self._fd, -1
            os.close(fd)
