"""Commands, error codes and exit codes of the bridge as data: --help and docs/reference/bridge.md are made from it.

A test asks every command, provokes every code, and holds what comes against this.
"""

from __future__ import annotations

from typing import NamedTuple

from dspool.protocol.limits import EXIT_BROKEN_FRAME
from dspool.worker.ending import EXIT_SOFTWARE

EXIT_USAGE = 2
EXIT_IO_ERROR = 74
"""sysexits' EX_IOERR."""


class Argument(NamedTuple):
    """An argument of a command."""

    name: str
    text: str
    optional: bool = False


class Command(NamedTuple):
    """A command.

    Attributes:
        result: the keys of what it answers; none where they aren't the bridge's to name.
        codes: what it may be refused with, beside what any command may.
    """

    name: str
    text: str
    args: tuple[Argument, ...] = ()
    result: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()


_PROGRAM_ID = Argument("program_id", "the program; `id` is taken too")
_SESSION = Argument("session_id", "the session that asks", optional=True)
_DEFINITION = (
    Argument("id", "the program's id, 1 to 512 characters; `program_id` is taken too"),
    Argument("signature", "`{name?, description?, inputs: [{name, type?, description?}], outputs: [...]}`, or text"),
    Argument("program_type", "`predict` (default), `chain_of_thought`, `react`, `best_of_n`, `program`", optional=True),
    Argument("session_id", "whose program it is, with `--mode pool-worker`", optional=True),
    Argument("replace", "`true`: take the place of a program that has the id already", optional=True),
)
_LM_ARGS = (
    Argument("provider", "`gemini`, `openai`, `anthropic`, ...; not needed where `model` says it", optional=True),
    Argument("model", "as in `gpt-4o-mini` or `openai/gpt-4o-mini`"),
    Argument("api_key", "without it the provider's variable in the bridge's environment is used", optional=True),
    Argument("api_base", "the URL of a server of your own", optional=True),
    Argument("temperature", "passed on", optional=True),
    Argument("max_tokens", "passed on", optional=True),
)
_CREATE_CODES = (
    *("invalid_definition", "program_exists", "load_error", "limit_reached"),
    *("missing_key", "lm_config_error"),
)
_FIND_CODES = ("program_not_found", "ambiguous_program")
_CALL_CODES = (
    *_FIND_CODES,
    "lm_not_configured",
    "missing_key",
    "lm_config_error",
    "program_error",
    "lm_error",
    "adapter_parse_error",
    "encode_error",
    "result_too_large",
)

COMMANDS = (
    Command(
        "ping",
        "Whether it is there. Any args are taken; a client's first ping may be its handshake, with id 0.",
        result=("status", "timestamp", "worker_id", "pid", "uptime", "mode", "protocol_version", "dspy_version"),
    ),
    Command(
        "get_stats",
        "Counts since the start, or since reset_state; memory in bytes and percent.",
        result=(
            *("command_count", "error_count", "programs_count", "sessions_count", "uptime", "memory_usage"),
            *("dspy_available", "gemini_available", "dspy_version", "protocol_version"),
        ),
    ),
    Command(
        "configure_lm",
        "The LM of all programs that have none of their own, from the next call on. The provider is not called. A"
        " configuration that is refused leaves the one before in place.",
        _LM_ARGS,
        ("status", "model", "lm"),
        ("missing_key", "lm_config_error"),
    ),
    Command(
        "create_program",
        "Makes a program from a definition.",
        (
            *_DEFINITION,
            Argument("lm", "its own LM: `provider/model`, or an object of dspy.LM's arguments", optional=True),
        ),
        ("program_id", "status"),
        _CREATE_CODES,
    ),
    Command(
        "create_gemini_program",
        "The same on a `gemini/` model: the one named here, else the one that configure_lm named when it runs, else"
        " `gemini/gemini-2.5-flash` with the environment's `GEMINI_API_KEY`. Other settings without a model count on"
        " top of the model that is configured now, or of `gemini/gemini-2.5-flash`.",
        (*_DEFINITION, *(argument._replace(optional=True) for argument in _LM_ARGS)),
        ("program_id", "status"),
        _CREATE_CODES,
    ),
    Command(
        "execute_program",
        "Runs a program. The result is its outputs, each under its name; `result` holds what a program gives that has"
        " no outputs. `usage`, beside `result`, has the tokens by model. `deadline_ms`, beside `args`, bounds what"
        " requests to the LM may take. Without any LM and with `GEMINI_API_KEY` in the environment,"
        " `gemini/gemini-2.5-flash` becomes the configured one.",
        (
            _PROGRAM_ID,
            Argument("inputs", "an object with the program's inputs"),
            _SESSION,
            Argument("lm", "this call's LM, as in create_program", optional=True),
        ),
        codes=_CALL_CODES,
    ),
    Command(
        "execute_gemini_program",
        "The same, for what create_gemini_program has made.",
        (_PROGRAM_ID, Argument("inputs", "an object with the program's inputs"), _SESSION),
        codes=(*_CALL_CODES, "not_a_gemini_program"),
    ),
    Command(
        "list_programs",
        "The ids, oldest first: with a session those that it can use, else all.",
        (_SESSION,),
        ("programs",),
    ),
    Command(
        "get_program_info",
        "`signature` as it was sent; `created_at` and `last_executed` in seconds since the epoch. `model` is that of"
        " the program's own LM.",
        (_PROGRAM_ID, _SESSION),
        (
            *("id", "signature", "created_at", "execution_count", "last_executed"),
            *("program_type", "session_id", "model"),
        ),
        _FIND_CODES,
    ),
    Command("delete_program", "Forgets it.", (_PROGRAM_ID, _SESSION), ("program_id", "status"), _FIND_CODES),
    Command(
        "get_session_data",
        "The result is the session's data itself: an empty object, if nothing was kept.",
        (Argument("session_id", "the session"),),
    ),
    Command(
        "update_session_data",
        "Puts data beside what the session has; keys that it has are replaced.",
        (Argument("session_id", "the session"), Argument("data", "an object", optional=True)),
        ("status",),
        ("limit_reached",),
    ),
    Command(
        "cleanup_session",
        "Forgets a session's data and the programs that belong to it.",
        (Argument("session_id", "the session"),),
        ("status", "programs_removed"),
    ),
    Command(
        "reset_state",
        "Forgets programs, sessions and counts. The configured LM stays.",
        result=("status", "programs_cleared", "commands_reset", "errors_reset"),
    ),
    Command("cleanup", "Forgets all programs.", result=("status", "programs_removed")),
    Command("shutdown", "One answer, then exit 0. What was sent after it is not answered.", result=("status",)),
)

CODES: dict[str, str] = {
    "invalid_json": "the frame is no JSON, or holds NaN; `id` is null",
    "missing_id": "the request is no object or has no id; `id` is null",
    "invalid_id": "the id is no whole number from 0 to 2^63 - 1; `id` is null",
    "missing_command": "the request has no command",
    "invalid_command": "the command is no text, or empty",
    "missing_args": "the request has no args",
    "invalid_args": "args is no object, or holds something that the command doesn't take, or lacks what it needs; for"
    " inputs `details` has `expected`, `missing` and `unknown`",
    "unknown_command": "there is no such command",
    "invalid_definition": "no program can be made from the definition: no outputs, a type or a name that isn't allowed,"
    " a saved state of another program",
    "program_exists": "the id is taken",
    "program_not_found": "there is no program of that id, or it belongs to another session",
    "ambiguous_program": "several sessions have a program of that id, and the request names no session",
    "not_a_gemini_program": "it was made with create_program",
    "load_error": "the definition is right, and the program can't be built all the same: its code can't be imported, or"
    " raises",
    "limit_reached": "`--max-programs`, `--max-sessions` or `--max-stored-bytes`; `details` has the numbers",
    "missing_key": "the provider wants an API key, and there is none",
    "lm_config_error": "DSPy takes no such LM; the one before stays configured",
    "lm_not_configured": "a program has run without an LM",
    "program_error": "the program raised an exception; `type` and `traceback` say which and where",
    "lm_error": "the LM failed; `status`, `retry_after_s` and `retryable` say how",
    "adapter_parse_error": "what the LM said doesn't have the program's outputs; `details` has it",
    "encode_error": "the result is nothing that JSON can carry: NaN, an object",
    "result_too_large": "the answer is over `--max-frame-bytes`",
    "internal_error": "a fault in the bridge itself; please report it",
}

EXITS: dict[int, str] = {
    0: "after shutdown, when stdin has ended, and when nobody reads stdout any more",
    EXIT_USAGE: "wrong options, or stdin is closed or a terminal; the reason is on stderr",
    EXIT_SOFTWARE: "a fault in the bridge itself; its traceback is on stderr",
    EXIT_IO_ERROR: "stdin or stdout failed in another way than by ending",
    EXIT_BROKEN_FRAME: "a broken frame: a length over the cap, or an end in the middle; one line on stderr says which",
}
