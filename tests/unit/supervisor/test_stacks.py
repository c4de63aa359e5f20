"""Stack dumps: the thread that was interrupted comes first, and nothing else of the text changes."""

import faulthandler
import tempfile
import threading

import pytest

from dspool.supervisor.stacks import current_first

pytestmark = pytest.mark.unit

CONTROL = (
    'Thread 0x00007f0c44b286c0 (most recent call first):\n  File "control.py", line 9 in read\n  File "t.py", line 3'
)
OTHER = "Thread 0x00007f0c44b28700 [slot-1] (most recent call first):\n  <no Python frame>"
PROGRAM = 'Current thread 0x00007f0c4608cb80 (most recent call first):\n  File "app.py", line 5 in slow\n  ...'


def test_the_interrupted_thread_comes_first_the_others_keep_their_order() -> None:
    assert current_first(f"{CONTROL}\n\n{OTHER}\n\n{PROGRAM}\n") == f"{PROGRAM}\n\n{CONTROL}\n\n{OTHER}\n"


def test_what_stands_around_the_threads_stays_there() -> None:
    before, after = "Fatal Python error: Segmentation fault\n\n", "\n\nExtension modules: a, b (total: 2)\n"
    assert current_first(f"{before}{CONTROL}\n\n{PROGRAM}{after}") == f"{before}{PROGRAM}\n\n{CONTROL}{after}"


@pytest.mark.parametrize(
    "dump",
    [
        "",
        "no stack dump: none was written",
        f"{CONTROL}\n\n{OTHER}\n",
        f"{PROGRAM}\n\n{CONTROL}\n",
        f"{CONTROL}\n\n{PROGRAM}\n{OTHER}\n\n{PROGRAM}\n",
        f"0 in read\n  File cut off\n\n{PROGRAM}",
        PROGRAM.replace("(most recent call first):", "(most"),
    ],
    ids=["empty", "other text", "no current thread", "in order", "two dumps", "cut off before", "cut off behind"],
)
def test_anything_else_stays_as_it_is(dump: str) -> None:
    assert current_first(dump) == dump


def test_what_this_python_writes_is_understood() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            dump = file.read().decode()
    finally:
        done.set()
        thread.join()
    assert dump.startswith("Thread 0x")
    found = current_first(dump)
    assert found.startswith("Current thread 0x")
    assert sorted(found) == sorted(dump)
