"""A pool: a core that decides, and what carries it out for threads and for tasks.

What users hold:

    blocking.py         Pool: for threads
    aio.py              AsyncPool: for tasks
    front.py            what both have in common: everything but the waiting
    lease.py            Lease and AsyncLease: a slot, borrowed for several runs
    streams.py          Stream and AsyncStream: a call's pieces as they come
    mapping.py          map: rows in flight, their results in order or as they come
    row_pump.py         ... the rows themselves: a bounded number at a time
    progress.py         ... and the bar

The way of a call:

    data_path.py        from checkout to checkin, written once, as steps that say what they wait for
    steps.py            what there is to wait for
    polling.py          ... how a thread does
    waits.py            ... how a task does
    interrupts.py       Ctrl-C, held back everywhere else
    check_hook.py       the user's `check` hook
    slot_pipe.py        the manager's end of a slot's pipe; never waits
    logged_pipe.py      ... with `debug_log=`
    results.py          a response -> a value, a dspy.Prediction or a ProgramError
    call_errors.py      what a caller is told where there is no response

Behind the calls:

    core/               decides; knows no pipe, process or clock
    driver.py           the one door to the core
    control.py          the control plane: orders of the core -> the supervisor
    starts.py           what the options mean for a worker's start
    environment.py      check_environment: the same, before there is a pool
    events.py           log lines and the on_event hook
    usage.py            what calls used of LMs
    session_lms.py      the LMs that set_session_lm() gave sessions
    lm_keys.py          keys of LMs: masked, or missed
    limit_file.py       the file in which workers share rate limits
    threads.py          threads that the system may refuse

What runs, and as which LM:

    programs.py         the store: any form of a program -> what a worker is sent of it
    program.py          ... one program in it
    names.py            ... the names that programs are registered under
    defined.py          definitions, as plain data
    forms.py            what can be read off a program: its name, its outputs' types
    identity.py         the digest that equal definitions share
    attributes.py       what its modules held at one moment
    watch.py            whether it is still what it was
    pickling.py         objects as workers are sent them
    unsendable.py       which members of one can't be
    lm_specs.py         LMs and adapters as workers are sent them

A pooled program is a DSPy program (pool.wrap):

    wrapped.py          the module that runs elsewhere
    context.py          what a call takes along of its caller's DSPy settings, and brings back
    relay.py            its pieces into the caller's dspy.streamify
    kindred_errors.py   its failure as the caller's own code would have met it

Moving from ProcessPoolExecutor:

    executor.py         Executor
    executor_calls.py   its calls, on their way to the slots
    submitted.py        one of them: its future and its pickle

Rules: what happens is decided in the core alone. The pool knows pipes and orders the supervisor about, and nothing of
what runs inside a worker. dspy is imported here late, and only where a DSPy object is at hand or asked for.
"""
