"""How much a bridge keeps for its client: one count of bytes for programs' definitions and sessions' data together.

A client that never deletes anything would otherwise end the process in the middle of some call. At the bound it is told
so, by name and number, and everything kept still works.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dspool.worker.bridge.refusal import Refused


def size_of(data: Any) -> int:
    """How much plain data counts for: its bytes as MessagePack, a little less than as JSON.

    Raises:
        Refused: it could be read and can't be written again: whole numbers beyond 64 bits, or nested without end.
    """
    try:
        return len(msgspec.msgpack.encode(data))
    except (OverflowError, RecursionError, ValueError, msgspec.MsgspecError) as error:
        raise Refused("invalid_args", f"this can't be kept: {error}") from None


class Storage:
    """The count.

    Args:
        limit: bytes that may be kept in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def replace(self, old: int, new: int) -> None:
        """Count `new` bytes in place of `old` ones.

        Raises:
            Refused: it would be over the limit; nothing is counted.
        """
        total = self.used - old + new
        if new > old and total > self.limit:
            raise Refused(
                "limit_reached",
                f"Storage limit reached: this would make {total:,} bytes of definitions and session data, and"
                f" --max-stored-bytes is {self.limit:,}; delete programs or clean up sessions first",
                limit=self.limit,
                used=self.used,
                wanted=total,
            )
        self.used = total


def check_count(count: int, limit: int, kind: str, option: str, cure: str) -> None:
    """See that one more may be kept.

    Raises:
        Refused: there are `limit` already.
    """
    if count >= limit:
        raise Refused(
            "limit_reached",
            f"{kind} limit reached: there are {count:,} and {option} is {limit:,}; {cure} first",
            limit=limit,
            used=count,
            wanted=count + 1,
        )
