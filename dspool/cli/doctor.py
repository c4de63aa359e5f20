"""`dspool doctor`: what is wrong with a pool's environment, before it hurts."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import click

from dspool.cli.exits import ExitCode
from dspool.cli.programs import import_from_current_folder
from dspool.cli.settings import SILENT, TRACEBACK, Settings, pool_settings
from dspool.cli.terminal import wrapped

if TYPE_CHECKING:
    from dspool.types import Check, CheckStatus, EnvironmentReport

_HELP = """Look whether a pool with these options could do its work on this machine, and say what to do where it could
not: the workers' interpreter and its packages, keys, limits, DSPy's cache; and, by starting two workers and ending
them again, the template, the preload modules, and whether each PROGRAM loads. No program is run, no language model is
called, nothing is spent.

Give it the options that your pool has:

\b
  dspool doctor
  dspool doctor app.programs:qa --workers 32 --lm openai/gpt-4o-mini
  dspool doctor -O 'preload=["numpy"]' -O 'required_packages=["pandas>=2"]'
  dspool doctor -O python=/opt/app/bin/python

Each line is ok, warning or failed, with what was found and what to do. The exit code is 0 unless something failed; then
it is 3. In code, dspool.check_environment gives the same as an object.
"""
_COLOURS: dict[CheckStatus, str] = {"ok": "green", "warning": "yellow", "failed": "red"}
_STATUS_WIDTH, _NAME_WIDTH = 9, 15


@click.command(short_help="Say what is wrong with the environment, and what to do.", help=_HELP)
@click.argument("programs", nargs=-1, metavar="[PROGRAM]...")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object on stdout.")
@click.option(
    "--start/--no-start", default=True, help="Start workers for a trial, or look only at what needs no process."
)
@pool_settings(check_key=False)
def doctor(programs: tuple[str, ...], as_json: bool, start: bool, settings: Settings) -> int:
    """Say what is wrong with the environment."""
    import_from_current_folder()
    options = settings.with_defaults(verbose=SILENT).options_of_pool(name="doctor")
    from dspool.pool.environment import report_on

    if as_json:
        report = report_on(options, programs, start=start)
        click.echo(as_text(report))
    else:
        click.echo(f"A pool of {options.size} workers, slots={options.slots}, start method {options.start_method}:")
        with_details = bool(click.get_current_context().meta[TRACEBACK])
        report = report_on(options, programs, start=start, tell=partial(show, with_details=with_details))
        click.echo(summary(report))
    return ExitCode.OK if report.ok else ExitCode.ENVIRONMENT


def show(check: Check, *, with_details: bool) -> None:
    """One check as a line or a few."""
    told = f"{check.subject}: {check.reason}" if check.subject else check.reason
    margin = " " * (_STATUS_WIDTH + _NAME_WIDTH)
    lines = wrapped(f"{check.name:<{_NAME_WIDTH - 1}} {told}", first=" " * _STATUS_WIDTH, indent=margin)
    click.echo(styled(check.status) + lines[_STATUS_WIDTH:])
    if check.advice:
        click.echo(wrapped(f"-> {check.advice}", first=margin, indent=margin + "   "))
    if check.details and with_details:
        click.echo(textwrap.indent(check.details.rstrip(), margin))


def styled(status: CheckStatus) -> str:
    """The status in its colour, where stdout is a terminal (click strips it elsewhere) and NO_COLOR isn't set."""
    word = f"{status:<{_STATUS_WIDTH}}"
    return (
        word
        if os.environ.get("NO_COLOR")
        else click.style(word, fg=_COLOURS[status], bold=True if status == "failed" else None)
    )


def summary(report: EnvironmentReport) -> str:
    """The last lines: how many of each, and what was not looked at."""
    good = len(report.checks) - len(report.warnings) - len(report.failed)
    told = [f"{good} ok, {len(report.warnings)} {_plural('warning', report.warnings)}, {len(report.failed)} failed"]
    if report.skipped:
        told.append(wrapped(f"Not looked at: {', '.join(report.skipped)}", indent="  "))
    return "\n".join(told)


def as_text(report: EnvironmentReport) -> str:
    """The report as JSON."""
    import msgspec

    import dspool

    plain = {
        "dspool": dspool.__version__,
        "ok": report.ok,
        "warnings": len(report.warnings),
        "failed": len(report.failed),
        "checks": msgspec.to_builtins(report.checks),
        "skipped": list(report.skipped),
    }
    return json.dumps(plain, indent=2, ensure_ascii=False)


def _plural(noun: str, things: Iterable[object]) -> str:
    return noun if len(tuple(things)) == 1 else f"{noun}s"
