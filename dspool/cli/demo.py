"""`dspool demo`: real input, several processes, one of which is killed on the way, and no answer lost."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from dspool.cli.exits import ExitCode, ends_everything, exit_code_of, explain
from dspool.cli.settings import SILENT, Settings, pool_settings
from dspool.cli.terminal import wrapped
from dspool.cli.topics import MAX_CHARACTERS, topic_reader, topics

if TYPE_CHECKING:
    from dspool import Pool

PAUSE_S = 0.1
"""What a call of the offline LM waits, since a hosted model would take that long or longer."""
_ROWS_WHERE_PAID = 16

_HELP = f"""Read the topics of Python's own language reference with a typed DSPy program on four worker processes.
Half-way the demo kills one of them with SIGKILL, as the machine's memory guard would; the table at the end shows that
no answer is missing.

By default the answers come from an embedded offline LM, which quotes sentences and counts terms: no network, no key, no
cost. --lm uses a real one, for {_ROWS_WHERE_PAID} topics unless --rows says otherwise, and says how many calls that
makes.
"""


@click.command(short_help="See the pool at work, and a worker killed without losing an answer.", help=_HELP)
@click.option("--rows", "count", type=click.IntRange(1), metavar="N", help="How many topics. [default: all, about 80]")
@click.option("--kill/--no-kill", default=True, help="Kill a worker half-way, or leave them all alone.")
@click.option("--all", "show_all", is_flag=True, help="Show every answer in the table.")
@click.option("--json", "as_json", is_flag=True, help="Print answers and stats as JSON, and nothing else, on stdout.")
@pool_settings(check_key=True)
def demo(count: int | None, kill: bool, show_all: bool, as_json: bool, settings: Settings) -> int:
    """Show the pool at work."""
    from dspool.cli import report

    paid = settings.lm not in (None, "offline")
    rows = topics(count or (_ROWS_WHERE_PAID if paid else None), clip=paid)
    settings = settings.with_defaults(lm="offline", workers=4, verbose=SILENT)
    run = DemoRun(rows, kills=kill, tells=not as_json)
    for paragraph in _introduction(len(rows), settings, paid=paid, kill=kill):
        run.tell(paragraph)
    began = time.monotonic()
    with settings.make_pool(name="demo") as pool:
        pids = ", ".join(str(worker.pid) for worker in pool.workers())
        run.tell(f"Ready in {time.monotonic() - began:.1f} s: processes {pids}.")
        run.read_all(pool, topic_reader(0.0 if paid else PAUSE_S))
        pool.wait_ready()  # the killed worker's replacement, so that it is in the figures
        stats = pool.stats()
    if as_json:
        click.echo(report.as_json(run, stats))
    else:
        report.show(run, stats, show_all=show_all)
    return run.exit_code()


class DemoRun:
    """The answers as they come, and the worker that was killed.

    Args:
        rows: what is read.
        kills: whether a worker is killed half-way.
        tells: whether anything is said on stdout meanwhile.
    """

    def __init__(self, rows: list[dict[str, str]], *, kills: bool, tells: bool) -> None:
        self.rows = rows
        self.answers: dict[str, Any] = {}
        """Topic -> its answer."""
        self.errors: list[Exception] = []
        self.killed_pid: int | None = None
        self.took_s = 0.0
        self._kills = kills
        self._tells = tells
        self._answered_at: dict[int, float] = {}

    def tell(self, text: str) -> None:
        """Say something, unless stdout is for JSON alone."""
        if self._tells:
            click.echo(wrapped(text))

    def in_order(self) -> list[Any]:
        """The answers in the order of the rows."""
        return [self.answers[row["topic"]] for row in self.rows if row["topic"] in self.answers]

    @property
    def lost(self) -> list[str]:
        """Topics without an answer."""
        return [row["topic"] for row in self.rows if row["topic"] not in self.answers]

    def exit_code(self) -> ExitCode:
        """OK only if every topic has its answer."""
        if self.errors:
            click.echo(explain(self.errors[0]), err=True)
            return exit_code_of(self.errors[0])
        return ExitCode.WORKER_LOST if self.lost else ExitCode.OK

    def read_all(self, pool: Pool, program: Any) -> None:
        """Read every row; kill a worker when half of them are answered."""
        began = time.monotonic()
        results = pool.map(program, self.rows, ordered=False, return_exceptions=True, progress=True, idempotent=True)
        try:
            for result in results:
                self._take(result)
                if self._kills and self.killed_pid is None and 2 * len(self.answers) >= len(self.rows):
                    self._kill_a_worker(pool)
        finally:
            results.close()  # type: ignore[attr-defined]
        self.took_s = time.monotonic() - began

    def _take(self, result: Any) -> None:
        if isinstance(result, Exception):
            if ends_everything(result):
                raise result
            self.errors.append(result)
            return
        self.answers[result.topic] = result
        self._answered_at[result.worker_pid] = time.monotonic()

    def _kill_a_worker(self, pool: Pool) -> None:
        """Of the busy workers the one that answered last, half a call later: it is then in the middle of its next."""
        busy = {
            worker.pid: self._answered_at.get(worker.pid, 0.0)
            for worker in pool.workers()
            if worker.state == "busy" and worker.pid
        }
        if not busy:
            return
        victim = max(busy, key=lambda pid: busy[pid])
        if busy[victim]:
            time.sleep(PAUSE_S / 2)
        os.kill(victim, signal.SIGKILL)
        self.killed_pid = victim
        self.tell(
            f"{len(self.answers)} of {len(self.rows)} are answered. The demo now kills process {victim} with SIGKILL, "
            "in the middle of a call."
        )


def _introduction(count: int, settings: Settings, *, paid: bool, kill: bool) -> list[str]:
    told = [f"dspool demo: a DSPy program reads {count} topics of Python's own language reference in worker processes."]
    if paid:
        more = ", and one more for the call that is lost with its worker" if kill else ""
        model = settings.lm["model"] if isinstance(settings.lm, dict) else settings.lm
        told.append(
            f"LM: {model}. This makes {count} calls to it{more}. Each topic is cut after {MAX_CHARACTERS:,} characters."
        )
    else:
        told.append(
            "LM: the embedded offline LM. It is no language model: it quotes sentences and counts terms, and costs "
            f"nothing. Each call also waits {PAUSE_S:g} s, as a hosted model would make it wait."
        )
        told.append("A real one: dspool demo --lm gemini/gemini-2.5-flash")
    return [*told, f"Starting {settings.workers} workers, each a Python process that imports DSPy ..."]
