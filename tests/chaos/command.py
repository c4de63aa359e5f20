"""`python -m tests.chaos`: run scenarios one after the other, and print what they found as one table."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click
import structlog

from tests.chaos import catalogue, report
from tests.chaos.finding import Finding, Plan, Size

INTERRUPTED = 130
STUCK_AFTER_S = {Size.SHORT: 120, Size.CHAOS: 600, Size.SOAK: 7200}

HELP = """\
\b
Does to real pools what may happen to them, and says what was lost and what was left.

\b
  python -m tests.chaos                          every scenario, short
  python -m tests.chaos kill_storm --size soak   one of them, at full length
  python -m tests.chaos --seed 7 --json out.json
  make chaos            all of them in a minute or two; make chaos ONLY="kill_storm recycles" SEED=7
  make soak             all of them with the numbers of docs/explanation/reliability.md

\b
Scenarios:
{scenarios}

\b
Columns of the table:
  done       what was done, and how often
  lost       what must never happen: answers lost, doubled, given to the wrong caller, ...
  left       what must not stay: processes, zombies, file descriptors, threads, temporary files
  measured   times and sizes; a goal that was missed is named below the scenario and fails nothing: the
             machine may be busy

The exit code is 1 when anything was lost or left, 130 when it was interrupted: then the table holds what had been
found, and nothing is left running. A seed repeats what is chosen, not the machine's timing. Needs Linux.
"""


def _help() -> str:
    width = max(map(len, catalogue.names()))
    lines = [f"  {name:<{width}}  {catalogue.gist(name)}" for name in catalogue.names()]
    return HELP.format(scenarios="\n".join(lines))


@click.command(help=_help())
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="What random choices are drawn from."
)
@click.option(
    "--size",
    type=click.Choice([size.value for size in Size]),
    default=Size.SHORT.value,
    show_default=True,
    help="short: a few seconds each; chaos: a minute or two in all; soak: the full numbers.",
)
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the findings there."
)
def main(scenarios: tuple[str, ...], seed: int, size: str, path: Path | None) -> None:
    """See HELP."""
    try:
        names = catalogue.chosen(scenarios)
    except KeyError as error:
        known = ", ".join(catalogue.names())
        raise click.UsageError(f"there is no scenario {error.args[0]!r}; there are {known}") from None
    if sys.platform != "linux":
        raise click.UsageError("the scenarios need Linux: they look into /proc")
    # A run that kills workers by the hundred would bury its own progress in warnings about them.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    findings: list[Finding] = []
    interrupted = False
    try:
        with _terminated_as_interrupted():
            for name in names:
                findings.append(run(name, seed, Size(size)))
    except KeyboardInterrupt:
        interrupted = True
        click.echo("interrupted", err=True)
    if findings:
        click.echo(report.table(findings))
    if path is not None:
        path.write_text(json.dumps([report.plain(finding) for finding in findings], indent=1) + "\n", encoding="utf-8")
    sys.exit(INTERRUPTED if interrupted else int(any(finding.failed for finding in findings)))


def run(name: str, seed: int, size: Size) -> Finding:
    """Run one scenario, with its progress on stderr. One that is stuck ends the process, with every stack on stderr."""
    began = time.monotonic()
    say = _progress(name, began)
    say("begun")
    faulthandler.dump_traceback_later(STUCK_AFTER_S[size], exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        finding = catalogue.scenario(name)(Plan(seed=seed, size=size, say=say))
    finally:
        faulthandler.cancel_dump_traceback_later()
    _echo(name, began, report.verdict([finding]).partition(": ")[2])
    return finding


def _progress(name: str, began: float) -> Callable[[str], None]:
    """A function that says a line on stderr, at most one a second."""
    last = 0.0

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last = time.monotonic()
            _echo(name, began, line)

    return say


def _echo(name: str, began: float, line: str) -> None:
    click.echo(f"{time.monotonic() - began:7.1f} s  {name}: {line}", err=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: with everything closed."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
