"""The page of docs/reference/ about the bridge."""

from __future__ import annotations

from reference_text import MADE_BY, escaped

from dspool.worker.bridge.options import make_parser
from dspool.worker.bridge.reference import CODES, COMMANDS, EXITS, Command


def bridge() -> str:
    """The bridge's options, commands, error codes and exit codes."""
    parser = make_parser()
    parts = [
        "# The bridge\n",
        MADE_BY,
        f"`{parser.prog}`: DSPy behind stdin and stdout, for clients in any language.",
        "[Use it from Elixir](../how-to/use-from-elixir.md) shows a whole client; `--help` has one in Python.\n",
        _BRIDGE_FRAMES,
        "## Options\n",
        "| option | |",
        "| --- | --- |",
    ]
    for action in parser._actions[1:]:
        value = f" {' or '.join(action.choices)}" if action.choices else f" {action.metavar or ''}".rstrip()
        parts.append(f"| `{action.option_strings[0]}`{value} | {escaped(action.help or '')} |")
    parts += ["\n## Commands\n", _BRIDGE_COMMANDS]
    for command in COMMANDS:
        parts.append(_bridge_command(command))
    parts += ["## Error codes\n", "| code | means |", "| --- | --- |"]
    parts += [f"| `{code}` | {escaped(meaning)} |" for code, meaning in CODES.items()]
    parts += ["\n## Exit codes\n", "| code | means |", "| --- | --- |"]
    parts += [f"| {code} | {escaped(meaning)} |" for code, meaning in EXITS.items()]
    parts.append(_BRIDGE_END)
    return "\n".join(parts)


def _bridge_command(command: Command) -> str:
    parts = [f"### {command.name}\n", command.text + "\n"]
    if command.args:
        parts += ["| argument | |", "| --- | --- |"]
        for argument in command.args:
            parts.append(
                f"| `{argument.name}`{' (optional)' if argument.optional else ''} | {escaped(argument.text)} |"
            )
        parts.append("")
    if command.result:
        parts.append(f"Result: {', '.join(f'`{name}`' for name in command.result)}.\n")
    if command.codes:
        parts.append(f"Refused with {', '.join(f'`{code}`' for code in command.codes)}.\n")
    return "\n".join(parts)


_BRIDGE_FRAMES = """\
## Frames

A frame is a 4-byte big-endian length, then that many bytes: one JSON object in UTF-8. Requests come on stdin, and
each gets one answer on stdout, in the order of the requests; several may be waiting. They are carried out one after the
other.

```json
{"id": 1, "command": "ping", "args": {}, "timestamp": "2026-01-31T12:00:00Z"}
{"id": 1, "success": true, "result": {"status": "ok"}, "timestamp": 1769860800.0}
{"id": 1, "success": false, "error": "Program not found: qa", "timestamp": 1769860800.0,
 "error_info": {"code": "program_not_found", "message": "Program not found: qa",
                "type": "", "traceback": "", "retryable": false}}
```

`id` is a whole number from 0 to 2^63 - 1 and `args` an object; both are needed. `session_id`, `deadline_ms` and
`timestamp` may stand beside them. Keys and args that nobody knows are ignored. A frame whose body is no request is
answered too, with `id` null where it can't be read. `error_info` always has `code`, `type`, `traceback` and
`retryable`; `status`, `retry_after_s` and `details` where they are known. Numbers that JSON has no notation for, NaN
and infinities, are refused both ways.

What programs print goes to stderr, also from C and from processes that they start. Where stderr was merged into the
framed stdout it goes nowhere instead. A child that a program forks neither reads requests nor writes answers.
"""
_BRIDGE_COMMANDS = """\
Any of them may be refused with `invalid_args`, and with the codes of what is no request: `invalid_json`, `missing_id`,
`invalid_id`, `missing_command`, `invalid_command`, `missing_args`, `unknown_command`. What a program's definition may
have beside its signature, the types of fields among it, is in [Definitions](definitions.md); what names code by its
import path needs `--allow-imports`.
"""
_BRIDGE_END = """
SIGTERM ends it at once, in the middle of a call too. SIGINT is ignored: Ctrl-C goes to all of a terminal's foreground
processes, and the bridge ends when its client does. A call that is under way when nobody reads stdout any more has one
second left.
"""
