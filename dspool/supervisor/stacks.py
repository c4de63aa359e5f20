"""Stack dumps as people want to read them. Pure.

faulthandler writes the threads youngest first. So the thread that was interrupted, which is the one that ran the
program or crashed, comes last, behind the worker's own; read from the top, the worker seems to hang in its control
pipe.
"""

from __future__ import annotations

import re

_THREAD = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+.*:(?:\n .*)*", re.MULTILINE)


def current_first(dump: str) -> str:
    """The dump with the thread that was interrupted before the others; as it is where it isn't one dump of that form.

    What stands before, between and behind the threads (why it was written, the extension modules) stays there.
    """
    threads = list(_THREAD.finditer(dump))
    current = [thread for thread in threads if thread[1] == "Current thread"]
    if len(current) != 1:
        return dump
    in_order = iter(current + [thread for thread in threads if thread is not current[0]])
    return _THREAD.sub(lambda _: next(in_order)[0], dump)
