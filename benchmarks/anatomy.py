"""Where the time of one call goes: stage by stage, in microseconds, bytecodes and Python functions.

  python -m benchmarks.anatomy
  python -m benchmarks.anatomy --calls 10000 --functions

One caller, one worker, both on one core. Times are medians, taken with a clock before and after each stage, which adds
some 0.2 us to each. Bytecodes and functions are counted in a call of their own, under a tracer: they are the same on
every machine, and where a context switch leaves the interpreter cold they are what a call costs. The worker's are
counted over the worker's own code in this process.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

import dspool
from benchmarks.contestants.programs import echo
from benchmarks.harness.placement import placed
from benchmarks.harness.tables import table
from dspool.pool import polling
from dspool.pool.core.commands import Checkout
from dspool.pool.slot_pipe import SlotPipe
from dspool.protocol.messages import BootConfig, ExecuteArgs, SignatureProgram
from dspool.protocol.requests import encode_request, stamp
from dspool.protocol.secrets import Secrets
from dspool.worker.calls import Calls, Slot
from dspool.worker.loop import Pipe, serve
from dspool.worker.main_thread import MainThread
from dspool.worker.programs import CallableProgram, Loader, ProgramTable

VALUE = {"question": "What is 2+2?", "context": "x" * 60}
"""About 100 bytes once encoded."""
STAGES = {
    "prepare": "prepare: resolve the program, encode the inputs, make deadlines absolute",
    "checkout": "checkout: one step of the core",
    "look": "look at the pipe: one poll",
    "ask": "ask: stamp, and one send, in which the worker may begin at once",
    "wait": "wait: one poll; the worker's work",
    "answer": "answer: one recv, decode",
    "checkin": "checkin: one step of the core",
    "finish": "finish: the response as a value",
    "between": "between the stages: the generators, holding the pipe, Ctrl-C held back",
}
PARTS = {
    "dspool.pool.front": "prepare and finish",
    "dspool.pool.programs": "prepare and finish",
    "dspool.pool.results": "prepare and finish",
    "dspool.pool.blocking": "prepare and finish",
    "dspool.protocol": "encode and decode",
    "dspool.pool.slot_pipe": "the pipe",
    "dspool.pool.core": "the core",
    "dspool.pool.driver": "the lock and the hand-over",
    "dspool.pool": "the call's way and its waits",
    "dspool.worker": "the worker",
}


def timed(calls: int) -> list[dict[str, Any]]:
    """Rows of medians by stage."""
    marks: list[tuple[str, int]] = []
    clock = time.perf_counter_ns

    def marking(function: Callable[..., Any], stage: Callable[..., str]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                marks.append((stage(*args), clock() - began))

        return run

    rounds: list[Counter[str]] = []
    with placed("pinned"), dspool.Pool(workers=1) as pool, patched(pool, marking):
        for number in range(calls + 500):
            marks.clear()
            began = clock()
            pool.run(echo, {"value": VALUE})
            whole = clock() - began
            spent: Counter[str] = Counter()
            for stage, took in marks:
                spent[stage] += took
            spent["between"] = whole - spent.total()
            if number >= 500:
                rounds.append(spent)
    medians = {stage: statistics.median(each[stage] for each in rounds) / 1000 for stage in STAGES}
    whole_us = statistics.median(each.total() for each in rounds) / 1000
    return [
        *({"stage": STAGES[stage], "us": us} for stage, us in medians.items()),
        {"stage": "the whole call (median)", "us": whole_us},
    ]


@contextmanager
def patched(pool: dspool.Pool, marking: Callable[[Any, Callable[..., str]], Any]) -> Any:
    """Each stage takes the time while the context lasts."""
    driver = pool._driver
    places: list[tuple[Any, str, Callable[..., str]]] = [
        (pool, "_prepare", lambda *_: "prepare"),
        (pool, "_finish", lambda *_: "finish"),
        (driver, "step", lambda command: "checkout" if isinstance(command, Checkout) else "checkin"),
        (SlotPipe, "look", lambda *_: "look"),
        (SlotPipe, "ask", lambda *_: "ask"),
        (SlotPipe, "answer", lambda *_: "answer"),
        (polling, "_poll", lambda *_: "wait"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, stage in places:
        setattr(owner, name, marking(getattr(owner, name), stage))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


class Tracer:
    """Counts bytecodes and calls of Python functions by (module, function)."""

    def __init__(self) -> None:
        self.bytecodes: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    def count(self, function: Callable[[], object]) -> None:
        """Run it under the tracer."""
        sys.settrace(self._enter)
        try:
            function()
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        key = frame.f_globals.get("__name__", "?"), frame.f_code.co_qualname
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.calls[key] += 1

        def inside(frame: FrameType, event: str, argument: Any) -> Any:
            self.bytecodes[key] += event == "opcode"
            return inside

        return inside

    def minus(self, other: Tracer) -> Tracer:
        """What this one counted beyond the other."""
        rest = Tracer()
        rest.bytecodes, rest.calls = self.bytecodes - other.bytecodes, self.calls - other.calls
        return rest


def counted_here() -> Tracer:
    """One call, on the manager's side."""
    tracer = Tracer()
    with dspool.Pool(workers=1) as pool:
        for _ in range(200):
            pool.run(echo, {"value": VALUE})
        tracer.count(lambda: pool.run(echo, {"value": VALUE}))
    return tracer


def counted_there() -> Tracer:
    """One call, on the worker's side: three requests less two."""
    loader = Loader(BootConfig(0, "anatomy"), Secrets())
    programs = ProgramTable(lambda spec: CallableProgram(echo, loader), 64)
    programs.create("echo", SignatureProgram(""))
    slot = Slot(Calls(programs, MainThread(), Secrets()))
    frame = encode_request("execute_program", ExecuteArgs("echo", {"value": VALUE}), 2**20, deadline=True)
    stamp(frame, 1, 30.0)

    def serve_requests(count: int) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(frame * count)
            ours.shutdown(socket.SHUT_WR)
            serve(Pipe.over_socket(theirs), slot.answer, slot.answered)

    serve_requests(100)
    two, three = Tracer(), Tracer()
    two.count(lambda: serve_requests(2))
    three.count(lambda: serve_requests(3))
    return three.minus(two)


def part_of(module: str, *, worker: bool) -> str:
    """Which part of the program a module is; all that a worker runs is the worker's."""
    if worker:
        return PARTS["dspool.worker"]
    found = [name for name in PARTS if module == name or module.startswith(name + ".")]
    return PARTS[max(found, key=len)] if found else "everything else"


@click.command(help=f"\b\n{__doc__}")
@click.option("--calls", default=3000, show_default=True, help="How many calls are timed.")
@click.option("--functions", is_flag=True, help="List every function, beside the parts.")
def main(calls: int, functions: bool) -> None:
    """Print the tables."""
    click.echo(table(timed(calls), {"stage": "stage", "us": "us"}))
    here, there = counted_here(), counted_there()
    parts: dict[str, dict[str, Any]] = {}
    for tracer, worker in ((here, False), (there, True)):
        for (module, name), bytecodes in tracer.bytecodes.items():
            part = part_of(module, worker=worker)
            row = parts.setdefault(part, {"part": part, "bytecodes": 0, "functions": 0})
            row["bytecodes"] += bytecodes
            row["functions"] += tracer.calls[module, name]
    rows = sorted(parts.values(), key=lambda row: -row["bytecodes"])
    total = {"part": "all", **{key: sum(row[key] for row in rows) for key in ("bytecodes", "functions")}}
    click.echo("\n" + table([*rows, total], {"part": "part", "bytecodes": "bytecodes", "functions": "functions"}))
    if functions:
        columns = {"function": "function", "bytecodes": "bytecodes", "calls": "calls"}
        for title, tracer in (("manager", here), ("worker", there)):
            named = [
                {"function": f"{module}.{name}", "bytecodes": bytecodes, "calls": tracer.calls[module, name]}
                for (module, name), bytecodes in tracer.bytecodes.most_common()
            ]
            click.echo(f"\n{title}\n" + table(named, columns))


if __name__ == "__main__":
    main()
