"""A definition -> a DSPy module. What a definition is, and what is wrong with one, `dspool.protocol.definitions` says.

Rules:
    1. `build` is given what `parse` gave. What only this process can know is found out here, and said with the part of
       the definition that it concerns: an import path that leads nowhere, a demo that doesn't fit its types, a saved
       state of another program.
    2. A module is shared by all calls for as long as the worker lives, so that none may leave anything behind in it.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping
from typing import Any

from dspool.protocol.annotations import annotation, base_and_limits, refusals
from dspool.protocol.definitions import Definition, DefinitionError, FieldDefinition
from dspool.protocol.field_types import parse_type
from dspool.worker.import_paths import import_attribute
from dspool.worker.inputs import taken
from dspool.worker.saved_state import load_state

_log = logging.getLogger("dspool.worker")


def build(definition: Definition, state: Mapping[str, Any] | None = None) -> Any:
    """The definition as a DSPy module. Imports dspy.

    Args:
        definition: from parse().
        state: a saved state in place of the definition's own, for one that is no plain data.

    Raises:
        DefinitionError: a part of it can't be made.
        ImportError: something that it names by import path isn't there.
        Exception: what a program that it names raises when it is made.
    """
    import dspy

    for sentence in definition.misspelt:
        _log.warning("%s", sentence)
    module: Any
    predictor: Any = None
    match definition.base:
        case "program":
            module = _program(definition)
        case "react":
            tools = [dspy.Tool(_imported(path, "tool")) for path in definition.tools]
            _check_tool_names(definition.tools, [str(tool.name) for tool in tools])
            module = dspy.ReAct(_signature(definition), tools=tools, max_iters=definition.max_iters)
        case "chain_of_thought":
            module = dspy.ChainOfThought(_signature(definition))
            predictor = module.predict
        case _:
            module = predictor = dspy.Predict(_signature(definition))
    if predictor is not None:
        predictor.config = dict(definition.config)
        predictor.demos = _demos(definition, predictor.signature)
    if definition.program_type == "best_of_n":
        reward = _imported(definition.reward, "reward")
        module = _best_of_n()(module=module, N=definition.n, reward_fn=reward, threshold=definition.threshold)
    state = definition.state if state is None else state
    if state is not None:
        load_state(module, state)
    return module


def _signature(definition: Definition) -> Any:
    import dspy

    signature = definition.signature
    fields: dict[str, Any] = {}
    for make, side in ((dspy.InputField, signature.inputs), (dspy.OutputField, signature.outputs)):
        for field in side:
            fields[field.name] = _field(field, make)
    instructions = definition.instructions or signature.description
    named = {"signature_name": signature.name} if signature.name and signature.name.isidentifier() else {}
    try:
        return dspy.Signature(fields, instructions, **named)
    except refusals() as error:
        raise DefinitionError(f"the signature can't be made: {error!s:.300}") from None


def _field(field: FieldDefinition, make: Any) -> tuple[Any, Any]:
    tree, limits = base_and_limits(parse_type(field.type, field.name))
    words = field.description or field.desc
    described = {"desc": words} if words else {}
    try:
        return annotation(tree), make(**described, **limits)
    except DefinitionError as error:
        raise DefinitionError(f"the field {field.name!r}: {error}") from None


def _demos(definition: Definition, signature: Any) -> list[Any]:
    """The demos as DSPy wants them, their values as the types that the fields have."""
    import dspy
    import pydantic

    adapters = {name: pydantic.TypeAdapter(taken(field.annotation)) for name, field in signature.fields.items()}
    demos = []
    for number, demo in enumerate(definition.demos):
        values: dict[str, Any] = {}
        for name, value in demo.items():
            try:
                values[name] = adapters[name].validate_python(value) if name in adapters else value
            except pydantic.ValidationError as error:
                reason = error.errors(include_url=False, include_input=False)[0]["msg"]
                raise DefinitionError(f"demos[{number}][{name!r}] doesn't fit the field's type: {reason}") from None
        demos.append(dspy.Example(**values))
    return demos


def _program(definition: Definition) -> Any:
    """The module that an import path names; with arguments, what calling it with them gives."""
    import dspy

    path = definition.program
    target = _imported(path, "program")
    is_class = isinstance(target, type) and issubclass(target, dspy.Module)
    if definition.arguments is not None or is_class:
        if not callable(target):
            raise DefinitionError(f"the program {path!r} takes no arguments: it is a {type(target).__qualname__}")
        target = target(**(definition.arguments or {}))
    elif isinstance(target, type) and issubclass(target, dspy.Signature):
        target = dspy.Predict(target)
    if not isinstance(target, dspy.Module):
        raise DefinitionError(f"the program {path!r} is no DSPy module; it is a {type(target).__qualname__}")
    return target


def _imported(path: str, part: str) -> Any:
    try:
        found = import_attribute(path)
    except ImportError as error:
        raise ImportError(f"the {part} {path!r} can't be imported: {type(error).__name__}: {error}") from error
    if part != "program" and not callable(found):
        raise DefinitionError(f"the {part} {path!r} can't be called; it is a {type(found).__qualname__}")
    return found


def _check_tool_names(paths: list[str], names: list[str]) -> None:
    """DSPy tells tools by their names, and drops the first of two that are equal."""
    for number, name in enumerate(names):
        if name in names[:number]:
            other = paths[names.index(name)]
            raise DefinitionError(f"two tools are named {name!r}: {other!r} and {paths[number]!r}")
        if name == "finish":
            raise DefinitionError(f"the tool {paths[number]!r} is named 'finish', as DSPy's own; choose another")


@functools.cache
def _best_of_n() -> Any:
    import dspy

    class BestOfN(dspy.BestOfN):  # type: ignore[misc,unused-ignore]
        """dspy.BestOfN for many calls: DSPy's own counts the failures that are left to it down in the module itself."""

        @functools.wraps(dspy.BestOfN.forward)
        def forward(self, **inputs: Any) -> Any:
            return dspy.BestOfN.forward(copy.copy(self), **inputs)

    return BestOfN
