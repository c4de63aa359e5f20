"""A program as plain data: what create_program of the original bridge takes.

    {"signature": {"name"?, "description"?, "inputs": [{"name", "type"?, "description"?}, ...], "outputs": [...]},
     "program_type"?: "predict" | "chain_of_thought", "instructions"?}

Rules:
    1. A definition may come from anywhere, so its types come from an allow-list. DSPy itself resolves a type's name by
       importing modules.
    2. Names that DSPy would drop or trip over are refused by name.
    3. Unknown keys are ignored.

Parsing is pure and needs no DSPy; `build` does.
"""

from __future__ import annotations

import ast
import keyword
from typing import Any, Literal, Optional

import msgspec

MAX_TYPE_CHARS = 500
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
_ALLOWED = "str, int, float, bool, list[...], dict[str, ...], Literal[...], Optional[...]"

_NO_FIELD_NAMES = frozenset({"signature", "fields", "instructions", "input_fields", "output_fields", "model_config"})
"""They are parts of a signature's class."""
RESERVED_INPUTS = _NO_FIELD_NAMES | {"lm", "config", "demos", "new_signature"}
"""dspy.Predict takes these for itself; a field of that name would never arrive."""


class DefinitionError(ValueError):
    """A definition that no program can be made from."""


class FieldDefinition(msgspec.Struct, frozen=True):
    """An input or output."""

    name: str
    type: str = "str"
    description: str | None = None


class SignatureDefinition(msgspec.Struct, frozen=True):
    """Inputs and outputs, in the order in which they are shown to the LM."""

    inputs: list[FieldDefinition] = []
    outputs: list[FieldDefinition] = []
    name: str | None = None
    description: str | None = None


class Definition(msgspec.Struct, frozen=True):
    """A whole definition."""

    signature: SignatureDefinition
    program_type: Literal["predict", "chain_of_thought"] = "predict"
    instructions: str | None = None


def parse(data: dict[str, Any]) -> Definition:
    """A definition that has been checked.

    Raises:
        DefinitionError: it says which part is wrong.
    """
    try:
        definition = msgspec.convert(data, Definition)
    except msgspec.ValidationError as error:
        raise DefinitionError(f"the definition is not valid: {error}") from None
    signature = definition.signature
    if not signature.outputs:
        raise DefinitionError("the definition has no outputs; signature.outputs needs at least one field")
    check_names([field.name for field in signature.inputs], [field.name for field in signature.outputs])
    for field in signature.inputs + signature.outputs:
        parse_type(field.type)
    return definition


def check_names(inputs: list[str], outputs: list[str]) -> None:
    """Refuse field names that DSPy can't handle.

    Raises:
        DefinitionError: it names the field.
    """
    for kind, names, reserved in (("input", inputs, RESERVED_INPUTS), ("output", outputs, _NO_FIELD_NAMES)):
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise DefinitionError(f"the {kind} {name!r:.80} must have a name that Python can use")
            if name in reserved or name.startswith("_"):
                raise DefinitionError(f"the {kind} name {name!r} is reserved by DSPy; choose another")
    every = inputs + outputs
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise DefinitionError(f"two fields have the same name: {', '.join(twice)}")


def parse_type(text: str) -> Any:
    """The type that a text names, from the allow-list.

    Raises:
        DefinitionError: it is not on the list.
    """
    try:
        if len(text) > MAX_TYPE_CHARS:
            raise SyntaxError(f"it is longer than {MAX_TYPE_CHARS} characters")
        return _type_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DefinitionError(f"the type {text!r:.100} is not one of {_ALLOWED}: {error}") from None


def _type_of(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return list[_type_of(item)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            if not isinstance(key, ast.Name) or key.id in ("list", "dict"):
                raise SyntaxError("a dict's keys are str, int, float or bool")
            return dict[_type_of(key), _type_of(item)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=item):
            return Optional[_type_of(item)]  # noqa: UP045 - DSPy's adapters know it as a typing construct
        case ast.BinOp(left=item, op=ast.BitOr(), right=ast.Constant(value=None)):
            return Optional[_type_of(item)]  # noqa: UP045
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            nodes = choices.elts if isinstance(choices, ast.Tuple) and choices.elts else [choices]
            return Literal[tuple(_choice(node) for node in nodes)]
    raise SyntaxError(f"{ast.unparse(node):.80} is not allowed")


def _choice(node: ast.expr) -> str | int | bool:
    value = ast.literal_eval(node)
    if not isinstance(value, str | int):
        raise SyntaxError("a Literal's choices are texts, whole numbers and booleans")
    return value


def build(definition: Definition) -> Any:
    """The definition as a DSPy module. Imports dspy."""
    import dspy

    signature = definition.signature
    fields: dict[str, Any] = {}
    for make, side in ((dspy.InputField, signature.inputs), (dspy.OutputField, signature.outputs)):
        for field in side:
            described = {"desc": field.description} if field.description else {}
            fields[field.name] = (parse_type(field.type), make(**described))
    instructions = definition.instructions or signature.description
    named = {"signature_name": signature.name} if signature.name and signature.name.isidentifier() else {}
    built = dspy.Signature(fields, instructions, **named)
    return dspy.ChainOfThought(built) if definition.program_type == "chain_of_thought" else dspy.Predict(built)
