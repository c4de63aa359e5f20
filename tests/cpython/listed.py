"""Which of CPython's tests of executors pass against dspool.Executor, and why the others don't apply.

Names are those of Python 3.11 to 3.13; a version has some of them. docs/explanation/executor.md shows the same lists.
"""

from __future__ import annotations

PASSES = frozenset(
    """
    ExecutorTest.test_free_reference
    ExecutorTest.test_map
    ExecutorTest.test_map_exception
    ExecutorTest.test_map_timeout
    ExecutorTest.test_max_workers_negative
    ExecutorTest.test_no_stale_references
    ExecutorTest.test_shutdown_race_issue12456
    ExecutorTest.test_submit
    ExecutorTest.test_submit_keyword
    ProcessPoolExecutorTest.test_map_chunksize
    ExecutorShutdownTest.test_cancel_futures
    ExecutorShutdownTest.test_hang_gh94440
    ExecutorShutdownTest.test_hang_issue12364
    ExecutorShutdownTest.test_run_after_shutdown
    ExecutorShutdownTest.test_submit_after_interpreter_shutdown
    WaitTests.test_20369
    WaitTests.test_all_completed
    WaitTests.test_first_completed
    WaitTests.test_first_completed_some_already_completed
    WaitTests.test_first_exception
    WaitTests.test_first_exception_one_already_failed
    WaitTests.test_first_exception_some_already_complete
    WaitTests.test_timeout
    AsCompletedTests.test_correct_timeout_exception_msg
    AsCompletedTests.test_duplicate_futures
    AsCompletedTests.test_free_reference_yielded_future
    AsCompletedTests.test_future_times_out
    AsCompletedTests.test_no_timeout
    AsCompletedTests.test_zero_timeout
    ExecutorDeadlockTest.test_crash_at_task_unpickle
    ExecutorDeadlockTest.test_crash_big_data
    ExecutorDeadlockTest.test_crash_during_func_exec_on_worker
    ExecutorDeadlockTest.test_crash_during_result_pickle_on_worker
    ExecutorDeadlockTest.test_error_at_task_pickle
    ExecutorDeadlockTest.test_error_at_task_unpickle
    ExecutorDeadlockTest.test_error_during_func_exec_on_worker
    ExecutorDeadlockTest.test_error_during_result_pickle_on_worker
    ExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler
    ExecutorDeadlockTest.test_exit_at_task_unpickle
    ExecutorDeadlockTest.test_exit_during_func_exec_on_worker
    ExecutorDeadlockTest.test_exit_during_result_pickle_on_worker
    ExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler
    ExecutorDeadlockTest.test_shutdown_deadlock
    InitializerMixin.test_initializer
    FailingInitializerMixin.test_initializer
    """.split()
)

_PRINTS = "it looks for what a worker prints in the manager's stdout; a pool's workers print to its log"
_INSIDE = "it looks at attributes that are ProcessPoolExecutor's own (_processes, _call_queue, ...)"
_SEMAPHORE = "it sends a multiprocessing.Semaphore to workers, which only multiprocessing's own children can inherit"
_PER_CHILD = "max_requests= is the pool's word for max_tasks_per_child; the test looks at _processes too"

DOES_NOT_APPLY: dict[str, str] = {
    "ExecutorShutdownTest.test_interpreter_shutdown": _PRINTS,
    "ExecutorShutdownTest.test_hang_gh83386": _PRINTS,
    "ProcessPoolShutdownTest.test_processes_terminate": _SEMAPHORE,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": _INSIDE,
    "ProcessPoolShutdownTest.test_del_shutdown": _INSIDE,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": _INSIDE,
    "ProcessPoolExecutorTest.test_killed_child": "it expects a killed worker to break the executor for everybody; here "
    "that fails its own call alone",
    "ProcessPoolExecutorTest.test_max_workers_too_large": "it is about Windows",
    "ProcessPoolExecutorTest.test_traceback": "it wants the worker's traceback in a private class of the standard; "
    "here the exception's cause is a ProgramError that has it",
    "ProcessPoolExecutorTest.test_ressources_gced_in_workers": "it needs a multiprocessing.Manager, whose proxies "
    "carry an authentication key that only multiprocessing's own children have",
    "ProcessPoolExecutorTest.test_saturation": _SEMAPHORE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _INSIDE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _INSIDE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": _PER_CHILD,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _PER_CHILD,
    "ProcessPoolExecutorTest.test_max_tasks_early_shutdown": _PER_CHILD,
    "ProcessPoolExecutorTest.test_python_finalization_error": "it breaks a private thread of ProcessPoolExecutor",
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": "it joins a private thread of ProcessPoolExecutor; the same "
    "case is in our own tests",
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "it is about a private pipe of "
    "ProcessPoolExecutor",
}
# ProcessPoolExecutorTest inherits all of ExecutorTest.
DOES_NOT_APPLY |= {
    name.replace("ExecutorTest.", "ProcessPoolExecutorTest.", 1): "it is ExecutorTest's own, and run as such"
    for name in PASSES
    if name.startswith("ExecutorTest.")
}
DOES_NOT_APPLY |= {
    name.replace("ExecutorShutdownTest.", "ProcessPoolShutdownTest.", 1): "it is ExecutorShutdownTest's own"
    for name in [*PASSES, *DOES_NOT_APPLY]
    if name.startswith("ExecutorShutdownTest.")
}
