"""Entry of a spawned worker: python -P -m dspool.worker --control FD --lifeline FD --dump FD --slots FD,FD,...

The numbers are inherited file descriptors, all of them from 3 on; everything else comes with the handshake, so that no
secret is ever in the arguments. Exit code 2: started with something else.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

USAGE = "usage: python -P -m dspool.worker --control FD --lifeline FD [--dump FD] --slots FD,FD,..."


def parse(arguments: list[str]) -> dict[str, list[int]]:
    """The file descriptors by option.

    Raises:
        ValueError: an option is unknown or missing, or its value is no file descriptor that frames may go through.
    """
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    fds = {name: [int(fd) for fd in text.split(",")] for name, text in options.items()}
    if fds.keys() | {"--dump"} != {"--control", "--lifeline", "--dump", "--slots"}:
        raise ValueError("an option is unknown or missing")
    if any(len(numbers) > 1 for name, numbers in fds.items() if name != "--slots"):
        raise ValueError("only --slots takes several")
    for fd in (fd for numbers in fds.values() for fd in numbers):
        if fd < 3:
            raise ValueError(f"{fd} is not from 3 on")
        os.fstat(fd)
    return fds


def main() -> NoReturn:
    """Become a worker."""
    try:
        fds = parse(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"{USAGE}\nnot {' '.join(sys.argv[1:])}: {error}", file=sys.stderr)
        sys.exit(2)
    from dspool.worker.lifeline import begin_child

    begin_child(fds["--lifeline"][0], fds["--dump"][0] if "--dump" in fds else None)
    # From here on nothing can keep this process alive without its manager.
    import socket

    from dspool.protocol.importing import this_is_a_worker
    from dspool.worker.boot import Worker
    from dspool.worker.stdio import own_stdio

    this_is_a_worker()
    own_stdio()
    for fd in (fd for numbers in fds.values() for fd in numbers):
        os.set_inheritable(fd, False)
    control = socket.socket(fileno=fds["--control"][0])
    Worker(control, [socket.socket(fileno=fd) for fd in fds["--slots"]]).run()


if __name__ == "__main__":
    main()
