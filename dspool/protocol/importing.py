"""Whether a worker is importing a module of the application, and which.

A module that opens a pool as it is imported would open one in each worker that imports it, for a program of its or for
preload=; the workers of these would import it again, and so on, a pool in a pool without end. So pools refuse to be
opened there, as multiprocessing's children do.
"""

from __future__ import annotations

import sys

_IMPORT_SYSTEM = "<frozen importlib._bootstrap"
_in_worker = False


def this_is_a_worker() -> None:
    """Said once, by a worker or the template of workers."""
    global _in_worker
    _in_worker = True


def module_being_imported() -> str | None:
    """The innermost module whose import leads here, in a worker; None in any other process."""
    frame = sys._getframe() if _in_worker else None
    name = None
    while frame is not None:
        if name is None and frame.f_code.co_name == "<module>":
            name = frame.f_globals.get("__name__")
        elif name is not None and frame.f_code.co_filename.startswith(_IMPORT_SYSTEM):
            return str(name)
        frame = frame.f_back
    return None
