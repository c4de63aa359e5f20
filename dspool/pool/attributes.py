"""What the modules of a program held at one moment, of which both its id is made and its pickle.

    1. The id is made of A. 2. Another thread sets B. 3. B is pickled, under the id of A. 4. The thread sets A again.

Nobody who looks at the modules then sees a change, and whoever has A from now on would be given B. So it is this that
is looked at, not the modules.

dspy is looked up in sys.modules, never imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dspool.pool.identity import loaded_dspy
from dspool.pool.watch import UNWATCHED

_NOTHING: Mapping[str, Any] = {}


class Attributes:
    """Those of some modules; of each module as they were at once.

    Args:
        modules: the modules. A wrapper among them stands for its program, whose dict it shares.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        self._namespaces = [vars(module) for module in modules]
        self._held = {id(namespace): namespace.copy() for namespace in self._namespaces}

    def of(self, thing: Any) -> Mapping[str, Any]:
        """What is to be taken for an object's attributes; nothing where it speaks for itself.

        So does a module that makes a state of its own for its pickle.
        """
        kind, modules = type(thing), loaded_dspy("Module")
        if not issubclass(kind, modules) or any(
            getattr(kind, name, None) is not getattr(modules[0], name, None)
            for name in ("__getstate__", "__reduce__", "__reduce_ex__")
        ):
            return _NOTHING
        held: Mapping[str, Any] = self._held.get(id(vars(thing)), _NOTHING)
        return held

    def lm(self, predictor: Any) -> Any:
        """The LM that a predictor had."""
        return self._held.get(id(vars(predictor)), vars(predictor)).get("lm")

    def are_still(self) -> bool:
        """Whether the modules have the very same ones, now."""
        for namespace in self._namespaces:
            held = self._held[id(namespace)]
            if namespace.keys() != held.keys():
                return False
            if any(namespace.get(name) is not value for name, value in held.items() if name not in UNWATCHED):
                return False
        return True
