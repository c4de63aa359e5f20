"""An on_event hook to wait with."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from typing import Any

from tests.integration.pool.conftest import DEADLINE_S


class Happenings:
    """What a pool told of, in order."""

    def __init__(self) -> None:
        self._seen: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        self._seen.put((event, dict(fields)))

    def wait(self, *events: str) -> dict[str, Any]:
        """The fields of the next event of these names."""
        while True:
            event, fields = self._seen.get(timeout=DEADLINE_S)
            if event in events:
                return fields
