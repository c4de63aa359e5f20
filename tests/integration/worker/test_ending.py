"""How a worker's process exits, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration
PATIENCE_S = 10.0
LEAVING = """
import resource, sys, threading
from dspool.worker.ending import leave
threading.Thread(target=threading.Event().wait).start()
{spoil}
leave(5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["", "resource.setrlimit(resource.RLIMIT_AS, (1, 1))", "sys.excepthook = None"])
def test_a_program_that_leaves_a_thread_running_does_not_hold_the_exit_up(spoil: str) -> None:
    """Even where it has left no memory for another thread, or nothing that `threading` could use."""
    leaving = [sys.executable, "-c", LEAVING.format(spoil=spoil)]
    assert subprocess.run(leaving, timeout=PATIENCE_S, check=False).returncode == 5
