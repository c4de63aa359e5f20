"""What a program takes, found out once when it is loaded, and whether a call's inputs are that.

Where it is known from:
    a callable                   its own signature
    DSPy's own modules           the input fields of the signature they were made with
    a module of the user's       the signature of its `forward`

Typed inputs (dspy.Image, pydantic models, Enums, datetimes) arrive as plain data and are revived for DSPy modules: by
the field's annotation, or by the annotation in the user's `forward`; a dspy.Image may also be the text of its URL.
Where `forward` says nothing, DSPy's own types are revived by the predictors' fields of that name, since nobody means
the dict that an Image is on its way. A callable gets plain data.

Imports no dspy; what it is shown of it is there already.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from dspool.protocol import values

_PLAIN_TYPES = {str, int, float, bool, bytes, list, dict, type(None), Any, inspect.Parameter.empty, object}
_NO_DEFAULT = inspect.Parameter.empty
_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class InvalidInputs(Exception):
    """A call's inputs are not what its program takes. Nothing was executed.

    Attributes:
        details: {"expected": [...], "missing": [...], "unknown": [...]}, all names.
    """

    def __init__(self, details: dict[str, list[str]]) -> None:
        parts = [f"{kind} {', '.join(names)}" for kind, names in details.items() if names and kind != "expected"]
        expected = ", ".join(details["expected"]) or "no inputs"
        super().__init__(f"the program takes {expected}; {'; '.join(parts)}")
        self.details = details


class Inputs(msgspec.Struct, frozen=True):
    """What a program takes.

    Attributes:
        names: the inputs it knows, in its order.
        required: those without which it can't be called.
        open: whether it takes others too.
        typed: annotations of the inputs that must be revived.
    """

    names: tuple[str, ...]
    required: frozenset[str]
    open: bool = False
    typed: dict[str, Any] = {}

    def check(self, given: dict[str, Any]) -> None:
        """Compare a call's inputs.

        Raises:
            InvalidInputs: some are missing or unknown.
        """
        required = self.required
        if (self.open or len(given) == len(required)) and (not required or given.keys() >= required):
            return
        missing = [name for name in self.names if name in self.required and name not in given]
        unknown = [] if self.open else [str(name) for name in given if name not in self.names]
        if missing or unknown:
            raise InvalidInputs({"expected": list(self.names), "missing": missing, "unknown": unknown})

    def revive(self, given: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the typed ones as what they were."""
        if not self.typed:
            return given
        return {
            name: values.revive(value, self.typed[name]) if name in self.typed else value
            for name, value in given.items()
        }


def of_callable(program: Callable[..., Any]) -> Inputs:
    """What a plain callable takes.

    Raises:
        TypeError: it can't be called with keywords alone.
    """
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):  # a builtin that doesn't say
        return Inputs((), frozenset(), open=True)
    return _of_parameters(parameters)


def of_module(module: Any) -> Inputs:
    """What a DSPy module takes.

    Raises:
        TypeError: it has no forward, or one that can't be called with keywords alone.
    """
    forward = forward_of(module)
    if forward is None:
        raise TypeError(f"{type(module).__name__} has neither forward nor aforward")
    parameters = list(inspect.signature(forward).parameters.values())
    if "forward" not in vars(module) and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        del parameters[0]  # self
    found = _of_parameters(parameters)
    signature = signature_of(module)
    fields = Inputs((), frozenset()) if signature is None else _of_signature(signature)
    if signature is not None and _is_dspys(forward) and not found.required:
        return fields
    hints = _hints(forward)
    typed = {name: taken(hint) for name, hint in hints.items() if name in found.names and not is_plain(hint)}
    others = [name for name in found.names if name not in hints]
    return msgspec.structs.replace(
        found, typed=(fields.typed if found.open else {}) | typed | _dspy_types(module, others)
    )


def forward_of(module: Any) -> Callable[..., Any] | None:
    """The function that a module runs, unbound. Asking the instance for it would log a warning."""
    kind = type(module)
    return vars(module).get("forward") or getattr(kind, "forward", None) or getattr(kind, "aforward", None)


def signature_of(module: Any) -> Any:
    """The signature that one of DSPy's modules was made with, or None."""
    for _ in range(8):  # BestOfN of a Refine of a ChainOfThought ...
        found = getattr(module, "signature", None)
        if hasattr(found, "input_fields"):
            return found
        module = getattr(module, "predict", None) or getattr(module, "module", None)
    return None


def _is_dspys(function: Callable[..., Any]) -> bool:
    return getattr(function, "__module__", "").partition(".")[0] == "dspy"


def _of_parameters(parameters: Iterable[inspect.Parameter]) -> Inputs:
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is _NO_DEFAULT:
            raise TypeError(f"it takes {parameter.name!r} by position only, and inputs have names")
    named = [parameter for parameter in parameters if parameter.kind in _KEYWORDS]
    required = frozenset(parameter.name for parameter in named if parameter.default is _NO_DEFAULT)
    takes_others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return Inputs(tuple(parameter.name for parameter in named), required, takes_others)


def _of_signature(signature: Any) -> Inputs:
    fields: dict[str, Any] = signature.input_fields
    required = (name for name, field in fields.items() if field.is_required() and not _takes_none(field.annotation))
    typed = {name: taken(field.annotation) for name, field in fields.items() if not is_plain(field.annotation)}
    return Inputs(tuple(fields), frozenset(required), typed=typed)


def taken(annotation: Any) -> Any:
    """The annotation that values are revived by: the field's own, with text for each dspy.Image in it taken as its URL.

    DSPy takes {"url": ...} alone there, and shows the LM a text as text.
    """
    image = getattr(sys.modules.get("dspy"), "Image", None)
    if image is not None and annotation is image:
        return typing.Annotated[image, sys.modules["pydantic"].BeforeValidator(_with_url)]
    arguments = typing.get_args(annotation)
    own = tuple(map(taken, arguments)) if typing.get_origin(annotation) in (list, dict) or _is_union(annotation) else ()
    if own == arguments or not own:
        return annotation
    return typing.Union[own] if _is_union(annotation) else typing.get_origin(annotation)[own]  # noqa: UP007


def _with_url(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


def _takes_none(annotation: Any) -> bool:
    return annotation is type(None) or (_is_union(annotation) and type(None) in typing.get_args(annotation))


def is_plain(annotation: Any) -> bool:
    """Whether values of this type are themselves on the wire, all the way down."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return all(type(choice) in _PLAIN_TYPES for choice in arguments)
    if origin in (list, dict) or _is_union(annotation):
        return all(map(is_plain, arguments))
    return origin is None and _is_in(annotation, _PLAIN_TYPES)


def _is_in(annotation: Any, known: set[Any]) -> bool:
    try:
        return annotation in known
    except TypeError:  # an annotation may be any object, hashable or not
        return False


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that can be resolved, each by itself: a name may exist for type checkers alone, or have stayed
    behind, since a pickled function brings along only the names that its code uses."""
    function = inspect.unwrap(function)
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(Exception):
            hints |= typing.get_type_hints(one, globalns=getattr(function, "__globals__", {}))
    return hints


def _dspy_types(module: Any, names: Iterable[str]) -> dict[str, Any]:
    """DSPy's own types in the predictors' fields of these names, where no two predictors see one differently."""
    found: dict[str, list[Any]] = {}
    for _, predictor in module.named_predictors():
        fields: Mapping[str, Any] = getattr(getattr(predictor, "signature", None), "input_fields", {})
        for name in fields.keys() & set(names):
            annotations = found.setdefault(name, [])
            if fields[name].annotation not in annotations:
                annotations.append(fields[name].annotation)
    return {name: taken(seen[0]) for name, seen in found.items() if len(seen) == 1 and _holds_dspy_type(seen[0])}


def _holds_dspy_type(annotation: Any) -> bool:
    base = getattr(sys.modules.get("dspy"), "Type", None)
    if isinstance(annotation, type) and isinstance(base, type) and issubclass(annotation, base):
        return True
    return any(map(_holds_dspy_type, typing.get_args(annotation)))
