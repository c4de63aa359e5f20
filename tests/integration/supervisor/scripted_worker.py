"""Entry of a scripted worker: arms its lifeline, as a real one does, before it imports anything slow."""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import os
import select
import signal


def arm(lifeline: int, dump: int) -> None:
    """The lifeline and the dump signal, as a real worker does it."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):
        os._exit(0)
    from dspool.protocol.limits import DUMP_SIGNAL

    faulthandler.enable(file=dump, all_threads=True)
    faulthandler.register(DUMP_SIGNAL, file=dump, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--control", "--lifeline", "--dump"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--slots", type=lambda text: [int(fd) for fd in text.split(",")], required=True)
    options = parser.parse_args()
    words = set(os.environ.get("SCRIPT", "").split())
    if "unarmed" in words:  # the manager has armed it too
        fcntl.fcntl(options.lifeline, fcntl.F_SETFL, fcntl.fcntl(options.lifeline, fcntl.F_GETFL) & ~os.O_ASYNC)
    else:
        arm(options.lifeline, options.dump)
    if "ignore_sigterm" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for fd in (options.control, options.lifeline, options.dump, *options.slots):
        os.set_inheritable(fd, False)
    from tests.integration.supervisor.script import run

    run(words, options.control, options.slots[0])


main()
