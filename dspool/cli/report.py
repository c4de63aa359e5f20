"""What the demo shows at its end: answers, processes, figures. With rich where it is installed, else as plain lines."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from dspool.cli.terminal import width, wrapped
from dspool.types import PoolStats

if TYPE_CHECKING:
    from dspool.cli.demo import DemoRun

_SHOWN = 10
_TABLE_WIDTH = 72
"""Below it the columns would hold a word each."""
_WHY_IDEMPOTENT = (
    "Its call was lost with it. The demo's map says idempotent=True, because reading a topic twice does no harm: so "
    "the call was sent again, to another worker. Without that dspool never sends a call twice, for it can't know what "
    "the first one did; the row would have raised WorkerLost."
)
_NOTHING_LOST = "It had just answered, so no call was in it."


def show(run: DemoRun, stats: PoolStats, *, show_all: bool) -> None:
    """Everything, on stdout."""
    answers = run.in_order()
    shown = answers if show_all else answers[:_SHOWN]
    click.echo()
    _table(shown)
    if len(shown) < len(answers):
        click.echo(f"... and {len(answers) - len(shown)} more; --all shows them")
    click.echo()
    for paragraph in _told(run, stats):
        click.echo(wrapped(paragraph, indent=" " * 10))


def as_json(run: DemoRun, stats: PoolStats) -> str:
    """The same for programs."""
    from dspool.protocol.values import to_json

    return json.dumps(
        {
            "answers": [to_json(answer) for answer in run.in_order()],
            "lost": run.lost,
            "processes": dict(_processes(run)),
            "killed_pid": run.killed_pid,
            "took_s": round(run.took_s, 3),
            "stats": to_json(stats),
        },
        indent=2,
        ensure_ascii=False,
    )


def _told(run: DemoRun, stats: PoolStats) -> list[str]:
    answered, total = len(run.answers), len(run.rows)
    told = [f"Answers   {answered} of {total}" + (f"; LOST: {', '.join(run.lost)}" if run.lost else ", none lost")]
    told[0] += f", in {run.took_s:.1f} s ({answered / run.took_s:.0f} a second)" if run.took_s else ""
    told.append("From      " + "; ".join(f"process {pid}: {count}" for pid, count in _processes(run).items()))
    if run.killed_pid is not None:
        told.append(f"Killed    process {run.killed_pid}. " + (_WHY_IDEMPOTENT if stats.retries else _NOTHING_LOST))
    ends = ", ".join(f"{count} {reason}" for reason, count in stats.exits.items())
    told += [
        f"Calls     {stats.calls_ok} ok, {stats.calls_failed} failed; {stats.retries} sent again",
        f"Workers   {stats.started} started, {stats.replaced} replaced" + (f"; ended: {ends}" if ends else ""),
        f"Queue     {_times(stats.queue_wait_s_sum, stats.granted, stats.queue_wait_s_max)}",
        f"Run       {_times(stats.run_s_sum, stats.calls_ok + stats.calls_failed, stats.run_s_max)}",
    ]
    return told


def _times(sum_s: float, count: int, max_s: float) -> str:
    return f"{1000 * sum_s / max(1, count):.1f} ms a call, {1000 * max_s:.1f} ms at most"


def _processes(run: DemoRun) -> dict[int, int]:
    return dict(sorted(Counter(answer.worker_pid for answer in run.answers.values()).items()))


def _table(answers: list[Any]) -> None:
    if width() < _TABLE_WIDTH:
        _plain_table(answers)
        return
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _plain_table(answers)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("process", justify="right", no_wrap=True)
    table.add_column("title", ratio=2)
    table.add_column("summary", ratio=5)
    table.add_column("keywords", ratio=2)
    for answer in answers:
        table.add_row(*_cells(answer))
    Console(width=width(), highlight=False, markup=False).print(table)


def _plain_table(answers: list[Any]) -> None:
    for answer in answers:
        pid, title, summary, keywords = _cells(answer)
        click.echo(wrapped(f"{title} (process {pid})"))
        for text in (summary, keywords):
            click.echo(wrapped(text, first="    ", indent="    "))


def _cells(answer: Any) -> tuple[str, str, str, str]:
    summary = textwrap.shorten(str(answer.summary), 100, placeholder=" ...")
    return str(answer.worker_pid), str(answer.title), summary, ", ".join(answer.keywords)
