"""One start from nothing, in a process of its own: `python -m benchmarks.contestants.start WHO WORKERS [--litellm]`.

A process of its own, because what makes a start fast (a fork server, a template, warm imports) would otherwise be there
already for the next one. It prints one JSON object: `ready_s` from the first line of the opening until all workers held
a call at once, `private_mb` and `proportional_mb` of each worker then.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import click

from benchmarks.contestants import peers, pools
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.meeting import meet
from benchmarks.contestants.programs import preload_dspy, preload_litellm
from benchmarks.harness.processes import memory_mb

Opening = Callable[[int], AbstractContextManager[Contestant]]
TIMEOUT_S = 300.0


def _pool(method: str, modules: tuple[str, ...]) -> Opening:
    return partial(pools.pool, start_method=method, preload=modules, start_timeout_s=TIMEOUT_S)


def _with_initializer(name: str, modules: tuple[str, ...], **options: Any) -> Opening:
    peer = next(peer for peer in peers.PEERS if peer.name == name)
    return partial(peer.open, initializer=preload_litellm if "litellm" in modules else preload_dspy, **options)


def _from_forkserver(name: str, modules: tuple[str, ...]) -> Opening:
    """The standard library's own template: a server that has imported what the workers need, and forks."""
    multiprocessing.set_forkserver_preload(["__main__", __name__, "benchmarks.contestants.programs", *modules])
    return _with_initializer(name, modules, method="forkserver")


OPENINGS: dict[str, Callable[[tuple[str, ...]], Opening]] = {
    "Pool, template": partial(_pool, "template"),
    "Pool, spawn": partial(_pool, "spawn"),
    "ProcessPoolExecutor, forkserver": partial(_from_forkserver, "ProcessPoolExecutor"),
    "multiprocessing.Pool, forkserver": partial(_from_forkserver, "multiprocessing.Pool"),
    "pebble, forkserver": partial(_from_forkserver, "pebble"),
    "ProcessPoolExecutor, spawn": partial(_with_initializer, "ProcessPoolExecutor"),
    "loky": partial(_with_initializer, "loky"),
    "Ray actors": partial(_with_initializer, "Ray actors"),
    "dask": lambda modules: partial(next(peer for peer in peers.PEERS if peer.name == "dask").open, preload=modules),
}
MODULES = {"Ray actors": "ray", "dask": "distributed", "loky": "loky", "pebble, forkserver": "pebble"}
"""What has to be installed for them; the others are always there."""


@click.command(help=__doc__)
@click.argument("who", type=click.Choice(list(OPENINGS)))
@click.argument("workers", type=click.IntRange(1, 1000))
@click.option("--litellm", is_flag=True, help="Import litellm too, as a model that needs it would.")
def main(who: str, workers: int, litellm: bool) -> None:
    peers.quiet()
    # dspool's workers have it anyway. Without it litellm asks the network for prices first: nobody's start is that.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"
    opening = OPENINGS[who](("dspy", "litellm") if litellm else ("dspy",))
    began = time.perf_counter()
    with opening(workers) as contestant:
        pids, ready = meet(contestant.call, workers, TIMEOUT_S)
        private, proportional = memory_mb(pids)
        found = {"ready_s": ready - began, "private_mb": private, "proportional_mb": proportional}
    click.echo(json.dumps(found))
