"""A program as plain data: what create_program takes, and the bridge's.

    {"signature": "question -> answer: int", or {"inputs": [{"name", "type"?, "description"?}, ...], "outputs": [...],
                  "name"?, "description"?},
     "program_type"?: one of KINDS, "instructions"?, "demos"?, "config"?, "state"?, and what the kind takes}

Rules:
    1. A definition may come from anywhere. Its types come from an allow-list (`field_types`): DSPy itself resolves a
       type's name by importing modules. Names that DSPy would drop or trip over are refused by name.
    2. What reaches beyond the definition, import paths, is taken only from a caller who is trusted: `allow_imports`. So
       are settings that could send a request, with its key, to another address.
    3. Unknown keys are ignored, as the original bridge did. One that is nearly a known one is named in `misspelt`:
       the library refuses it, since whoever wrote it is there to read that; a bridge says it in its log.
    4. A key of another kind ("tools" in a predict) is refused.

Pure: no dspy, no pydantic, no file is read.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec

from dspool.protocol.field_types import DefinitionError as DefinitionError, parse_type
from dspool.protocol.secrets import SECRET_FIELD

Kind = Literal["predict", "chain_of_thought", "react", "best_of_n", "program"]
InnerKind = Literal["predict", "chain_of_thought", "react", "program"]
KINDS: tuple[str, ...] = get_args(Kind)
MAX_FIELDS = 200
MAX_SIGNATURE_CHARS = 20_000
MAX_DEMOS = 1000
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

OWN_KEYS: dict[str, tuple[str, ...]] = {
    "predict": ("signature", "instructions", "demos", "config"),
    "chain_of_thought": ("signature", "instructions", "demos", "config"),
    "react": ("signature", "instructions", "tools", "max_iters"),
    "best_of_n": ("inner", "n", "reward", "threshold"),
    "program": ("signature", "program", "arguments"),
}
"""What each kind takes, beside COMMON_KEYS; best_of_n takes what its inner kind takes, too."""
COMMON_KEYS = ("program_type", "state", "lm")
_ID_KEYS = ("id", "program_id", "session_id", "name")
NEEDED = {"react": ("tools",), "best_of_n": ("n", "reward", "threshold"), "program": ("program",)}
"""Which of them a kind can't do without, beside the signature."""
_SAID = {"kind": "program_type", "type": "program_type", "module": "program", "outputs": "signature.outputs"}
"""Words that others use for a key, too far from it to be taken for a slip."""
_LIKE = 0.8

RESERVED_FIELDS = frozenset({"signature", "fields", "instructions", "input_fields", "output_fields", "model_config"})
"""They are parts of a signature's class."""
RESERVED_INPUTS = RESERVED_FIELDS | {"lm", "config", "demos", "new_signature", "self"}
"""dspy.Predict takes these for itself; a field of that name would never arrive."""
KIND_INPUTS = {
    "chain_of_thought": frozenset({"reasoning"}),
    "react": frozenset("reasoning trajectory next_thought next_tool_name next_tool_args max_iters module".split()),
}
KIND_OUTPUTS = {"react": frozenset({"trajectory"})}
"""What a kind adds to its signature, or takes for itself."""

_WRONG_TYPE = re.compile(r"Expected `([^`]+)`, got `([^`]+)` - at `\$\.?([^`]+)`")
_FIELD = re.compile(r"signature\.(inputs|outputs)\[(\d+|\.\.\.)\]")
SETTINGS = frozenset(
    "temperature max_tokens max_completion_tokens n top_p top_k stop seed presence_penalty frequency_penalty"
    " reasoning_effort rollout_id logprobs top_logprobs".split()
)
"""What a definition from outside may set of an LM's request: how it answers, never where it goes."""


class FieldDefinition(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output. `type`: a text or a JSON schema; see `field_types`. `desc` is DSPy's word for description."""

    name: str
    type: str | dict[str, Any] = "str"
    description: str | None = None
    desc: str | None = None


class SignatureDefinition(msgspec.Struct, frozen=True, omit_defaults=True):
    """Inputs and outputs, in the order in which they are shown to the LM."""

    inputs: list[FieldDefinition] = []
    outputs: list[FieldDefinition] = []
    name: str | None = None
    description: str | None = None


class Definition(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole definition, checked.

    Attributes:
        signature: inputs and outputs: "question -> answer: int", or an object with `inputs` and `outputs`, lists of
            {"name", "type"?, "description"?}, and its own `name` and `description`. With the kind program it is
            optional, and gives the outputs their types.
        program_type: the kind.
        instructions: what the LM is told to do; else the signature's description.
        demos: examples, a list of objects with values by field name.
        config: settings of the LM's requests, such as temperature. Keys are no settings: give the program an lm.
        state: what `program.save("....json")` wrote, as an object. A pool takes the path of the file, too.
        tools: import paths of functions that a react may call.
        max_iters: steps after which a react has to answer, 1 to 1,000; 20 unless it is given.
        inner: the kind that a best_of_n runs: any other one; predict unless it is given. Its own keys stand beside.
        n: attempts, 1 to 1,000.
        reward: import path of a function of the inputs (a dict) and the Prediction that gives a number.
        threshold: a reward that is good enough to stop.
        program: import path of a DSPy module, of its class, of a signature, or of a function that makes one.
        arguments: what the class or function is called with.
        misspelt: a sentence for each key that is nearly a known one; not a key itself.
    """

    signature: SignatureDefinition = SignatureDefinition()
    program_type: Kind = "predict"
    instructions: str | None = None
    demos: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    state: dict[str, Any] | None = None
    tools: list[str] = []
    max_iters: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    inner: InnerKind = "predict"
    n: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    reward: str = ""
    threshold: float = 0.0
    program: str = ""
    arguments: dict[str, Any] | None = None
    misspelt: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The kind, or what a best_of_n runs."""
        return self.inner if self.program_type == "best_of_n" else self.program_type

    @property
    def imports(self) -> list[str]:
        """Every import path in it."""
        return [path for path in (*self.tools, self.reward, self.program) if path]


def parse(data: Mapping[str, Any], *, allow_imports: bool = False) -> Definition:
    """A definition that has been checked.

    Args:
        data: it, as plain data. Its ids and its "lm" are the caller's business and not looked at.
        allow_imports: whether it comes from somebody who may have modules imported.

    Raises:
        DefinitionError: it says which part is wrong.
    """
    if not isinstance(data, Mapping):
        raise DefinitionError(f"a definition is an object, not {type(data).__name__}; JSON text has to be read first")
    given = {name: part for name, part in data.items() if name != "misspelt"}
    kind = given.get("program_type", "predict")
    if kind not in KINDS:
        raise DefinitionError(f"program_type {kind!r:.80} is unknown; there are {', '.join(KINDS)}")
    text = given.get("signature")
    if isinstance(text, str):
        given["signature"] = _of_text(text)
    try:
        definition = msgspec.convert(given, Definition)
    except msgspec.ValidationError as error:
        raise DefinitionError(f"the definition is not valid: {_told(error)}") from None
    misspelt = tuple(_misspelt(data))
    try:
        _check_keys(definition, given)
        _check_paths(definition, allow_imports)
        if definition.base != "program" or definition.signature.outputs:
            _check_signature(definition)
        _check_config(definition.config, allow_imports)
        _check_demos(definition)
    except DefinitionError as error:
        if not misspelt:
            raise
        raise DefinitionError(f"{error}; {misspelt[0]}") from None  # most likely it is why
    return msgspec.structs.replace(definition, misspelt=misspelt)


def _told(error: msgspec.ValidationError) -> str:
    """What msgspec says, with the place as the definition's author would name it."""
    found = _WRONG_TYPE.fullmatch(str(error))
    if found is None:
        return str(error)
    wanted, got, place = found.groups()
    example = ', as in {"name": "question", "type": "str"}' if _FIELD.fullmatch(place) else ""
    return f"{place} must be {wanted}{example}; it is {got}"


def shown_signature(signature: Any) -> Any:
    """A definition's signature for those who ask about the program: as it was given, without the keys that are ignored.

    Nobody has looked at those, and they may hold anything: an LM, with its key, that was meant to stand beside.
    """
    if not isinstance(signature, Mapping):
        return signature
    shown = {name: part for name, part in signature.items() if name in SignatureDefinition.__struct_fields__}
    for side in shown.keys() & {"inputs", "outputs"}:
        shown[side] = [
            {name: part for name, part in field.items() if name in FieldDefinition.__struct_fields__}
            for field in shown[side]
        ]
    return shown


def _of_text(text: str) -> dict[str, Any]:
    """A signature string as a definition's signature; its types as text, to be checked like any other."""
    sides = text.split("->")
    try:
        if len(text) > MAX_SIGNATURE_CHARS:
            raise SyntaxError(f"it is longer than {MAX_SIGNATURE_CHARS:,} characters")
        if len(sides) != 2:
            raise SyntaxError('it is written "input, ... -> output, ..."')
        return {"inputs": _fields_of(sides[0]), "outputs": _fields_of(sides[1])}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DefinitionError(f"the signature {text!r:.200} can't be read: {getattr(error, 'msg', error)}") from None


def _fields_of(side: str) -> list[dict[str, Any]]:
    function = ast.parse(f"def signature({side}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    if any((arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg, arguments.defaults)):
        raise SyntaxError("a field is written name or name: type")
    return [
        {"name": each.arg} | ({} if each.annotation is None else {"type": ast.unparse(each.annotation)})
        for each in arguments.args
    ]


def _check_keys(definition: Definition, given: Mapping[str, Any]) -> None:
    kinds = {definition.program_type, definition.base}
    for kind in sorted(kinds):
        for name in NEEDED.get(kind, ()):
            if name not in given:
                raise DefinitionError(f"a definition of the kind {kind} needs {name!r}")
    allowed = {name for kind in kinds for name in OWN_KEYS[kind]}
    every = {name for names in OWN_KEYS.values() for name in names}
    if foreign := [name for name in given if name in every and name not in allowed]:
        owners = " and ".join(kind for kind, names in OWN_KEYS.items() if foreign[0] in names)
        this = definition.program_type + (f" of {definition.inner}" if len(kinds) > 1 else "")
        why = "" if "program_type" in given else ", since it has no program_type"
        raise DefinitionError(f"{foreign[0]!r} belongs to {owners}; this is a {this}{why}")
    if definition.base != "program" and "signature" not in given:
        raise DefinitionError('the definition has no signature; it is written "question -> answer" or as an object')


def _check_paths(definition: Definition, allow_imports: bool) -> None:
    for path in definition.imports:
        if not IMPORT_PATH.fullmatch(path):
            raise DefinitionError(f"an import path is written package.module:attribute, not {path!r:.100}")
        if path.startswith("__main__:"):
            raise DefinitionError(f"{path!r} is in the script itself, which a worker does not import")
        if not allow_imports:
            raise DefinitionError(f"{path!r:.100} is an import path, and from here none is taken")
    if twice := sorted({path for path in definition.tools if definition.tools.count(path) > 1}):
        raise DefinitionError(f"a tool is named twice: {', '.join(twice)}")


def _check_signature(definition: Definition) -> None:
    signature = definition.signature
    if not signature.outputs:
        raise DefinitionError("the definition has no outputs; signature.outputs needs at least one field")
    if len(signature.inputs) + len(signature.outputs) > MAX_FIELDS:
        raise DefinitionError(f"the definition has more than {MAX_FIELDS} fields")
    inputs, outputs = [field.name for field in signature.inputs], [field.name for field in signature.outputs]
    check_names(inputs, outputs, definition.base)
    for field in signature.inputs + signature.outputs:
        try:
            parse_type(field.type, field.name)
        except DefinitionError as error:
            raise DefinitionError(f"the field {field.name!r}: {error}") from None


def check_names(inputs: list[str], outputs: list[str], kind: str = "predict") -> None:
    """Refuse field names that DSPy can't handle.

    Raises:
        DefinitionError: it names the field.
    """
    no_inputs = RESERVED_INPUTS | KIND_INPUTS.get(kind, frozenset())
    no_outputs = RESERVED_FIELDS | KIND_OUTPUTS.get(kind, frozenset())
    for side, names, reserved in (("input", inputs, no_inputs), ("output", outputs, no_outputs)):
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise DefinitionError(f"the {side} {name!r:.80} must have a name that Python can use")
            if name in reserved or name.startswith("_"):
                raise DefinitionError(f"the {side} name {name!r} is reserved by DSPy; choose another")
    every = inputs + outputs
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise DefinitionError(f"two fields have the same name: {', '.join(twice)}")


def _check_config(config: Mapping[str, Any], allow_imports: bool) -> None:
    for name in config:
        if SECRET_FIELD.search(name):
            raise DefinitionError(f"config[{name!r:.40}] is an LM's own; give the program an lm with it")
        if not allow_imports and name not in SETTINGS:
            known = ", ".join(sorted(SETTINGS))
            raise DefinitionError(f"config[{name!r:.40}] is not taken from here; there are {known}")


def _check_demos(definition: Definition) -> None:
    if len(definition.demos) > MAX_DEMOS:
        raise DefinitionError(f"there are {len(definition.demos):,} demos; at most {MAX_DEMOS:,} are taken")
    inputs = {field.name for field in definition.signature.inputs}
    outputs = {field.name for field in definition.signature.outputs}
    if definition.base == "chain_of_thought":
        outputs.add("reasoning")
    for number, demo in enumerate(definition.demos):
        if unknown := [name for name in demo if name not in inputs | outputs | {"augmented"}]:
            known = ", ".join(sorted(inputs | outputs))
            raise DefinitionError(f"demos[{number}] has {unknown[0]!r:.40}, which is no field; there are {known}")
        if not demo.keys() & outputs or (inputs and not demo.keys() & inputs):
            raise DefinitionError(f"demos[{number}] needs an input and an output at least, or DSPy drops it")


def _misspelt(data: Mapping[str, Any]) -> list[str]:
    """A sentence for each unknown key that is like a known one: the definition's own, its signature's, its fields'."""
    own = [*COMMON_KEYS, *_ID_KEYS, *dict.fromkeys(name for names in OWN_KEYS.values() for name in names)]
    found = [_slip(name, own, "", _SAID) for name in data]
    signature = data.get("signature")
    if isinstance(signature, Mapping):
        found += [_slip(name, SignatureDefinition.__struct_fields__, "signature.", {}) for name in signature]
        for side in ("inputs", "outputs"):
            for number, field in enumerate(signature.get(side, ())):
                where = f"signature.{side}[{number}]."
                found += [_slip(name, FieldDefinition.__struct_fields__, where, {}) for name in field]
    return [sentence for sentence in found if sentence]


def _slip(name: Any, known: list[str] | tuple[str, ...], where: str, said: Mapping[str, str]) -> str:
    if name in known or not isinstance(name, str):
        return ""
    likely = [said[name]] if name in said else difflib.get_close_matches(name, known, n=1, cutoff=_LIKE)
    return f"{where + name!r:.80} is no key of a definition; did you mean {likely[0]!r}?" if likely else ""
