"""What can be read off a program before it runs: its name, the types of its outputs.

Pure looking: nothing is called on the user's objects, nothing is changed, dspy is not imported.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from typing import Any

from dspool.pool.identity import loaded_dspy

MAX_LABEL_CHARS = 100


def unreadable(signature: str) -> str | None:
    """Why a signature string can't be one, as far as that can be said without DSPy; a worker would say the rest."""
    sides = signature.split("->")
    if len(sides) != 2 or not sides[1].strip():
        return 'it is written "input, ... -> output, ..."'
    try:
        for side in sides:
            ast.parse(f"def signature({side}): pass")
    except SyntaxError as error:
        return error.msg
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error)
    return None


def callable_name(function: Any) -> str:
    """ "module.qualname" of a function, a method, what a partial calls, or a callable object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"[: 2 * MAX_LABEL_CHARS]


def module_label(module: Any, modules: Iterable[Any]) -> str:
    """A DSPy module's class, and for DSPy's own classes their signature, as "Predict(question -> answer)"."""
    name, own = type(module).__name__, type(module).__module__.startswith("dspy.")
    signatures = [vars(part)["signature"] for part in modules if _is_signature(vars(part).get("signature"))]
    if own and signatures and (signatures[0] is vars(module).get("signature") or len(signatures) == 1):
        name = f"{name}({signatures[0].signature})"
    return name if len(name) <= MAX_LABEL_CHARS else name[: MAX_LABEL_CHARS - 3] + "..."


def output_fields(modules: Iterable[Any]) -> dict[str, Any]:
    """The annotation of each output that the modules' signatures name; not where two of them disagree."""
    found: dict[str, Any] = {}
    disputed: set[str] = set()
    for module in modules:
        signature = vars(module).get("signature")
        for name, field in signature.output_fields.items() if _is_signature(signature) else ():
            if found.setdefault(name, field.annotation) != field.annotation:
                disputed.add(name)
    return {name: annotation for name, annotation in found.items() if name not in disputed}


def _is_signature(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, loaded_dspy("Signature"))
