"""Accidents that bytes have on their way, for fuzzing: the same ones for the same random numbers."""

from __future__ import annotations

import random


def chunked(data: bytes, rng: random.Random) -> list[bytes]:
    """`data` in pieces of random sizes."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` after one to four accidents."""
    fresh = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(fresh) + 1)
        accident = rng.randrange(6)
        if accident == 0:
            fresh[at : at + 1] = bytes([rng.randrange(256)])
        elif accident == 1:
            del fresh[at : at + rng.randrange(8)]
        elif accident == 2:
            fresh[at:at] = rng.randbytes(rng.randrange(8))
        elif accident == 3:  # a length lies: array, map, str, bin, ext
            fresh[at : at + 1] = rng.choice(b"\xdd\xdf\xdb\xc6\xc9").to_bytes() + rng.choice(
                [b"\xff" * 4, b"\0\0\xff\0"]
            )
        elif accident == 4:
            fresh[at:at] = rng.choice([b"\x91", b"\x81\xa1a", b"[", b'{"a":']) * rng.choice([3, 300, 3000])
        else:
            del fresh[at:]
    return bytes(fresh)
