"""The field: opens everyone who takes part, one after the other, and leaves out who can't, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec

from benchmarks.contestants import pools
from benchmarks.contestants.contestant import Contestant, adopting
from benchmarks.contestants.meeting import meet
from benchmarks.contestants.peers import PEERS, quiet
from benchmarks.harness.command import Run
from benchmarks.harness.processes import descendants

Opening = tuple[str, Callable[[], AbstractContextManager[Contestant]]]
READY_TIMEOUT_S = 90.0


def floors(*openings: Callable[[], AbstractContextManager[Contestant]]) -> list[Opening]:
    """Floors take part always."""
    return [("", opening) for opening in openings]


def ours(run: Run, workers: int, backends: Sequence[str] = pools.BACKENDS) -> list[Opening]:
    """Pool, and AsyncPool on each backend that is installed."""
    openings: list[Opening] = [("Pool", partial(pools.pool, workers))]
    for backend in backends:
        if find_spec(backend) is None:
            run.note(f"AsyncPool, {backend}: left out, {backend} is not installed")
        else:
            openings.append((f"AsyncPool, {backend}", partial(pools.async_pool, workers, backend)))
    return [opening for opening in openings if run.wants(opening[0])]


def peers(run: Run, workers: int, *, heavy: bool = True) -> list[Opening]:
    """Those that are installed; those that take long to open only where `heavy` ones are wanted."""
    if not run.peers:
        run.note("peers: left out, as asked")
        return []
    openings: list[Opening] = []
    for peer in PEERS:
        if not run.wants(peer.name):
            continue
        if peer.heavy and not heavy:
            run.note(f"{peer.name}: left out of a quick run ({run.placement}), because it takes long to open")
        elif peer.installed:
            openings.append((peer.name, partial(peer.open, workers)))
        else:
            run.note(f"{peer.name}: left out, {peer.module.partition('.')[0]} is not installed or has no such part")
    return openings


@contextmanager
def gathered(run: Run, openings: Sequence[Opening], workers: int) -> Iterator[list[Contestant]]:
    """All of them open and warm: each has `workers` workers that have run a call."""
    quiet()
    with ExitStack() as stack:
        contestants = []
        for name, opening in openings:
            own = ExitStack()
            try:
                contestant = _opened(opening, own)
                run.progress(f"opening {contestant.name}")
                with adopting(contestant):
                    if contestant.kind != "floor":
                        meet(contestant.call, workers, READY_TIMEOUT_S)
            except Exception as error:
                own.close()
                run.note(f"{name or 'a floor'}: left out, it could not be opened: {type(error).__name__}: {error}")
                continue
            stack.push(own)
            contestants.append(contestant)
        yield contestants


def _opened(opening: Callable[[], AbstractContextManager[Contestant]], stack: ExitStack) -> Contestant:
    """Enter it; the processes that appear are its own."""
    before = descendants()
    contestant = stack.enter_context(opening())
    contestant.pids |= descendants() - before
    return contestant
