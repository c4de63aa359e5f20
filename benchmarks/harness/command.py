"""A benchmark's run from its options to the files it leaves, the same for every script.

A script says what it measures (rows), what those are held against (goals) and how they are drawn (figures). The rest,
options, placements, tables, JSON, is here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import click

from benchmarks.harness.goals import Goal
from benchmarks.harness.machine import machine, versions
from benchmarks.harness.placement import Placement, run_in_each
from benchmarks.harness.plots import Figure, draw
from benchmarks.harness.tables import table

Scale = Literal["full", "quick", "smoke"]
Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"

SHARED_HELP = """
\b
Files: NAME.json with machine, versions, every row and the goals, and a PNG for each question, in
  benchmarks/results/           for --scale full, the results that are kept
  benchmarks/results/SCALE/     for the others, which git ignores

\b
Scales:
  full    minutes; what may be published
  quick   seconds; whether something is broken, or a change worth a full run
  smoke   as little as possible; what the tests run

The goals at the end say what is promised, what was measured, and whether it holds. A missed goal is no error: the exit
code is 0, unless --strict. Peers come from the extra `peers`, which `make bench` installs into .venv-bench; one that
isn't installed is named in the output and left out.
"""


@dataclass
class Run:
    """What the measurements of one placement are told, and where they leave what they find.

    Attributes:
        scale: how long to measure.
        placement: where all processes are.
        peers: whether others take part.
        only: parts of names; where there are any, only contestants with such a name take part. Floors always do.
        start_methods: how dspool's workers are started.
        notes: what the reader of the figures has to know: who is missing, and why.
    """

    scale: Scale
    placement: Placement
    peers: bool
    only: tuple[str, ...]
    start_methods: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def note(self, text: str) -> None:
        """Say it now, and keep it for the files."""
        if text not in self.notes:
            self.notes.append(text)
            click.echo(f"note: {text}")

    def progress(self, text: str) -> None:
        """Say on stderr what is being done."""
        click.echo(f"  {time.monotonic() - self._began:6.1f} s  {text}", err=True)

    def wants(self, name: str) -> bool:
        """Whether a contestant takes part."""
        return not self.only or any(part.lower() in name.lower() for part in self.only)


@dataclass(frozen=True)
class Benchmark:
    """One script.

    Attributes:
        name: its module below `benchmarks`, and its files' name.
        doc: its help.
        measure: does it, for one placement.
        show: the tables: title -> (rows, columns).
        goals: what it promises, judged.
        figures: what is drawn.
        placements: where it is measured; `quick_placements` in a quick run.
    """

    name: str
    doc: str
    measure: Callable[[Run], list[Row]]
    show: Callable[[list[Row]], Mapping[str, tuple[Sequence[Row], Mapping[str, str]]]]
    goals: Callable[[list[Row]], list[Goal]]
    figures: Callable[[list[Row]], list[Figure]]
    placements: tuple[Placement, ...] = ("pinned", "unpinned")
    quick_placements: tuple[Placement, ...] = ("pinned", "unpinned")


def command(benchmark: Benchmark) -> click.Command:
    """The script's command."""

    @click.command(name=benchmark.name, help=_help(benchmark.doc))
    @click.option(
        "--scale", type=click.Choice(get_args(Scale)), default="full", show_default=True, help="How long to measure."
    )
    @click.option("--quick", is_flag=True, help="The same as --scale quick.")
    @click.option("--peers/--no-peers", default=True, show_default=True, help="Whether others take part.")
    @click.option(
        "--only", multiple=True, metavar="NAME", help="Only contestants with this in their name; repeat for more."
    )
    @click.option(
        "--placement",
        type=click.Choice([*benchmark.placements, "all"]),
        default="all",
        show_default=True,
        help="pinned: every process on one core, what the code costs; unpinned: what a user sees.",
    )
    @click.option(
        "--start-method",
        "start_methods",
        multiple=True,
        metavar="METHOD",
        default=("template", "spawn"),
        show_default=True,
        help="How dspool starts workers, where that is what is measured; one that it doesn't know is skipped.",
    )
    @click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Where the files go."
    )
    @click.option("--plot/--no-plot", default=True, show_default=True, help="Whether to draw.")
    @click.option("--strict", is_flag=True, help="Exit with 1 when a goal is missed.")
    @click.option("--part", type=click.Path(path_type=Path), hidden=True)
    def run(
        *,
        scale: Scale,
        quick: bool,
        peers: bool,
        only: tuple[str, ...],
        placement: str,
        start_methods: tuple[str, ...],
        out: Path | None,
        plot: bool,
        strict: bool,
        part: Path | None,
    ) -> None:
        scale = "quick" if quick else scale
        if part is not None:
            where: Placement = "pinned" if placement == "pinned" else "unpinned"
            _measure_part(benchmark, Run(scale, where, peers, only, start_methods), part)
            return
        arguments = ["--scale", scale, "--peers" if peers else "--no-peers"]
        arguments += [word for name in only for word in ("--only", name)]
        arguments += [word for method in start_methods for word in ("--start-method", method)]
        usual = benchmark.quick_placements if scale == "quick" else benchmark.placements
        places = tuple(
            place for place in benchmark.placements if place == placement or (placement == "all" and place in usual)
        )
        _say_machine(benchmark.name)
        found = run_in_each(f"benchmarks.{benchmark.name}", arguments, places)
        folder = out or (RESULTS if scale == "full" else RESULTS / scale)
        goals = _report(benchmark, scale, found, folder)
        if plot:
            for line in draw(benchmark.figures(found["rows"]), folder):
                click.echo(line)
        if strict and any(goal.verdict == "missed" for goal in goals):
            sys.exit(1)

    return run


def _measure_part(benchmark: Benchmark, run: Run, part: Path) -> None:
    """One placement's measurements, in a process of its own."""
    click.echo(f"{benchmark.name}, {run.placement}:", err=True)
    rows = [{"placement": run.placement, **row} for row in benchmark.measure(run)]
    part.write_text(json.dumps({"rows": rows, "notes": run.notes}))


def _help(doc: str) -> str:
    """A script's docstring as click wants it: the first line whole, and commands, which are indented, as they are."""
    first, *rest = doc.strip().split("\n\n")
    paragraphs = [f"\b\n{text}" if text.startswith("  ") else text for text in rest]
    return "\n\n".join([f"\b\n{first}", *paragraphs]) + f"\n{SHARED_HELP}"


def _say_machine(name: str) -> None:
    facts = machine()
    virtual = ", virtual" if facts["virtual"] else ""
    click.echo(f"{name}: {facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB{virtual}")
    click.echo(f"{facts['system']}, {facts['python']}; " + ", ".join(f"{k} {v}" for k, v in versions().items()))


def _report(benchmark: Benchmark, scale: Scale, found: dict[str, list[Any]], folder: Path) -> list[Goal]:
    """Print the tables and the goals, and write the JSON file."""
    rows: list[Row] = found["rows"]
    for title, (shown, columns) in benchmark.show(rows).items():
        if shown:
            click.echo(f"\n{title}\n{table(shown, columns)}")
    goals = benchmark.goals(rows)
    headings = {"goal": "goal", "wanted": "wanted", "measured": "measured", "against": "against", "verdict": ""}
    click.echo(f"\ngoals\n{table([goal.row() for goal in goals], headings)}")
    if scale != "full":
        click.echo("These few samples say whether something is broken; whether a goal is met takes a full, quiet run.")
    for note in found["notes"]:
        click.echo(f"note: {note}")
    result = {
        "benchmark": benchmark.name,
        "scale": scale,
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "goals": [goal.row() for goal in goals],
        "notes": found["notes"],
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{benchmark.name}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    click.echo(f"\nwrote {path}")
    return goals
