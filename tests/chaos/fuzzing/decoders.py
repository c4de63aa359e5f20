"""Both ends' decoders without a pipe, and the manager's end of a slot's pipe over a real one."""

from __future__ import annotations

import random
import socket
import struct

from dspool.errors import ProtocolError
from dspool.pool.slot_pipe import PipeEnded, SlotPipe
from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import HEADER_BYTES, FrameDecoder, encode_frame
from dspool.protocol.messages import CreateArgs, ImportedProgram, Request, Response
from dspool.protocol.requests import encode_request
from tests.chaos.lies import LIES, lie, requests, responses
from tests.chaos.tally import Tally
from tests.mutations import chunked, mutated

CAP = 100_000
BYTEWISE = 500
"""Shorter streams may come byte by byte."""
_FITS_A_PIPE = 100_000
ASKED = CreateArgs("p", ImportedProgram("builtins:dict"))


def fuzz_decoders(count: int, rng: random.Random, tally: Tally) -> None:
    """Feed so many frames, some after accidents, in any chunks, and decode what comes out as either end would."""
    messages: list[Request | Response] = [*requests(), *responses()]
    bodies = [bytes(MSGPACK.encode(message)[HEADER_BYTES:]) for message in messages]
    left = count
    while left > 0:
        frames = [bytes(encode_frame(_body(rng.choice(bodies), rng))) for _ in range(min(left, 4))]
        left -= len(frames)
        stream = b"".join(frames)
        if rng.random() < 0.3:
            stream = mutated(stream, rng)
        bytewise = len(stream) < BYTEWISE and rng.random() < 0.3
        chunks = [bytes([byte]) for byte in stream] if bytewise else chunked(stream, rng)
        try:
            _decode(chunks)
        except Exception as error:
            tally.complain("crashes", f"decoders: {error!r} from {stream[:200]!r}")
    tally.done["frames_without_a_pipe"] += count


def _body(good: bytes, rng: random.Random) -> bytes:
    return mutated(good, rng) if rng.random() < 0.8 else good


def _decode(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(CAP)
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while (frame := decoder.next_frame()) is not None:
                for decode in (MSGPACK.decode_request, MSGPACK.decode_response):
                    try:
                        decode(frame)
                    except ProtocolError:
                        continue
        decoder.finish()
    except ProtocolError:
        return


def fuzz_slot_pipe(count: int, rng: random.Random, tally: Tally) -> None:
    """Ask over a real pipe, have the lie written at the other end, and read what there is."""
    names = [name for name in LIES if name != "control_noise"]
    for number in range(1, count + 1):
        name, seed = rng.choice(names), rng.getrandbits(32)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        pipe = SlotPipe(ours, 64 * 2**20)
        told = lie(name, seed, number)
        if len(told.data) > _FITS_A_PIPE:
            told = told._replace(data=struct.pack(">I", 2**32 - 1))
        try:
            pipe.ask(encode_request("create_program", ASKED, 2**20), number, None)
            outcome = _answer(pipe, theirs, told.data, ends=told.ends)
        except Exception as error:
            tally.complain("crashes", f"slot pipe: {name}, seed {seed}: {error!r}")
        else:
            # Without a pipe that is full nobody can answer too early: that is a true answer here.
            expected = "either" if told.early else told.outcome
            if expected not in ("either", outcome):
                tally.complain("wrong_outcomes", f"slot pipe: {name}, seed {seed}: {outcome}")
        finally:
            pipe.close()
            theirs.close()
    tally.done["frames_to_a_slot_pipe"] += count


def _answer(pipe: SlotPipe, theirs: socket.socket, data: bytes, *, ends: bool) -> str:
    """What comes of the bytes: "value", "error", or "nothing" as long as the pipe is open."""
    if data:
        theirs.sendall(data)
    if ends:
        theirs.shutdown(socket.SHUT_WR)
    try:
        while pipe.poller.poll(0):
            if pipe.answer() is not None:
                return "value"
    except (ProtocolError, PipeEnded):
        return "error"
    return "nothing"
