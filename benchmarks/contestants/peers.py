"""The peers, each set up as its own documentation advises for many small calls to warm workers.

A peer is imported when it takes part, by name: none of them has to be installed. Those that let us choose start their
workers with "spawn", because forking a process in which threads run is what they warn against; how workers were started
makes no difference to a call. Where starts are measured (starts.py), each is also given its fastest way.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from benchmarks.contestants.contestant import AsyncCall, Blocking, Contestant, InLoop, Program
from benchmarks.contestants.programs import echo

TIMEOUT_S = 120.0
"""Each call's deadline, where a peer has one: dspool's default."""
Initializer = Callable[[], None] | None


@dataclass(frozen=True)
class Peer:
    """One of the others.

    Attributes:
        name: as it is shown.
        module: what has to be installed.
        open: opens it with so many workers and gives its Contestant.
        heavy: whether it takes many seconds to open and close; most quick runs leave such out.
    """

    name: str
    module: str
    open: Callable[..., AbstractContextManager[Contestant]]
    heavy: bool = False

    @property
    def installed(self) -> bool:
        """Whether it can take part."""
        return importlib.util.find_spec(self.module) is not None


@contextmanager
def _process_pool_executor(
    workers: int, initializer: Initializer = None, method: str = "spawn"
) -> Iterator[Contestant]:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=initializer) as executor:
        yield Blocking("ProcessPoolExecutor", "peer", lambda program, value: executor.submit(program, value).result())


@contextmanager
def _multiprocessing_pool(workers: int, initializer: Initializer = None, method: str = "spawn") -> Iterator[Contestant]:
    context = multiprocessing.get_context(method)
    with context.Pool(workers, initializer) as pool:
        yield Blocking("multiprocessing.Pool", "peer", lambda program, value: pool.apply(program, (value,)))
        pool.close()


@contextmanager
def _pebble(workers: int, initializer: Initializer = None, method: str = "spawn") -> Iterator[Contestant]:
    pebble: Any = importlib.import_module("pebble")
    context = multiprocessing.get_context(method)
    pool = pebble.ProcessPool(max_workers=workers, context=context, initializer=initializer)
    with pool:

        def call(program: Program, value: Any) -> Any:
            return pool.schedule(program, args=[value], timeout=TIMEOUT_S).result()

        yield Blocking("pebble", "peer", call, kills=True)
        pool.stop()
        pool.join()


@contextmanager
def _loky(workers: int, initializer: Initializer = None) -> Iterator[Contestant]:
    loky: Any = importlib.import_module("loky")
    executor = loky.ProcessPoolExecutor(max_workers=workers, timeout=None, initializer=initializer)
    try:
        yield Blocking("loky", "peer", lambda program, value: executor.submit(program, value).result())
    finally:
        executor.shutdown(wait=True, kill_workers=True)


@contextmanager
def _mpire(workers: int) -> Iterator[Contestant]:
    mpire: Any = importlib.import_module("mpire")
    with mpire.WorkerPool(n_jobs=workers, start_method="spawn", keep_alive=True) as pool:
        submitting = threading.Lock()  # its pool starts its workers with the first call, and is not made for two

        def call(program: Program, value: Any) -> Any:
            with submitting:
                pending = pool.apply_async(program, (value,))
            return pending.get()

        yield Blocking("mpire", "peer", call)


@contextmanager
def _trio_parallel(workers: int) -> Iterator[Contestant]:
    trio: Any = importlib.import_module("trio")
    trio_parallel: Any = importlib.import_module("trio_parallel")

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncCall]:
        limiter = trio.CapacityLimiter(workers)
        async with trio_parallel.open_worker_context(idle_timeout=600) as context:

            async def call(program: Program, value: Any) -> Any:
                with trio.fail_after(TIMEOUT_S):
                    return await context.run_sync(program, value, kill_on_cancel=True, limiter=limiter)

            yield call

    with InLoop("trio-parallel", "peer", opened, "trio", kills=True).running() as contestant:
        yield contestant


@contextmanager
def _anyio_to_process(workers: int) -> Iterator[Contestant]:
    anyio: Any = importlib.import_module("anyio")
    importlib.import_module("anyio.to_process")

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncCall]:
        limiter = anyio.CapacityLimiter(workers)

        async def call(program: Program, value: Any) -> Any:
            with anyio.fail_after(TIMEOUT_S):
                return await anyio.to_process.run_sync(program, value, cancellable=True, limiter=limiter)

        yield call

    with InLoop("anyio.to_process", "peer", opened, "asyncio", kills=True).running() as contestant:
        yield contestant


_GUNICORN_SETTINGS = """\
bind = "unix:{folder}/http.sock"
workers = 1
loglevel = "warning"
worker_tmp_dir = "{folder}"
control_socket = "{folder}/control.sock"
chdir = "{root}"
dirty_apps = ["{app}"]
dirty_workers = {workers}
dirty_threads = 1
dirty_timeout = {timeout_s:.0f}

def on_dirty_starting(arbiter):
    with open("{folder}/socket.part", "w") as file:
        file.write(arbiter.socket_path)
    import os
    os.rename("{folder}/socket.part", "{folder}/socket")
"""


@contextmanager
def _gunicorn(workers: int) -> Iterator[Contestant]:
    """A whole gunicorn; its dirty workers are called with its own client, one per thread as it advises.

    The client is used in this process, where gunicorn would use it in its HTTP workers.
    """
    dirty: Any = importlib.import_module("gunicorn.dirty")
    client_module: Any = importlib.import_module("gunicorn.dirty.client")
    from benchmarks.contestants.gunicorn_app import PATH

    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.py"
        root = Path(__file__).parents[2]
        text = _GUNICORN_SETTINGS.format(folder=folder, root=root, app=PATH, workers=workers, timeout_s=TIMEOUT_S)
        settings.write_text(text)
        command = [sys.executable, "-m", "gunicorn", "-c", str(settings), "benchmarks.contestants.gunicorn_app:nothing"]
        server = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
        try:
            socket_file = Path(folder) / "socket"
            deadline = time.monotonic() + 30
            while not socket_file.exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    raise RuntimeError(f"gunicorn did not start: {server.communicate()[1][-500:]}")
                time.sleep(0.02)
            client_module.set_dirty_socket_path(socket_file.read_text())

            def call(program: Program, value: Any) -> Any:
                client = dirty.get_dirty_client(timeout=TIMEOUT_S)
                return client.execute(PATH, "run", program.__name__, value)

            while True:
                try:
                    call(echo, None)
                    break
                except dirty.DirtyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield Blocking("gunicorn dirty workers", "peer", call)
        finally:
            client_module.close_dirty_client()
            server.terminate()
            try:
                server.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


class _Runner:
    """A Ray actor."""

    def __init__(self, initializer: Initializer) -> None:
        if initializer is not None:
            initializer()

    def run(self, program: Program, value: Any) -> Any:
        return program(value)


@contextmanager
def _ray(workers: int, initializer: Initializer = None) -> Iterator[Contestant]:
    """Actors, each called in turn."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = importlib.import_module("ray")
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        actor_class = ray.remote(num_cpus=1)(_Runner)
        actors = [actor_class.remote(initializer) for _ in range(workers)]
        turns = itertools.count()

        def call(program: Program, value: Any) -> Any:
            return ray.get(actors[next(turns) % workers].run.remote(program, value), timeout=TIMEOUT_S)

        yield Blocking("Ray actors", "peer", call, kills=True)
    finally:
        ray.shutdown()


@contextmanager
def _dask(workers: int, preload: str | None = None) -> Iterator[Contestant]:
    """A LocalCluster of processes with one thread each; the client talks to the workers directly."""
    distributed: Any = importlib.import_module("distributed")
    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            memory_limit=0,
            **({"preload": preload} if preload else {}),
        ) as cluster,
        distributed.Client(cluster, direct_to_workers=True) as client,
    ):
        yield Blocking("dask", "peer", lambda program, value: client.submit(program, value, pure=False).result())


PEERS = (
    Peer("multiprocessing.Pool", "multiprocessing", _multiprocessing_pool),
    Peer("ProcessPoolExecutor", "concurrent.futures", _process_pool_executor),
    Peer("anyio.to_process", "anyio", _anyio_to_process),
    Peer("trio-parallel", "trio_parallel", _trio_parallel),
    Peer("pebble", "pebble", _pebble),
    Peer("loky", "loky", _loky),
    Peer("mpire", "mpire", _mpire),
    Peer("gunicorn dirty workers", "gunicorn.dirty", _gunicorn, heavy=True),
    Peer("Ray actors", "ray", _ray, heavy=True),
    Peer("dask", "distributed", _dask, heavy=True),
)


def quiet() -> None:
    """Keep remarks about this machine, and about workers that are killed on purpose, out of the tables."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("distributed", "ray", "dask"):
        with suppress(ValueError):
            logging.getLogger(name).setLevel(logging.CRITICAL)
