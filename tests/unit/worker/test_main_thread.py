"""What only the main thread may do, done there for others."""

from __future__ import annotations

import os
import threading

import pytest

from dspool.worker.main_thread import MainThread

pytestmark = pytest.mark.unit


def test_jobs_of_other_threads_run_on_the_main_thread_one_after_the_other() -> None:
    main = MainThread()
    found: list[object] = []

    def ask() -> None:
        found.append(main.run(threading.current_thread))
        with pytest.raises(LookupError) as caught:
            main.run(lambda: os.environ["NOT_THERE_AT_ALL"])
        found.append(caught.type)
        main.stop()

    thread = threading.Thread(target=ask)
    thread.start()
    main.serve()
    thread.join(10)
    assert found == [threading.main_thread(), KeyError]


def test_a_job_of_the_main_thread_runs_at_once() -> None:
    main = MainThread()
    assert main.run(lambda: main.run(lambda: 5)) == 5
