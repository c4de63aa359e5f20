"""The control socket of templates, from both ends: records that can't be read, and templates that lie."""

from __future__ import annotations

import array
import os
import random
import socket

import msgspec

from dspool.errors import MalformedFrame, WorkerStartError
from dspool.protocol.messages import ErrorInfo
from dspool.protocol.records import (
    MAX_RECORD_BYTES,
    DescriptorsLost,
    Exited,
    Fork,
    Forked,
    Importing,
    Prepare,
    Prepared,
    Refused,
    Unprepared,
    receive_record,
)
from tests.chaos.fuzzing.hatchery import hatchery
from tests.chaos.tally import Tally
from tests.mutations import mutated

RECORDS = [
    Prepare(["/a", "/b"], ["module"], dspy=False),
    Fork(7),
    Importing("module"),
    Prepared("a rule"),
    Unprepared(ErrorInfo("boot_error", "no", "builtins.ImportError", traceback="T" * 500)),
    Forked(7, 4711),
    Refused(7, errno=24),
    Exited(7, None, 9, 12345),
]


def fuzz_records(count: int, rng: random.Random, tally: Tally) -> None:
    """Send so many records through a real socket, some after accidents, some with descriptors that nobody expects."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spare = os.open(os.devnull, os.O_RDONLY)
    good = [msgspec.msgpack.encode(record) for record in RECORDS]
    before = len(os.listdir("/proc/self/fd"))
    try:
        for _ in range(count):
            data = rng.choice(good)
            data = mutated(data, rng)[: MAX_RECORD_BYTES - 1] if rng.random() < 0.8 else data
            fds = array.array("i", [spare] * rng.choice([0, 0, 0, 1, 2]))
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
            theirs.sendmsg([data or b"\xc1"], rights)
            try:
                received = receive_record(ours)
                for fd in received[1] if received is not None else ():
                    os.close(fd)
            except (MalformedFrame, DescriptorsLost):
                continue
            except Exception as error:
                tally.complain("crashes", f"records: {error!r} from {data[:200]!r}")
        if (more := len(os.listdir("/proc/self/fd")) - before) != 0:
            tally.complain("wrong_outcomes", f"records: {more} descriptors were kept")
    finally:
        os.close(spare)
        ours.close()
        theirs.close()
    tally.done["records_to_a_socket"] += count


def fuzz_templates(count: int, rng: random.Random, tally: Tally) -> None:
    """Send so many bad records to real templates: each ends of it, and the next worker has another one."""
    with hatchery() as hatched:
        for _ in range(count):
            with hatched.worker():
                good = msgspec.msgpack.encode(rng.choice(RECORDS[2:]))
                data = rng.choice([b"\xc1", b"\xff" * 100, rng.randbytes(50), good, b"\x91" * 5000])
                if not hatched.disturb(data):
                    tally.complain("hangs", f"a template lives on after {data[:100]!r}")
            tally.done["bad_records_to_a_template"] += 1


def believe_templates(count: int, rng: random.Random, tally: Tally) -> None:
    """Have so many workers forked by templates that lie: each launch fails with a typed error, and nothing is left."""
    for _ in range(count):
        seed = str(rng.getrandbits(32))
        with hatchery("-P", "-m", "tests.chaos.lying_template", "--seed", seed) as hatched:
            try:
                hatched.launch()
                tally.complain("wrong_outcomes", f"a lying template was believed, seed {seed}")
            except WorkerStartError:
                tally.done["lying_templates"] += 1
            except Exception as error:
                tally.complain("crashes", f"a lying template, seed {seed}: {error!r}")
