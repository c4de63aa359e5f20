"""Numbers that both ends of a worker's pipes must agree on."""

from __future__ import annotations

import signal

DUMP_SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
"""Makes a worker write its threads' stacks to its dump file. A real-time signal, since programs use SIGUSR1 and 2."""

EXIT_BROKEN_FRAME = 76
"""Exit code of a worker whose pipe carried a broken frame (sysexits' EX_PROTOCOL)."""

EXIT_BOOT_ERROR = 77
"""Exit code of a worker that could not boot; the error itself went through the control pipe."""
