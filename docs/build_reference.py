"""Writes docs/reference/ from the code: options, errors, events, commands, checks, the bridge, public names.

    python docs/build_reference.py            write the pages
    python docs/build_reference.py --check    say which pages differ from what the code gives, and fail

What a page says of an option, an error, a command or a method is its docstring's or its help's own text, so this is
the place to change how pages look, and the code the place to change what they say. A test runs the check.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import click
from reference_api import api
from reference_bridge import bridge
from reference_definitions import definitions
from reference_text import MADE_BY, entries, escaped, prose

from dspool import errors
from dspool.cli.commands import dspool as commands
from dspool.cli.exits import EXIT_CODES
from dspool.lm_limits import LIMIT_RANGES, LMLimit
from dspool.options import RANGES, PoolOptions, WorkerGroup
from dspool.pool.events import EVENTS, QUEUE_LENGTH
from dspool.supervisor.environment import AT_OPEN, CHECKS, OF_INTERPRETER, QUICK

FOLDER = Path(__file__).parent / "reference"
_FILLED_IN = {
    "name": "unique",
    "workers": "usable cores",
    "start_method": "template or spawn",
    "start_concurrency": "8, or usable cores",
}


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
            "## Limits of LMs\n",
            "`lm_limits=` has a `dspool.LMLimit` for each model, or a dict with its arguments. See",
            "[Configure LMs](../how-to/configure-lms.md#rate-limits).\n",
            _table(LMLimit, "Args", LIMIT_RANGES),
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
        parts += [f"## {cls.__name__}\n", *([f"Is a {bases}.\n"] if bases else []), prose(cls.__doc__)]
    return "\n".join(parts)


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
        parts.append(f"| `{name}` | {kind.level} | {fields} | {escaped(kind.text)} |")
    return "\n".join(parts) + "\n"


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
    return f"| {names} | {escaped(option.help or '')}{default} |"


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
        parts.append(f"| `{name}` | {escaped(kind.text)} | {needs} | {_at_open(name)} |")
    return "\n".join(parts) + "\n"


def _at_open(name: str) -> str:
    if name not in AT_OPEN:
        return ""
    error = AT_OPEN[name]
    return "told" if error is None else f"`{error.__name__}`"


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
