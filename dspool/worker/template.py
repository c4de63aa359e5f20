"""The template: a warm process with one thread, from which workers are forked.

Entry: python -P -m dspool.worker.template --control FD --lifeline FD --dump FD

    1. It begins as a worker does: own session, own lifeline, default signals, stack dumps.
    2. It is told what to import (Prepare), imports and warms it, and freezes what it has by then: the garbage collector
       never writes to those objects again, so workers share their memory.
    3. It forks a worker for each Fork, whose descriptors come with it, and says its pid and pidfd.
    4. It reaps them, kills what is left of their group and of what escaped from it, and says how they ended.

Rules:
    1. One thread, always; before each fork fork_rules.py is asked. It makes no network call and doesn't open DSPy's
       disk cache: what it had open, all workers would share.
    2. It alone reaps. A dead worker is a zombie until its group is killed, so that its number can be nobody else's.
    3. Orphans of a living worker become that worker's children, so what the template adopts has escaped from a dead
       one, and is killed.
    4. A worker that is forked owns nothing of the template: it closes what the template opened for itself, and only
       that, for an object that believes in its descriptor's number would close somebody else's later.
    5. When its control socket ends it is done, once its workers and what it adopted are dead. It kills no worker: each
       has a lifeline of its own.
    6. Once it is prepared, the end of its lifeline wakes it instead of killing it, unless it forks just then. The
       manager is dead and so are the workers, by their own lifelines; what escaped from them is adopted, killed, and
       waited for, LAST_S at most.

Knows of workers how to begin one, and how it ended.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import importlib.util
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from dspool.protocol.codec import MSGPACK
from dspool.protocol.frames import HEADER_BYTES
from dspool.protocol.importing import this_is_a_worker
from dspool.protocol.limits import EXIT_BOOT_ERROR
from dspool.protocol.messages import HANDSHAKE_ID, PROTOCOL_VERSION, BootConfig, LMSpec, Request
from dspool.protocol.records import (
    DescriptorsLost,
    Exited,
    Fork,
    Forked,
    Importing,
    Prepare,
    Prepared,
    Record,
    Refused,
    Unprepared,
    receive_record,
    send_record,
)
from dspool.protocol.secrets import Secrets
from dspool.worker.boot import Worker, read_config, set_sys_path
from dspool.worker.failures import describe
from dspool.worker.fork_rules import broken_rule
from dspool.worker.import_paths import import_preload
from dspool.worker.lifeline import (
    adopt_orphans,
    begin_child,
    harden_lifeline,
    has_ended,
    libc,
    reset_signals,
    soften_lifeline,
)
from dspool.worker.stdio import fill_stdio, flush_stdio, own_stdio

LAST_S = 0.5
"""How long a template outlives its manager at most."""
_STDIO = (0, 1, 2)


class Template:
    """One template process. `run` serves it to its end.

    Args:
        control: the control socket's end.
        lifeline: its lifeline.
        dump: its file for stack dumps.
    """

    def __init__(self, control: socket.socket, lifeline: int, dump: int) -> None:
        self._control = control
        self._lifeline = lifeline
        self._sigchld_out, self._sigchld_in = os.pipe()
        for fd in (self._sigchld_out, self._sigchld_in):
            os.set_blocking(fd, False)
        self._own_fds = frozenset({control.fileno(), lifeline, dump, self._sigchld_out, self._sigchld_in})
        self._workers: dict[int, int] = {}
        """pid -> fork_id."""
        self._secrets = Secrets()
        self._helpers: set[int] = set()
        """Children that a preload module left running."""
        self._adopted: set[int] = set()

    def run(self) -> NoReturn:
        """Prepare, then fork and reap until the control socket ends; in a forked worker, be that worker to its end."""
        received = receive_record(self._control)
        if received is not None and isinstance(received[0], Prepare):
            self._prepare(received[0])
            fds = self._serve()
            if fds is not None:
                self._become_worker(fds)
            self._sweep()
        flush_stdio()
        os._exit(0)

    # Preparing

    def _prepare(self, wanted: Prepare) -> None:
        template = os.getpid()
        try:
            culprit = prepare(wanted, self._broken_rule_at_first, lambda module: self._send(Importing(module)))
        except BaseException as error:
            if os.getpid() != template:
                os._exit(1)
            self._send(Unprepared(describe(error, "boot_error", Secrets.of_environment())))
            flush_stdio()
            os._exit(EXIT_BOOT_ERROR)
        if os.getpid() != template:  # forked by a preload module, and come back from there: two would answer as one
            flush_stdio()
            os._exit(0)
        libc().fflush(None)  # what C code has printed: each worker's exit would print it once more
        fill_stdio()
        signal.setitimer(signal.ITIMER_REAL, 0)  # of a time limit around an import; its end would be the template's
        self._helpers = _children()
        self._secrets = Secrets.of_environment()
        reset_signals(signal.valid_signals())  # a preload module may have set some
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written to the wake-up pipe
        signal.set_wakeup_fd(self._sigchld_in, warn_on_full_buffer=False)
        adopt_orphans()
        gc.collect()
        gc.freeze()
        unsafe = self._broken_rule_at_first()
        if unsafe and culprit:
            unsafe = f"{unsafe} (since the import of {culprit!r})"
        self._send(Prepared(_no_pidfds() or unsafe or ""))

    def _broken_rule_at_first(self) -> str | None:
        try:
            return broken_rule({*self._own_fds, *_STDIO})
        except OSError as error:
            return f"it can't be known whether it may be forked: {error}"

    # Serving

    def _serve(self) -> list[int] | None:
        """Fork and reap until the control socket ends.

        Returns:
            In a forked worker its descriptors, so that nothing of the template is on its stack; in the template None.
        """
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._sigchld_out, select.POLLIN)
        poller.register(self._lifeline, 0)
        soften_lifeline(self._lifeline)
        ended = False
        while not (ended and not self._workers):
            ready = {fd for fd, _ in poller.poll()}
            if self._lifeline in ready:
                self._end_with_manager()
            if self._sigchld_out in ready:
                os.read(self._sigchld_out, 4096)
                self._reap()
            if self._control.fileno() not in ready:
                continue
            try:
                received = receive_record(self._control)
            except DescriptorsLost as error:
                if isinstance(error.record, Fork):
                    self._send(Refused(error.record.fork_id, errno=errno.EMFILE))
                continue
            except ConnectionResetError:  # the manager went away with replies of ours unread
                received = None
            if received is None:
                poller.unregister(self._control)
                ended = True
            elif self._obey(*received):
                return received[1]
        return None

    def _obey(self, record: Record, fds: list[int]) -> bool:
        """Fork as asked. Whether this is the worker now.

        os.fork() runs what preload modules have registered for it, which may hang: the lifeline is hard meanwhile. It
        may have ended before, and nobody would be killed for that; so it is looked at once more.
        """
        assert isinstance(record, Fork)
        harden_lifeline(self._lifeline)
        if has_ended(self._lifeline):
            self._end_with_manager()
        if self._fork(record.fork_id, fds):
            return True
        soften_lifeline(self._lifeline)
        for fd in fds:
            os.close(fd)
        return False

    def _fork(self, fork_id: int, fds: list[int]) -> bool:
        """Fork, and say how that went. Whether this is the worker now."""
        try:
            unsafe = broken_rule({*self._own_fds, *_STDIO, *fds})
        except OSError as error:  # it passes, so this is no reason to spawn from now on
            self._send(Refused(fork_id, errno=error.errno or errno.EMFILE))
            return False
        if unsafe is not None:
            self._send(Refused(fork_id, unsafe=unsafe))
            return False
        flush_stdio()  # else a worker would write once more what the template's streams still hold
        try:
            pid = os.fork()
        except OSError as error:
            self._send(Refused(fork_id, errno=error.errno or errno.EAGAIN))
            return False
        if pid == 0:
            return True
        try:
            self._send_forked(fork_id, pid)
        except OSError as error:  # no descriptor left, or too many that are on their way
            os.kill(pid, signal.SIGKILL)  # as it isn't in the table, it is reaped without a word
            self._send(Refused(fork_id, errno=error.errno or errno.EMFILE))
            return False
        self._workers[pid] = fork_id
        return False

    def _send_forked(self, fork_id: int, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            self._send(Forked(fork_id, pid), pidfd)
        finally:
            os.close(pidfd)

    def _become_worker(self, fds: list[int]) -> NoReturn:
        """In the child: from here on it is a worker like any other.

        What the template did for all of them is not done again, as each page that is written to costs a worker
        5 us and 4 KiB: signals, but for one, are a worker's, streams are on the descriptors 0 to 2, secrets are known.
        """
        control, lifeline, stdout, stderr, dump, *slots = fds
        begin_child(lifeline, dump, (signal.SIGCHLD,))
        signal.set_wakeup_fd(-1)
        for fd in self._own_fds - {self._control.fileno()}:
            os.close(fd)
        self._control.close()
        for fd, number in ((stdout, 1), (stderr, 2)):
            os.dup2(fd, number)
            os.close(fd)
        adopt_orphans()
        # As if it had been spawned: whoever has to know a worker's descriptors finds them there.
        sys.argv[1:] = ["--slots", ",".join(map(str, slots)), "--control", str(control), "--lifeline", str(lifeline)]
        sockets = [socket.socket(fileno=fd) for fd in slots]
        Worker(socket.socket(fileno=control), sockets, self._secrets).run()

    # Reaping

    def _reap(self) -> None:
        """Collect whoever is dead, kill what was adopted (its end brings us here again), say who has ended."""
        exits: list[Exited] = []
        while (pid := _zombie()) is not None:
            fork_id = self._workers.pop(pid, None)
            if fork_id is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            self._helpers.discard(pid)
            if fork_id is not None:
                code = os.waitstatus_to_exitcode(status)
                died_of = -code if code < 0 else None
                exits.append(Exited(fork_id, None if died_of else code, died_of, usage.ru_maxrss))
        self._adopted = _children() - self._workers.keys() - self._helpers
        for pid in self._adopted:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for exit_ in exits:
            self._send(exit_)

    def _sweep(self) -> None:
        """Before it leaves: wait until what escaped from dead workers is dead too, and whatever that had started."""
        self._reap()
        while self._adopted:
            self._await_child(None)

    def _await_child(self, timeout_ms: float | None) -> None:
        """Wait until a child ends, and collect it."""
        poller = select.poll()
        poller.register(self._sigchld_out, select.POLLIN)
        if poller.poll(timeout_ms):
            os.read(self._sigchld_out, 4096)
        self._reap()

    def _end_with_manager(self) -> NoReturn:
        """See rule 6. The group ends with it: what a preload module has left running."""
        deadline = time.monotonic() + LAST_S
        self._reap()
        while (self._workers or self._adopted) and (left_s := deadline - time.monotonic()) > 0:
            self._await_child(left_s * 1000)
        os.killpg(0, signal.SIGKILL)
        raise AssertionError

    def _send(self, record: Record, *fds: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next receive finds the end
            send_record(self._control, record, fds)


def prepare(wanted: Prepare, broken: Callable[[], str | None], tell: Callable[[str], None]) -> str | None:
    """Import what the workers will need, and warm it.

    Args:
        wanted: what that is.
        broken: the rule for what is forked that this process breaks now.
        tell: is told each module before it is imported, and "" after the last one.

    Returns:
        The module since whose import a rule is broken; None where none is, or where it was none of them.

    Raises:
        BaseException: whatever the imports raise.
    """
    set_sys_path(wanted.sys_path)
    dspy = ("dspy",) if wanted.dspy and importlib.util.find_spec("dspy") is not None else ()
    culprit = None
    for module in (*dspy, *wanted.preload):
        tell(module)
        import_preload(module)
        culprit = (culprit or module) if broken() else None
    tell("")
    warm_boot()
    if "dspy" in sys.modules:
        try:
            warm_dspy()
        except Exception:  # another DSPy than the one this was written for; its first call in a worker does it then
            traceback.print_exc()
    return culprit


def warm_boot() -> None:
    """Read a handshake, so that the types in it are known."""
    config = BootConfig(0, "template", lm=LMSpec("", "openai/none", {"temperature": 0.0}))
    handshake = Request(HANDSHAKE_ID, "ping", {"protocol_version": PROTOCOL_VERSION, "config": config})
    request = MSGPACK.decode_request(memoryview(MSGPACK.encode(handshake))[HEADER_BYTES:])
    spec = read_config(request.args).lm
    if spec is not None:
        Secrets().add_lm(spec)


def warm_dspy() -> None:
    """Load what the first DSPy program loads: the worker's runtime, DSPy's price table, what one call imports."""
    import dspy
    from dspy.utils import DummyLM

    from dspool.worker.runtime import warm_price_table

    warm_price_table()
    for module in ("cachetools", "diskcache"):  # which DSPy's cache imports when it is made, and when it opens
        importlib.import_module(module)
    lm = DummyLM({"": {"reasoning": "r", "answer": "a"}})
    with dspy.context(lm=lm, adapter=None, disable_history=True, trace=None):
        dspy.ChainOfThought("question -> answer")(question="q")


def _zombie() -> int | None:
    """A child that is dead and not collected yet."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _children() -> set[int]:
    """This process's children. Its number doubles as its only thread's."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return set(map(int, file.read().split()))
    except OSError:  # a kernel without them: what escaped from a dead worker lives on
        return set()


def _no_pidfds() -> str | None:
    """Why this system's kernel, or a container's filter, doesn't let workers be watched from another process."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        return f"workers are watched by pidfd, which this system refuses ({error})"
    return None


def main() -> NoReturn:
    """Become a template."""
    fds = dict(zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True))
    control, lifeline, dump = fds["--control"], fds["--lifeline"], fds["--dump"]
    begin_child(lifeline, dump)
    this_is_a_worker()
    # From here on nothing can keep this process alive without its manager.
    own_stdio()
    for fd in fds.values():
        os.set_inheritable(fd, False)
    Template(socket.socket(fileno=control), lifeline, dump).run()


if __name__ == "__main__":
    main()
