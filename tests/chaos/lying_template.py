"""A process in a template's place that lies: python -m tests.chaos.lying_template --seed N --control FD ..."""

from __future__ import annotations

import array
import os
import random
import signal
import socket
import sys
from typing import NoReturn

import msgspec

from dspool.protocol.records import (
    Exited,
    Fork,
    Forked,
    Prepare,
    Prepared,
    Record,
    Refused,
    receive_record,
    send_record,
)
from dspool.worker.lifeline import begin_child


def main() -> NoReturn:
    """Say that it is ready, and answer each fork with a lie until it is killed for it."""
    options = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True))
    begin_child(options["--lifeline"], options["--dump"])
    rng, sock = random.Random(options["--seed"]), socket.socket(fileno=options["--control"])
    while (received := receive_record(sock)) is not None:
        record, fds = received
        for fd in fds:
            os.close(fd)
        if isinstance(record, Prepare):
            send_record(sock, Prepared())
        elif isinstance(record, Fork):
            answer(sock, record.fork_id, rng)
    os._exit(0)


def answer(sock: socket.socket, fork_id: int, rng: random.Random) -> None:
    """One lie."""
    kind = rng.randrange(6)
    if kind == 0:
        sock.send(rng.choice([b"\xc1", b"\x91" * 3000, rng.randbytes(60) + b"\xc1"]))
    elif kind == 1:
        wrong: list[Record] = [Prepare([], [], dspy=False), Fork(fork_id)]
        send_record(sock, rng.choice(wrong))
    elif kind == 2:
        send_record(sock, Forked(fork_id, os.getpid()))  # without its pidfd
    elif kind == 3:
        foreign: list[Record] = [Forked(fork_id + 1000, 1), Refused(fork_id + 1000, errno=1)]
        send_record(sock, rng.choice(foreign), [0])
    elif kind == 4:
        send_record(sock, Exited(fork_id, 0, None, 0), [0, 0])
        sock.send(msgspec.msgpack.encode({"type": "Forked"}))
    else:
        rights = array.array("i", [0] * rng.randrange(2, 9))
        sock.sendmsg([b"\xc1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    signal.pause()


if __name__ == "__main__":
    main()
