"""Real workers and templates that are sent nonsense: bad bodies are answered, broken frames end them."""

from __future__ import annotations

import random
import socket
import struct
import time

from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import HEADER_BYTES, encode_frame
from dspool.protocol.limits import EXIT_BROKEN_FRAME
from dspool.protocol.messages import CreateArgs, ImportedProgram, Request
from tests.chaos.fuzzing.hatchery import Hatchery, Wire, hatchery
from tests.chaos.lies import requests
from tests.chaos.tally import Tally
from tests.mutations import chunked, mutated

BATCH = 64
LAST_ID = 2**40


def fuzz_workers(bodies: int, broken: int, rng: random.Random, tally: Tally) -> None:
    """Send so many bad bodies to one worker's pipes, and break the pipes of others."""
    with hatchery() as hatched:
        with hatched.worker() as worker:
            create = CreateArgs("p", ImportedProgram("builtins:dict"))
            worker.slot.ask(Request(1, "create_program", {"program_id": create.program_id, "spec": create.spec}))
            _bodies(worker.slot, bodies * 3 // 4, "frames_to_a_workers_slot", rng, tally)
            _bodies(worker.control, bodies - bodies * 3 // 4, "frames_to_a_workers_control_pipe", rng, tally)
        for _ in range(broken):
            _break(hatched, rng, tally)


def _bodies(wire: Wire, count: int, what: str, rng: random.Random, tally: Tally) -> None:
    """Whole frames, most of them with bad bodies: each is answered once, with a code, and the worker lives."""
    good = [bytes(MSGPACK.encode(request)[HEADER_BYTES:]) for request in requests()]
    for first in range(0, count, BATCH):
        sent = [
            mutated(body, rng) if rng.random() < 0.9 else body
            for body in rng.choices(good, k=min(BATCH, count - first))
        ]
        last = Request(LAST_ID + first, "ping", {})
        data = b"".join(map(bytes, map(encode_frame, sent))) + bytes(MSGPACK.encode(last))
        try:
            answers = wire.exchange(data, last.id)
        except (EOFError, OSError) as error:
            what_failed = "hangs" if isinstance(error, TimeoutError) else "crashes"
            tally.complain(what_failed, f"{what}: {error!r} among {sent!r:.2000}")
            return
        if len(answers) != len(sent) + 1:
            tally.complain("unanswered", f"{what}: {len(answers) - 1} answers to {len(sent)} frames")
        if any(not each.success and (each.error_info is None or not each.error_info.code) for each in answers):
            tally.complain("wrong_outcomes", f"{what}: an error without a code")
        tally.done[what] += len(sent)


def _break(hatched: Hatchery, rng: random.Random, tally: Tally) -> None:
    """A frame that can't be read: the worker says so with its exit code."""
    good = bytes(MSGPACK.encode(rng.choice(requests())))
    kind = rng.choice(["over the cap", "text", "cut off"])
    with hatched.worker() as worker:
        wire = rng.choice([worker.slot, worker.control])
        data = {
            "over the cap": struct.pack(">I", rng.randrange(64 * 2**20 + 1, 2**32)) + rng.randbytes(rng.randrange(50)),
            "text": b"GET / HTTP/1.1\r\nHost: dspool\r\n\r\n",
            "cut off": good[: rng.randrange(1, len(good))],
        }[kind]
        began = time.monotonic()
        for chunk in chunked(data, rng):
            wire.sock.sendall(chunk)
        if kind == "cut off":
            wire.sock.shutdown(socket.SHUT_WR)
        status = worker.ended()
        tally.time("removed", (time.monotonic() - began) * 1000)
        tally.done["broken_frames_to_a_worker"] += 1
        if status is None:
            tally.complain("hangs", f"a worker lives on after a frame that is {kind}: {data!r:.200}")
        elif status.code != EXIT_BROKEN_FRAME:
            tally.complain("wrong_outcomes", f"a frame that is {kind} ends a worker with {status}: {data!r:.200}")
