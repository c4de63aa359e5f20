"""A definition as it is given to a pool -> what a worker is sent of it, and who it is.

    {"signature": ..., "program_type": ..., "lm": ..., "state": a dict, or the path of a file that program.save() wrote}

Rules:
    1. Whatever can be known without DSPy is said here, before a worker is asked.
    2. Its LM, which may hold a key, is taken out and travels as any LM's spec does.
    3. A saved state is read here, so that a program is the same wherever it is built. A pickle is not opened in this
       process at all, and is sent only where the caller said `allow_pickle=True`.
    4. Equal definitions are one program, whatever they were called and whatever else stood beside them.

Knows nothing of the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dspool.pool.lm_specs import lm_spec
from dspool.protocol.definitions import Definition, DefinitionError, parse
from dspool.protocol.messages import DefinedProgram
from dspool.protocol.values import to_json

_KEYS = frozenset(Definition.__struct_fields__) - {"misspelt"}


class Defined(NamedTuple):
    """What is known of a definition.

    Attributes:
        name: its signature's, or its kind.
        digest: 32 hex digits that equal ones share.
        spec: what a worker is sent.
        unproven: whether a part of it can only be checked in a worker: what it imports, a state, demos, JSON schemas.
    """

    name: str
    digest: str
    spec: DefinedProgram
    unproven: bool


def read(definition: Mapping[str, Any], *, allow_pickle: bool = False) -> Defined:
    """Check a definition and make it ready to be sent.

    Args:
        definition: it.
        allow_pickle: whether its saved state may be a pickle.

    Raises:
        DefinitionError: it says which part is wrong.
        EncodeError: a part of it is no plain data.
        OptionsError: its lm can't be used.
    """
    lm = definition.get("lm")
    spec = None if lm is None else lm_spec(lm)
    own = {name: part for name, part in definition.items() if name in _KEYS}
    pickled = None
    if isinstance(path := own.get("state"), str | os.PathLike):
        own["state"], pickled = _saved(Path(path), allow_pickle)
    for name in ("tools", "reward", "program"):
        parts = own.get(name)
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            if callable(part):
                raise DefinitionError(
                    f"{name} holds {_name_of(part)} itself; a definition names it by its import path, "
                    '"package.module:attribute". What has none goes as an object: create_program(name, module)'
                )
    plain = {name: to_json(part, name) for name, part in own.items() if part is not None}
    others = dict.fromkeys(name for name in definition if name not in _KEYS)  # looked at for slips, by name alone
    parsed = parse({**others, **plain}, allow_imports=True)
    if parsed.misspelt:
        raise DefinitionError(parsed.misspelt[0])
    try:
        key = blake2b(msgspec.msgpack.encode(parsed), digest_size=16)
    except UnicodeEncodeError as error:  # half of a character
        raise DefinitionError(f"the definition holds text that is none: {error}") from None
    key.update(msgspec.msgpack.encode((spec and spec.digest, pickled)))
    name = parsed.signature.name or parsed.program.rpartition(":")[2] or parsed.program_type
    schemas = any(isinstance(field.type, dict) for field in parsed.signature.inputs + parsed.signature.outputs)
    unproven = bool(parsed.imports or parsed.demos or schemas or pickled is not None or parsed.state is not None)
    return Defined(name, key.hexdigest(), DefinedProgram(plain, spec, pickled), unproven)


def _name_of(part: Any) -> str:
    return str(getattr(part, "__qualname__", None) or getattr(part, "name", None) or f"a {type(part).__qualname__}")


def kind_of(spec: DefinedProgram) -> str:
    """The kind of a definition that was read."""
    return str(spec.definition.get("program_type", "predict"))


def _saved(path: Path, allow_pickle: bool) -> tuple[Any, bytes | None]:
    """What a saved state's file holds: plain data, or the bytes of a pickle."""
    if path.is_dir():
        raise DefinitionError(
            f"the state {str(path)!r} is a whole program, saved with save_program=True: load it with dspy.load() and "
            f"pass the module"
        )
    if path.suffix not in (".json", ".pkl"):
        raise DefinitionError(f"the state {str(path)!r} must be a .json file that program.save() wrote")
    if path.suffix == ".pkl" and not allow_pickle:
        raise DefinitionError(
            f"the state {str(path)!r} is a pickle, which can run any code when it is loaded; where you trust it, "
            "create_program(..., allow_pickle=True) sends it to the workers"
        )
    try:
        data = path.read_bytes()
        return (msgspec.json.decode(data), None) if path.suffix == ".json" else (None, data)
    except (OSError, ValueError) as error:
        raise DefinitionError(f"the state {str(path)!r} can't be read: {type(error).__name__}: {error}") from None
