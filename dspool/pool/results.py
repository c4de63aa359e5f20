"""What a caller gets for a worker's response: a value, a dspy.Prediction, or a ProgramError.

Rules:
    1. Plain data comes through the pipe. Types are revived only from signatures that are held here: a worker can't make
       the manager import or build anything.
    2. An output whose type is not known, or whose value doesn't fit it, is given as the plain data it is.
    3. dspy is imported here, and only for a response that is a Prediction.
    4. A ProgramError's message says which program failed, where, why, and what to do; the program's own message is in
       it, and the rest in its fields.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from dspool.errors import ProgramError
from dspool.pool.forms import output_fields
from dspool.pool.identity import loaded_dspy
from dspool.pool.programs import Program
from dspool.protocol.annotations import annotation
from dspool.protocol.definitions import parse
from dspool.protocol.field_types import parse_type
from dspool.protocol.messages import DefinedProgram, ErrorInfo, ImportedProgram, Response, SignatureProgram
from dspool.protocol.modules import modules_in
from dspool.protocol.values import revive
from dspool.signals import let_through

_making = threading.Lock()
NOT_RUN = frozenset({"invalid_args", "load_error", "program_missing", "unknown_command"})
"""Codes of errors that were found before the program was called."""


def result_of(program: Program, response: Response) -> Any:
    """The result of a successful response.

    Args:
        program: what was run.
        response: the worker's; its result is {"value": ...} or {"outputs": {...}}.

    Returns:
        The value; or a dspy.Prediction with its outputs as the types that the program's signature declares, whose
        get_lm_usage() gives the tokens used by model.
    """
    result = response.result
    if not isinstance(result, dict) or "outputs" not in result:
        return result.get("value") if isinstance(result, dict) else result
    from dspy import Prediction

    outputs: dict[str, Any] = result["outputs"]
    fields = program.fields
    if fields is None:
        fields = _fields_of(program)
    if fields:
        outputs = {name: revive(value, fields[name]) if name in fields else value for name, value in outputs.items()}
    prediction = Prediction(outputs)
    if response.usage is not None:
        prediction.set_lm_usage(response.usage)
    return prediction


def _fields_of(program: Program) -> dict[str, Any]:
    """The output types of a program that is sent as text. Remembered, but for a module that may yet be imported."""
    match program.spec:
        case SignatureProgram(signature=text):
            program.fields = _fields_of_text(text)
        case DefinedProgram(definition=definition):
            with _making:  # two callers at once get one and the same class
                if program.fields is None:
                    program.fields = _fields_of_definition(definition)
        case ImportedProgram(path=path):
            target = _imported(path)
            if target is None:
                return {}
            program.fields = _fields_of_object(target)
        case _:
            program.fields = {}
    return program.fields


def _fields_of_definition(definition: dict[str, Any]) -> dict[str, Any]:
    """The worker made its own models of the same schemas; the caller gets instances of these."""
    import dspy  # noqa: F401  what makes types of a definition's looks it up

    outputs = parse(definition, allow_imports=True).signature.outputs
    return {field.name: annotation(parse_type(field.type, field.name)) for field in outputs}


def _fields_of_text(text: str) -> dict[str, Any]:
    """As the worker reads it, and from nothing but the text: no variables of the caller's."""
    import dspy

    try:
        signature = dspy.Signature(text, custom_types={})
    except Exception as error:  # it could not have run; whatever came is given as it came
        let_through(error)
        return {}
    return {name: field.annotation for name, field in signature.output_fields.items()}


def _imported(path: str) -> Any:
    """What an import path names, if its module is loaded here."""
    module, _, attribute = path.partition(":")
    target: Any = sys.modules.get(module)
    for name in attribute.split("."):
        target = getattr(target, name, None)
    return target


def _fields_of_object(target: Any) -> dict[str, Any]:
    if isinstance(target, type):
        if not issubclass(target, loaded_dspy("Signature")):
            return {}
        return {name: field.annotation for name, field in target.output_fields.items()}  # type: ignore[attr-defined]
    return output_fields(modules_in(target)) if isinstance(target, loaded_dspy("Module")) else {}


def program_error(program: Program, info: ErrorInfo, *, pool: str, worker_id: int) -> ProgramError:
    """The error of a failed response, for one caller to raise.

    Args:
        program: what was run.
        info: what the worker said.
        pool: the pool's name.
        worker_id: the worker that ran it; it is healthy.
    """
    where = f"pool {pool!r}, worker {worker_id}: {program.label}"
    return ProgramError(
        f"{where} {_SAYINGS.get(info.code, _failed)(info)}",
        code=info.code,
        type=info.type,
        mro=info.mro,
        remote_traceback=info.traceback,
        retryable=info.retryable,
        status=info.status,
        retry_after_s=info.retry_after_s,
        details=info.details,
    )


def _cause(info: ErrorInfo) -> str:
    kind = info.type.removeprefix("builtins.")
    return f"{kind}: {info.message}" if kind else info.message or info.code


def _failed(info: ErrorInfo) -> str:
    if "No LM is loaded" in info.message:  # DSPy's advice, dspy.configure, is not what helps in a pool
        return "found no LM. Pass lm= to the pool or to the call, or call it inside dspy.context(lm=...)"
    return f"raised {_cause(info)}"


def _invalid_args(info: ErrorInfo) -> str:
    lists = {name: ", ".join(map(repr, info.details.get(name) or ())) for name in ("missing", "unknown", "expected")}
    wrong = [f"{name} {lists[name]}" for name in ("missing", "unknown") if lists[name]]
    takes = (
        f"It takes {lists['expected']}." if "expected" in info.details and lists["expected"] else "It takes no inputs."
    )
    if "expected" not in info.details:
        takes = ""
    return f"was not run, its inputs don't fit: {'; '.join(wrong) or info.message}. {takes}".rstrip()


def _lm_error(info: ErrorInfo) -> str:
    if info.details.get("lm_code") == "throttled":  # by the pool itself, which says what to do
        return f"did not ask its LM: {info.message}"
    status = f" (status {info.status})" if info.status is not None else ""
    if info.status in (401, 403) or info.details.get("lm_code") in _KEY_CODES or "API key not valid" in info.message:
        advice = _KEY_ADVICE
    elif "LLM Provider NOT provided" in info.message:
        advice = _PROVIDER_ADVICE
    elif not info.retryable:
        advice = "The same call would fail again: see to the key, the model's name or the request."
    elif info.retry_after_s is not None:
        advice = f"The provider asks to try again after {info.retry_after_s:g} s."
    else:
        advice = "The same call may succeed later."
    return _advised(f"got an error from its LM{status}: {_cause(info)}", advice)


_KEY_CODES = ("auth", "not_configured")
"""DSPy's own codes of a key that was refused, and of one that is missing."""
_KEY_ADVICE = (
    "The same call would fail again: set the provider's key in the workers' environment (env= of the pool, or before "
    "it is opened), or give the LM an api_key."
)
_PROVIDER_ADVICE = (
    'The same call would fail again. An LM is written "provider/model", as in "openai/gpt-4o-mini", with a provider '
    'that DSPy or LiteLLM knows; a server of your own that speaks OpenAI\'s protocol is "openai/NAME" with api_base.'
)


def _parse_error(info: ErrorInfo) -> str:
    advice = "The answer is in details['lm_response']; another try, model or adapter may give a readable one"
    return _advised(f"could not read its LM's answer: {_cause(info)}", advice)


def _advised(told: str, advice: str) -> str:
    """What was said, and what to do: in its own line after a text of several, such as DSPy's lists of remedies."""
    told = told.rstrip()
    return f"{told}\n{advice}" if "\n" in told else f"{told.removesuffix('.')}. {advice}"


_IMPORT_ADVICE = (
    ". Workers import from the sys.path, the folder and the environment that this process had at open(); reload() "
    "replaces them, one by one, with workers that have those of now"
)


def _not_loaded(info: ErrorInfo) -> str:
    imports = "builtins.ImportError" in (info.type, *info.mro)
    return _cause(info) + (_IMPORT_ADVICE if imports else "")


def _load_error(info: ErrorInfo) -> str:
    return f"can't be loaded in the worker, and was not run: {_not_loaded(info)}"


def load_error(program: Program, info: ErrorInfo, *, pool: str, worker_id: int) -> ProgramError:
    """The error of a program that a worker could not load when it was to be registered."""
    error = program_error(program, info, pool=pool, worker_id=worker_id)
    error.args = (
        f"pool {pool!r}: the program {program.label!r} was not registered, since worker {worker_id} can't load it: "
        f"{_not_loaded(info)}",
    )
    return error


def _encode_error(info: ErrorInfo) -> str:
    return f"ran, but {info.message}. Let it return plain data, models or a dspy.Prediction"


def _too_large(info: ErrorInfo) -> str:
    return f"ran, but {info.message}. Let it return less, or raise max_frame_bytes"


def _not_plain(info: ErrorInfo) -> str:
    return f"ran, but {info.message}"


def _invalid_fields(info: ErrorInfo) -> str:
    return f"was not run: {info.message}. Name them in fields="


def _call_not_loaded(info: ErrorInfo) -> str:
    return f"was not called: the call can't be unpickled in the worker: {info.message}"


_SAYINGS: dict[str, Callable[[ErrorInfo], str]] = {
    "invalid_args": _invalid_args,
    "lm_error": _lm_error,
    "adapter_parse_error": _parse_error,
    "load_error": _load_error,
    "encode_error": _encode_error,
    "result_too_large": _too_large,
    "not_plain": _not_plain,
    "invalid_fields": _invalid_fields,
    "call_not_loaded": _call_not_loaded,
}
