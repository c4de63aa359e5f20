"""Read the prompt of a DSPy adapter back into fields, and write an answer in the form that this adapter parses.

A DSPy adapter turns a signature and its inputs into a system message and a last user message. A stand-in for a
language model has only those two texts, so this module recovers from them what a real model would: which output
fields are asked for, of which types, and what the caller's inputs were.

Rules:

* Only the texts are read, never a signature: what a real model could not know is not known here either.
* A caller's input may hold anything, markers such as ``[[ ## answer ## ]]`` included; an input ends only at the
  marker of the next *input* field, in the signature's order, or at the adapter's closing sentence.
* Reading a system message costs 50-200 us and is cached: a program sends the same one with every call.

Understood: ChatAdapter, JSONAdapter, XMLAdapter and BAMLAdapter of DSPy 3.4 (the last says too little about models
and enums to satisfy them). Anything else is style ``plain``: free text in, free text out. This module knows nothing
about HTTP, and never imports dspy.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import xml.etree.ElementTree as ElementTree
from typing import Any, Literal

import msgspec

__all__ = ["Field", "Layout", "content_text", "read_inputs", "read_layout", "render", "value_text"]

Style = Literal["chat", "json", "xml", "plain"]
Schema = dict[str, Any]

_FIELD = re.compile(r"^(\d+)\. `(\w+)` \((.*?)\):(?= |$)", re.MULTILINE)
_NOTE = re.compile(r"^\{(\w+)\} {8}# note: the value you produce (.*)$", re.MULTILINE)
_STRUCTURE = "\nAll interactions will be structured in the following way"
_OBJECTIVE = "\nIn adhering to this structure, your objective is:"
_CLOSING = "Respond with "
_SIMPLE_TYPES: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
    "dict": {"type": "object", "additionalProperties": True},
    "NoneType": {"type": "null"},
    "Any": {"type": "string"},
}
_LISTS = frozenset(("list", "List", "set", "frozenset", "Sequence"))
_MAPPINGS = frozenset(("dict", "Dict", "Mapping"))
_UNIONS = frozenset(("Union", "Optional"))
_KNOWN_NAMES = _SIMPLE_TYPES.keys() | _LISTS | _MAPPINGS | _UNIONS
# DSPy prints a field's constraints in words; these are the JSON schema keys that mean the same.
_CONSTRAINTS = {
    "greater than": "exclusiveMinimum",
    "greater than or equal to": "minimum",
    "less than": "exclusiveMaximum",
    "less than or equal to": "maximum",
    "minimum length": "minLength",
    "maximum length": "maxLength",
    "a multiple of the given number": "multipleOf",
}


class Field(msgspec.Struct, frozen=True):
    """One field as the prompt describes it.

    Attributes:
        name: The field's name in the signature.
        type_name: The type as DSPy prints it, ``list[str]`` for instance.
        desc: The field's description; empty when the signature gives none.
        schema: A JSON schema of the values that DSPy will accept; ``{"type": "string"}`` where the prompt is silent.
    """

    name: str
    type_name: str
    desc: str
    schema: Schema


class Layout(msgspec.Struct, frozen=True):
    """What one system message asks for.

    Attributes:
        style: How the answer has to be written.
        inputs: The input fields, in the signature's order; empty for style ``plain``.
        outputs: The output fields, in the signature's order; empty for style ``plain``.
        objective: The signature's instructions.
    """

    style: Style
    inputs: tuple[Field, ...] = ()
    outputs: tuple[Field, ...] = ()
    objective: str = ""


PLAIN = Layout("plain")


def content_text(content: object) -> str:
    """Return a message's content as text.

    Args:
        content: A string, or the OpenAI list of parts; a part without text becomes its type, ``<image_url>``.

    Returns:
        The text; empty for anything else.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = []
    for part in content:
        if isinstance(part, dict):
            text = part.get("text")
            parts.append(text if isinstance(text, str) else f"<{part.get('type', 'part')}>")
    return "".join(parts)


@functools.lru_cache(maxsize=256)
def read_layout(system: str) -> Layout:
    """Read the fields and the answer's style out of a system message.

    Args:
        system: The system message (or a whole prompt that begins with one).

    Returns:
        The layout; one of style ``plain`` where the text is not a DSPy adapter's. Treat it as read-only: it is cached.
    """
    description, found, rest = system.partition(_STRUCTURE)
    if not found:
        return PLAIN
    structure, _, objective = rest.partition(_OBJECTIVE)
    inputs, _, outputs = description.partition("\nYour output fields are:\n")
    input_fields = _read_fields(inputs, {}, {})
    notes, templates = _read_notes(structure)
    output_fields = _read_fields(outputs, notes, templates)
    if not output_fields:
        return PLAIN
    return Layout(_style(structure), input_fields, output_fields, " ".join(objective.split()))


def read_inputs(layout: Layout, user: str) -> dict[str, str]:
    """Read the caller's inputs out of the last user message.

    Args:
        layout: What the system message asked for.
        user: The last user message (or a whole prompt that ends with it).

    Returns:
        The inputs as text, by name, in the signature's order; without those that the caller left out.
    """
    user = user.rpartition("\n\nBEGIN RESPONSE:")[0] or user  # DSPy's ending of a text completion prompt
    body, found, _ = user.rpartition("\n\n" + _CLOSING)
    if not found:
        body = "" if user.startswith(_CLOSING) else user
    marks = []
    position = 0
    for field in layout.inputs:
        mark = f"<{field.name}>\n" if layout.style == "xml" else f"[[ ## {field.name} ## ]]\n"
        start = _find_line(body, mark, position)
        if start >= 0:
            marks.append((field.name, start, start + len(mark)))
            position = start + len(mark)
    inputs = {}
    for index, (name, _, start) in enumerate(marks):
        end = marks[index + 1][1] if index + 1 < len(marks) else len(body)
        inputs[name] = body[start:end].strip()
        if layout.style == "xml":
            inputs[name] = inputs[name].removesuffix(f"</{name}>").strip()
    return inputs


def render(layout: Layout, values: dict[str, Any]) -> str:
    """Write an answer in the form that the layout's adapter parses.

    Args:
        layout: What the system message asked for.
        values: A value for each output field; plain data, pydantic models and dataclasses are understood.

    Returns:
        The assistant's message. For style ``plain`` the values, one per line.
    """
    if layout.style == "json":
        return json.dumps(values, ensure_ascii=False, default=_plain_data)
    if layout.style == "xml":
        return "\n\n".join(_xml(name, value) for name, value in values.items())
    if layout.style == "plain":
        return "\n".join(value_text(value) for value in values.values())
    # A value with a marker at the start of a line would end its own field.
    sections = [f"[[ ## {name} ## ]]\n{value_text(value).replace('[[ ##', '[ [ ##')}" for name, value in values.items()]
    return "\n\n".join([*sections, "[[ ## completed ## ]]"])


def value_text(value: object) -> str:
    """Return a field's value as DSPy's adapters expect it in running text: strings bare, ``True``, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=_plain_data)


def _style(structure: str) -> Style:
    if "Outputs will be a JSON object" in structure or "\nOutput field `" in structure:
        return "json"
    return "chat" if "[[ ## completed ## ]]" in structure else "xml"


def _find_line(text: str, mark: str, start: int) -> int:
    """Return where ``mark`` first begins a line at or after ``start``; -1 if nowhere."""
    if start == 0 and text.startswith(mark):
        return 0
    at = text.find("\n" + mark, max(start - 1, 0))
    return at + 1 if at >= 0 else -1


def _read_fields(text: str, notes: dict[str, str], templates: dict[str, Schema]) -> tuple[Field, ...]:
    """Read the numbered list of fields; a line of a description that looks like one is told apart by its number."""
    matches: list[re.Match[str]] = []
    for match in _FIELD.finditer(text):
        if int(match[1]) == len(matches) + 1:
            matches.append(match)
    fields = []
    for index, match in enumerate(matches):
        end = matches[index + 1].start() if index + 1 < len(matches) else len(text)
        desc, _, constraints = text[match.end() : end].strip().partition("Constraints: ")
        name, type_name = match[2], match[3]
        schema = _schema(type_name, notes.get(name, ""))
        if name in templates and not _KNOWN_NAMES.issuperset(re.findall(r"[A-Za-z_]\w*", type_name)):
            schema = templates[name]  # a model of the caller's own, of which only the template shows more
        fields.append(Field(name, type_name, desc.strip(), _constrained(schema, constraints)))
    return tuple(fields)


def _read_notes(structure: str) -> tuple[dict[str, str], dict[str, Schema]]:
    """Return the note on each output field's type, and for nested XML the schema that its template shows."""
    if "Outputs will be a JSON object" not in structure:
        templates = {}
        for line in structure.splitlines():
            if re.match(r"<(\w+)>.*</\1>$", line) and (element := _element(line)) is not None:
                templates[element.tag] = _template_schema(element)
        return {match[1]: match[2] for match in _NOTE.finditer(structure)}, templates
    start = structure.find("{", structure.index("Outputs will be a JSON object"))
    try:
        template, _ = json.JSONDecoder().raw_decode(structure, start)
    except ValueError:
        return {}, {}
    return {name: str(text).partition("# note: the value you produce ")[2] for name, text in template.items()}, {}


def _schema(type_name: str, note: str) -> Schema:
    """Return the JSON schema of a field from its type's name and the note that DSPy puts beside it."""
    if note.startswith("must adhere to the JSON schema: "):
        try:
            schema = json.loads(note.removeprefix("must adhere to the JSON schema: "))
        except ValueError:
            schema = None
        return schema if isinstance(schema, dict) else {"type": "string"}
    if note.startswith("must be one of: "):  # an Enum: DSPy takes the value, or a member's name
        return {"enum": [_number_or_text(text) for text in note.removeprefix("must be one of: ").split("; ")]}
    try:
        return _type_schema(ast.parse(type_name, mode="eval").body)
    except (SyntaxError, ValueError):
        choices = note.partition("one of: ")[2]
        return {"enum": choices.split("; ")} if choices else {"type": "string"}


def _type_schema(node: ast.expr) -> Schema:
    if isinstance(node, ast.Name):
        return _SIMPLE_TYPES.get(node.id, {"type": "string"})
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name):
        return {"type": "string"}
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    kind = node.value.id
    if kind == "Literal":
        return {"enum": [ast.literal_eval(item) for item in items]}
    if kind in _LISTS:
        return {"type": "array", "items": _type_schema(items[0])}
    if kind in _MAPPINGS:
        return {"type": "object", "additionalProperties": _type_schema(items[-1])}
    if kind in _UNIONS:
        return {"anyOf": [_type_schema(item) for item in items]}
    return {"type": "string"}


def _template_schema(element: ElementTree.Element) -> Schema:
    """Return the schema that an XML template shows. It shows no types; ``1`` is text, a number, and true in all of
    them."""
    children = list(element)
    if len(children) == 1 and children[0].tag == "item":
        return {"type": "array", "items": _template_schema(children[0])}
    if children:
        properties = {child.tag: _template_schema(child) for child in children}
        return {"type": "object", "properties": properties, "required": list(properties)}
    return {"const": "1"}


def _constrained(schema: Schema, words: str) -> Schema:
    extra: Schema = {}
    for phrase in words.split(", "):
        name, _, text = phrase.partition(": ")
        value = _number_or_text(text)
        if name in _CONSTRAINTS and not isinstance(value, str):
            extra[_CONSTRAINTS[name]] = value
    if schema.get("type") == "array":
        extra = {key.replace("Length", "Items"): value for key, value in extra.items()}
    return {**schema, **extra}


def _number_or_text(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _element(line: str) -> ElementTree.Element | None:
    try:
        return ElementTree.fromstring(line)
    except ElementTree.ParseError:
        return None


def _xml(name: str, value: object) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_xml(key, child) for key, child in value.items())}</{name}>"
    if isinstance(value, list):
        return f"<{name}>{''.join(_xml('item', child) for child in value)}</{name}>"
    return f"<{name}>{value_text(value).replace('&', '&amp;').replace('<', '&lt;')}</{name}>"


def _plain_data(value: Any) -> Any:
    """Give ``json`` something it can write for a value it doesn't know."""
    if hasattr(value, "model_dump"):  # a pydantic model, without importing pydantic
        return value.model_dump(mode="json")
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        return str(value)
