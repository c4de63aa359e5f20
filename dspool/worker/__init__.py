"""The child's side of a worker's pipes: read a frame, run a program, answer.

    lifeline.py     what a child does before anything else: lifeline, signals, stack dumps
    template.py     the warm process that workers are forked from
    fork_rules.py   what must hold of a process that is forked
    stdio.py        file descriptors 0, 1 and 2, which never carry frames
    boot.py         the handshake, then serving until the end
    loop.py         one framed pipe, whatever carries it: read a request, answer it
    control.py      what the control pipe is asked: ping, dump, get_stats, shutdown
    calls.py        what a slot pipe is asked: execute_program, create_program
    programs.py     program spec -> something to call; those that are kept loaded
    definitions.py  a program as plain data, with types from an allow-list
    inputs.py       what a program takes, and whether a call's inputs are that
    failures.py     an exception as plain data, bounded and without secrets
    main_thread.py  what only the main thread may do, done there for the others
    deadlines.py    what a deadline leaves for one request to an LM
    ending.py       how the process exits
    bridge/         the same loop on stdin and stdout, in JSON, for clients in any language
    runtime.py      DSPy: the one module that imports it at its top, itself imported with the first DSPy program

Rules: importing this package imports neither dspy nor anyio. A pool of plain callables never loads dspy in its workers.
A worker knows its pipes and what comes through them, and nothing of pools, leases or supervisors.
"""
