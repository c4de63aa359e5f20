"""The child's side of a worker's pipes: read a frame, run a program, answer.

    __main__.py     entry of a spawned worker
    lifeline.py     what a child does before anything else: lifeline, signals, stack dumps
    template.py     the warm process that workers are forked from
    fork_rules.py   what must hold of a process that is forked
    stdio.py        file descriptors 0, 1 and 2, which never carry frames
    boot.py         the handshake, then serving until the end
    loop.py         one framed pipe, whatever carries it: read a request, answer it
    control.py      what the control pipe is asked: ping, cancel, dump, get_stats, shutdown
    calls.py        what a slot pipe is asked: execute_program, create_program
    running.py      a call that gives pieces or can be cancelled, seen from its slot's thread
    call_loop.py    the same, seen from the event loop that runs it; loaded by the first such call
    programs.py     program spec -> something to call; those that are kept loaded
    import_paths.py what "package.module:attribute" names
    definitions.py  a program as plain data, with types from an allow-list
    saved_state.py  a state that program.save wrote -> the module that it was of
    inputs.py       what a program takes, and whether a call's inputs are that
    failures.py     an exception as plain data, bounded and without secrets
    main_thread.py  what only the main thread may do, done there for the others
    deadlines.py    what a deadline leaves for one request to an LM
    limits.py       what the pool's workers may ask of a model together
    pacing.py       ... when the next request's turn is; pure
    limit_records.py  ... in a file that they share
    ending.py       how the process exits
    bridge/         the same loop on stdin and stdout, in JSON, for clients in any language

Imported with the first DSPy program, for they import DSPy at their top:

    runtime.py      DSPy configured, LMs, and each call's context
    lms.py          dspy.LM within a call's deadline and the pool's limits
    spending.py     what a call used of LMs
    caches.py       DSPy's cache as the pool's options want it
    callers.py      a module's call under its caller's DSPy settings
    field_streams.py  output fields as they are written
    relays.py       what goes into the caller's own DSPy stream

Rules: importing this package imports neither dspy nor anyio. A pool of plain callables never loads dspy in its workers.
A worker knows its pipes and what comes through them, and nothing of pools, leases or supervisors.
"""
