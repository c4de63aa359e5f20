"""Which modules a DSPy program consists of, in an order that both ends of a pipe agree on.

So a predictor can be named by its place: DSPy's own walks take histories for parts, and get slower with every call.
dspy is looked up in sys.modules and never imported; nothing is called on the user's objects.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

_NOT_PARTS = frozenset({"history", "callbacks", "demos", "traces", "train"})
_DEPTH, _ITEMS = 4, 1000


def modules_in(root: Any) -> list[Any]:
    """A DSPy module and all those in it, through lists, tuples and dicts too, each once."""
    kind: type = sys.modules["dspy"].Module
    found: list[Any] = []
    seen, waiting = {id(root)}, deque([(root, 0)])
    while waiting:
        thing, depth = waiting.popleft()
        if isinstance(thing, kind):
            found.append(thing)
            depth = 0
            parts: Iterable[Any] = [part for name, part in vars(thing).items() if name not in _NOT_PARTS]
        elif type(thing) in (list, tuple, dict) and depth <= _DEPTH:
            parts = itertools.islice(thing.values() if type(thing) is dict else thing, _ITEMS)
        else:
            continue
        for part in parts:
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append((part, depth + 1))
    return found
