"""The command line: `dspool run`, `dspool map`, `dspool doctor`, `dspool demo`.

Each command is a thin layer over `dspool.Pool` and uses nothing that an application could not use. Rules:

* answers go to stdout (or to the file that was named), everything else to stderr;
* an error is one paragraph on stderr and an exit code (exits.py), never a traceback, unless --traceback asks for it;
* what is heavy (the pool, DSPy, rich) is imported inside the commands, so that `dspool --help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line without the program's name; None: sys.argv's.

    Returns:
        The exit code; see `dspool.cli.exits`.
    """
    try:
        from dspool.cli.commands import run_command

        return run_command(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # before a command was running
        return 130
