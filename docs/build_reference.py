"""Writes docs/reference/ from the code: options, errors, events, commands, checks, the bridge, public names.

    python docs/build_reference.py            write the pages
    python docs/build_reference.py --check    say which pages differ from what the code gives, and fail

What a page says of an option, an error, a command or a method is its docstring's or its help's own text, so this is
the place to change how pages look, and the code the place to change what they say. A test runs the check.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

import dspool
from dspool import errors
from dspool.cli.commands import dspool as commands
from dspool.cli.exits import EXIT_CODES
from dspool.options import RANGES, PoolOptions, WorkerGroup
from dspool.pool.events import EVENTS, QUEUE_LENGTH
from dspool.protocol import definitions as grammar, field_types
from dspool.supervisor.environment import AT_OPEN, CHECKS, OF_INTERPRETER, QUICK
from dspool.types import (
    AnswerFigures,
    Check,
    CheckoutRequest,
    EnvironmentReport,
    ExitReport,
    HealthChange,
    LMUsage,
    PoolHealth,
    PoolStats,
    Remove,
    Skip,
    UsageStats,
    WorkerInfo,
)
from dspool.worker.bridge.options import make_parser
from dspool.worker.bridge.reference import CODES, COMMANDS, EXITS, Command

FOLDER = Path(__file__).parent / "reference"
MADE_BY = "<!-- Made by docs/build_reference.py from the code: change that, not this page. -->\n"
_FILLED_IN = {
    "name": "unique",
    "workers": "usable cores",
    "start_method": "template or spawn",
    "start_concurrency": "8, or usable cores",
}
_CODE_WIDTH = 100
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def pages() -> dict[str, str]:
    """File name -> text."""
    return {
        "options.md": options(),
        "errors.md": error_tree(),
        "events.md": events(),
        "definitions.md": definitions(),
        "cli.md": command_line(),
        "checks.md": checks(),
        "bridge.md": bridge(),
        "api.md": api(),
    }


# --- options ----------------------------------------------------------------------------------------------------------


def options() -> str:
    """PoolOptions and WorkerGroup as tables."""
    return "\n".join(
        [
            "# Options of a pool\n",
            MADE_BY,
            "Each is a keyword of `dspool.Pool` and `dspool.AsyncPool`, or a field of a `dspool.PoolOptions`. They are",
            "checked before any process is started: `OptionsError` names option, value and range. Units are in the",
            "names. How to choose the important ones is in",
            "[Choose workers and slots](../how-to/choose-workers-and-slots.md).\n",
            _table(PoolOptions, "Attributes", RANGES),
            "## Worker groups\n",
            "`workers=` may be a list of `dspool.WorkerGroup`, when a pool has workers of several kinds. Calls choose",
            "with `require=`.\n",
            _table(WorkerGroup, "Args", {}),
        ]
    )


def _table(cls: Any, section: str, ranges: dict[str, Any]) -> str:
    described = entries(cls.__doc__, section)
    lines = ["| option | default | values | |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls):
        values = str(ranges.get(field.name, ""))
        lines.append(f"| `{field.name}` | {_default(field)} | {values} | {described.pop(field.name)} |")
    if described:
        raise ValueError(f"{cls.__name__}'s docstring describes what it doesn't have: {', '.join(described)}")
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.name in _FILLED_IN and field.default in ("", None):
        return _FILLED_IN[field.name]
    if field.default is not dataclasses.MISSING:
        value = field.default
        if isinstance(value, int) and value >= 2**20 and value % 2**20 == 0:
            return f"{value // 2**20} MiB"
        return "none" if value in ((), frozenset()) else f"`{value!r}`"
    return "none" if field.default_factory is not dataclasses.MISSING else "required"


def entries(docstring: str | None, section: str) -> dict[str, str]:
    """Name -> text of a Google-style section."""
    text = inspect.cleandoc(docstring or "")
    body = text.partition(f"\n{section}:\n")[2]
    body = re.split(r"\n(?=\S)", body, maxsplit=1)[0]
    return {name.lstrip("*"): _escaped(_joined(found)) for name, found in _ENTRY.findall(body)}


def _joined(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


# --- errors -----------------------------------------------------------------------------------------------------------


def error_tree() -> str:
    """The hierarchy, and each class's own words."""
    doc = inspect.cleandoc(errors.__doc__ or "")
    tree = doc.partition("\n\n")[2].partition("\n\nRules:")[0]
    parts = [
        "# Errors\n",
        MADE_BY,
        "Everything that dspool raises on purpose is a `DspoolError`. A message names the pool, the worker and the",
        "numbers, and says what to do. What a dead worker means for a call is in",
        "[Delivery](../explanation/delivery.md).\n",
        "```text",
        inspect.cleandoc(tree),
        "```\n",
        "`retryable` says whether the same call may succeed later, as it is:\n",
        "| error | retryable |",
        "| --- | --- |",
    ]
    classes = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, errors.DspoolError)]
    for cls in classes:
        value = getattr(cls, "retryable", None)
        if "retryable" in inspect.signature(cls.__init__).parameters:
            parts.append(f"| `{cls.__name__}` | its attribute `retryable` says |")
        elif value is not None:
            parts.append(f"| `{cls.__name__}` | {'yes' if value else 'no'} |")
    parts.append("")
    for cls in classes:
        bases = " and a ".join(f"`{base.__name__}`" for base in cls.__bases__ if base is not Exception)
        parts += [f"## {cls.__name__}\n", *([f"Is a {bases}.\n"] if bases else []), _prose(cls.__doc__)]
    return "\n".join(parts)


def _prose(docstring: str | None) -> str:
    """A Google-style docstring as Markdown: sections become bold words and lists, examples code."""
    lines: list[str] = []
    for block in inspect.cleandoc(docstring or "").split("\n\n"):
        head, _, body = block.partition("\n")
        if re.fullmatch(r"(Args|Attributes|Raises|Returns|Cancellation|Source):", head):
            found = [(name, _joined(text)) for name, text in _ENTRY.findall(body)]
            items = [f"* `{name}`: {text}" for name, text in found] or [_joined(body)]
            lines += [f"**{head[:-1]}**\n", *items, ""]
        elif block.startswith("    "):
            lines += ["```python", textwrap.dedent(block), "```", ""]
        else:
            lines += [block, ""]
    return "\n".join(lines)


# --- events -----------------------------------------------------------------------------------------------------------


def events() -> str:
    """What a pool tells its on_event hook and its log."""
    parts = [
        "# Events\n",
        MADE_BY,
        "Each is a call `on_event(name, fields)` on a thread of its own, and a line of the log `dspool.pool`, with the",
        f"pool's name. A hook that raises or blocks harms nobody: up to {QUEUE_LENGTH:,} events wait for it, more are "
        "dropped.",
        "`report` is an [ExitReport](api.md); in the log it is its gist. A `pool.health` that says unhealthy is logged",
        "as a warning.\n",
        "| event | level | fields | |",
        "| --- | --- | --- | --- |",
    ]
    for name, kind in EVENTS.items():
        fields = ", ".join(f"`{field}`" for field in kind.fields) or "none"
        parts.append(f"| `{name}` | {kind.level} | {fields} | {_escaped(kind.text)} |")
    return "\n".join(parts) + "\n"


# --- definitions ------------------------------------------------------------------------------------------------------


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


# --- commands ---------------------------------------------------------------------------------------------------------


def command_line() -> str:
    """The commands with their options, and the exit codes."""
    parts = [
        "# The command line\n",
        MADE_BY,
        "Answers go to stdout or to the file that was named, everything else to stderr. An error is one paragraph;",
        "`--traceback` shows where it came from.\n",
        "## Exit codes\n",
        "| code | means |",
        "| --- | --- |",
        *(f"| {code.value} | {meaning} |" for code, meaning in EXIT_CODES.items()),
        "",
    ]
    for name, command in commands.commands.items():
        usage = " ".join(["dspool", name, "[OPTIONS]", *map(_metavar, _arguments(command))])
        parts += [f"## dspool {name}\n", f"```text\n{usage}\n```\n", _help(command), "| option | |", "| --- | --- |"]
        parts += [_option(option) for option in command.params if isinstance(option, click.Option)]
        parts.append("")
    return "\n".join(parts)


def _arguments(command: click.Command) -> list[click.Argument]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Argument)]


def _metavar(parameter: click.Parameter) -> str:
    return parameter.metavar or (parameter.name or "").upper()


def _help(command: click.Command) -> str:
    """The help text; what click is told not to wrap becomes a block."""
    parts = []
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        if block.startswith("\b\n"):
            lines = block.splitlines()[1:]
            if not lines[0].startswith(" "):
                parts.append(lines.pop(0) + "\n")
            parts.append("```text\n" + "\n".join(line.removeprefix("  ") for line in lines) + "\n```\n")
        else:
            parts.append(block + "\n")
    return "\n".join(parts)


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if isinstance(option.type, click.Choice):
        names += f" {' or '.join(map(str, option.type.choices))}"
    elif not (option.is_flag or option.count):
        names += f" {_metavar(option)}"
    default = f" [default: {option.default}]" if option.show_default else ""
    return f"| {names} | {_escaped(option.help or '')}{default} |"


# --- checks -----------------------------------------------------------------------------------------------------------


def checks() -> str:
    """What `dspool doctor`, check_environment() and open() look at."""
    parts = [
        "# Checks of the environment\n",
        MADE_BY,
        "`dspool doctor` and `dspool.check_environment` make all of them, in this order. `open()` makes those that say",
        "so: where one fails it raises the error that is named, and what else it finds it tells as the event",
        "`pool.environment`. How to read them is in [Check the environment](../how-to/check-the-environment.md).\n",
        "| check | looks at | needs | at `open()` |",
        "| --- | --- | --- | --- |",
    ]
    for name, kind in CHECKS.items():
        needs = "nothing" if name in QUICK else "the interpreter" if name in OF_INTERPRETER else "started workers"
        parts.append(f"| `{name}` | {_escaped(kind.text)} | {needs} | {_at_open(name)} |")
    return "\n".join(parts) + "\n"


def _at_open(name: str) -> str:
    if name not in AT_OPEN:
        return ""
    error = AT_OPEN[name]
    return "told" if error is None else f"`{error.__name__}`"


# --- the bridge -------------------------------------------------------------------------------------------------------


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
        parts.append(f"| `{action.option_strings[0]}`{value} | {_escaped(action.help or '')} |")
    parts += ["\n## Commands\n", _BRIDGE_COMMANDS]
    for command in COMMANDS:
        parts.append(_bridge_command(command))
    parts += ["## Error codes\n", "| code | means |", "| --- | --- |"]
    parts += [f"| `{code}` | {_escaped(meaning)} |" for code, meaning in CODES.items()]
    parts += ["\n## Exit codes\n", "| code | means |", "| --- | --- |"]
    parts += [f"| {code} | {_escaped(meaning)} |" for code, meaning in EXITS.items()]
    parts.append(_BRIDGE_END)
    return "\n".join(parts)


def _bridge_command(command: Command) -> str:
    parts = [f"### {command.name}\n", command.text + "\n"]
    if command.args:
        parts += ["| argument | |", "| --- | --- |"]
        for argument in command.args:
            parts.append(
                f"| `{argument.name}`{' (optional)' if argument.optional else ''} | {_escaped(argument.text)} |"
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


# --- public names -----------------------------------------------------------------------------------------------------


def api() -> str:
    """Pool, AsyncPool, the leases and the structs."""
    parts = [
        "# Public names\n",
        MADE_BY,
        "All of them are in `dspool`. `dspool.Pool` is for threads, `dspool.AsyncPool` for asyncio and trio: the same",
        "names, arguments, values and errors, awaited. [Options](options.md) and [errors](errors.md) have pages of",
        "their own.\n",
    ]
    for cls in (dspool.Pool, dspool.AsyncPool, dspool.Lease, dspool.AsyncLease, dspool.Executor):
        parts += [f"## {cls.__name__}\n", _prose(cls.__doc__)]
        for name, member in public_members(cls).items():
            parts += [_signature(cls, name, member), _prose(_callable(member).__doc__)]
    parts += ["## check_environment\n", _function(dspool.check_environment), _prose(dspool.check_environment.__doc__)]
    parts.append("## Structs\n\nFrozen; what a method returned doesn't change afterwards.\n")
    snapshots = (WorkerInfo, PoolStats, UsageStats, LMUsage, PoolHealth, HealthChange, AnswerFigures, ExitReport)
    for struct in (*snapshots, EnvironmentReport, Check, CheckoutRequest, Remove, Skip):
        fields = [f"{name}: {kind}" for name, kind in struct.__annotations__.items()]
        parts += [f"### {struct.__name__}\n", _prose(struct.__doc__), "```python", *fields, "```\n"]
    parts.append("`dspool.KEEP` is the third verdict of a `check` hook, beside `Remove(reason)` and `Skip(reason)`.\n")
    return "\n".join(parts)


def public_members(cls: type) -> dict[str, Any]:
    """Methods and properties without an underscore, in the order of the source, inherited ones last."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__[:-1]:
        for name, member in vars(owner).items():
            if not name.startswith("_") and (isinstance(member, property) or inspect.isfunction(member)):
                found.setdefault(name, member)
    return found


def _callable(member: Any) -> Any:
    return member.fget if isinstance(member, property) else member


def _signature(cls: type, name: str, member: Any) -> str:
    returns = inspect.signature(_callable(member)).return_annotation
    block = f"```python\n{name}: {returns}\n```\n" if isinstance(member, property) else _function(member)
    return f"### {cls.__name__}.{name}\n\n{block}"


def _function(function: Any) -> str:
    """A function's signature as a block of code."""
    signature = inspect.signature(function)
    parts, returns = _parameters(signature), signature.return_annotation
    head = ("async def " if inspect.iscoroutinefunction(function) else "def ") + function.__name__
    shown = f"{head}({', '.join(parts)}) -> {returns}"
    if len(shown) > _CODE_WIDTH:
        shown = "\n".join([f"{head}(", *(f"    {part}," for part in parts), f") -> {returns}"])
    return f"```python\n{shown}\n```\n"


def _parameters(signature: inspect.Signature) -> list[str]:
    """As they stand in the source, without self."""
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(re.match(r"\*(?!\*)", part) for part in parts):
            parts.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        if parameter.kind is parameter.VAR_POSITIONAL:
            stars = "*"
        default = parameter.default
        ending = "" if default is parameter.empty else f" = {'...' if default is ... else repr(default)}"
        parts.append(f"{stars}{parameter.name}: {parameter.annotation}{ending}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            parts.append("/")
    return parts


def main() -> int:
    """Write the pages, or with --check compare them."""
    differ = [name for name, text in pages().items() if _read(FOLDER / name) != text]
    if "--check" in sys.argv[1:]:
        for name in differ:
            print(f"docs/reference/{name} is not what the code gives; run: python docs/build_reference.py")
        return 1 if differ else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
