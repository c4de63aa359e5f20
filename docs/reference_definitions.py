"""The page of docs/reference/ about programs as data."""

from __future__ import annotations

from typing import Any

from reference_text import MADE_BY, entries

from dspool.protocol import definitions as grammar, field_types


def definitions() -> str:
    """The grammar of programs as data."""
    keys = entries(grammar.Definition.__doc__, "Attributes")
    del keys["misspelt"]
    parts = {
        "made_by": MADE_BY,
        "kinds": "\n".join(map(_kind, grammar.KINDS)),
        "keys": "\n".join(f"| `{name}` | {text} |" for name, text in keys.items()),
        "types": "\n".join(_names_of_types()),
        "keywords": _listed(field_types.KEYWORDS),
        "size": f"{field_types.MAX_SIZE:,}",
        "depth": field_types.MAX_DEPTH,
        "fields": grammar.MAX_FIELDS,
        "inputs": _listed(grammar.RESERVED_INPUTS),
        "outputs": _listed(grammar.RESERVED_FIELDS),
        "by_kind": "\n".join(
            f"| {kind}, too | {_listed(names)} | {_listed(grammar.KIND_OUTPUTS.get(kind, ()))} |"
            for kind, names in grammar.KIND_INPUTS.items()
        ),
        "settings": _listed(grammar.SETTINGS),
    }
    return _DEFINITIONS.format(**parts)


_DEFINITIONS = """\
# Definitions

{made_by}
A definition is a program as plain data, for `create_program`, `run` and wherever else a program is taken. How to use
them is in [Define programs as data](../how-to/define-programs-as-data.md).

## Kinds

| `program_type` | needs | may have |
| --- | --- | --- |
{kinds}

Every kind may have `state`, and in a pool `lm`, the program's own: `"provider/model"`, a dict of `dspy.LM`'s arguments,
or a `dspy.LM`. `best_of_n` takes what its inner kind takes, too. A key of another kind is refused. Unknown keys are
ignored; one that is nearly a known one is refused by a pool.

## Keys

| key | |
| --- | --- |
{keys}

## Types

A field's type is text or a JSON schema. Text may be:

{types}
* `list[...]`, `dict[str, ...]` (or with keys of int, float, bool), `Optional[...]`, `... | None`,
  `Literal['a', 1, True]`

A value of an image is `{{"url": ...}}`, or the URL or data URI alone as text.

A schema is an object. One with properties becomes a pydantic model, in the worker and, for outputs, in the caller's
process. These keywords are understood, those that begin with `x-` passed over, and any other is refused by name:

{keywords}

`format`, `title` and `examples` are words for the reader: a date is text. A `$ref` points into the schema's own
`$defs`, and to nothing that contains it. Written out, a type has at most {size} parts in {depth} levels. A signature
has at most {fields} fields.

## Names

A field's name is one that Python takes, and doesn't begin with an underscore. DSPy keeps these for itself:

| kind | inputs | outputs |
| --- | --- | --- |
| any | {inputs} | {outputs} |
{by_kind}

## What is taken from outside

Where a definition doesn't come from the application's own code, import paths are refused, a saved state is plain data,
and `config` may set these alone:

{settings}
"""


def _kind(kind: str) -> str:
    needed = (*(() if kind == "program" else ("signature",)), *grammar.NEEDED.get(kind, ()))
    others = [name for name in grammar.OWN_KEYS[kind] if name not in needed]
    return f"| `{kind}` | {', '.join(f'`{name}`' for name in needed)} | {', '.join(f'`{name}`' for name in others)} |"


def _names_of_types() -> list[str]:
    names: dict[str, list[str]] = {}
    for name, kind in field_types.NAMES.items():
        names.setdefault(kind, []).append(name)
    return [f"* {_listed(words)}" for words in names.values()]


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in (sorted(names) if isinstance(names, (set, frozenset)) else names))
