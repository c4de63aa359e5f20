"""Mechanism of processes: starts, watches, stops, kills and reaps workers. It decides nothing.

    supervisor.py      the table of workers and the task group they live in: start, stop, kill, probe, close
    listener.py        who is told
    life.py            one worker from its launch to its exit report: handshake, stop ladder, kill, dump
    boot.py            the handshake, and what its answer means
    launch.py          start methods: what it takes to start one process; "spawn"
    templates.py       start method "template": a warm process for each kind of worker, that its workers are forked from
    template.py        one such process: prepared, asked for workers, says how they ended
    forked_child.py    a worker that it forked
    ends.py            both ends of everything that joins a worker to its manager
    child.py           a process that this one started: its exit, its signals, its reaping
    process.py         one started process as file descriptors: lifeline, dump, closing them all
    control.py         the manager's end of a control pipe: requests out, answers in, matched by id
    logged_control.py  ... with `debug_log=`
    frame_log.py       the log of frames that it asks for
    output.py          stdout and stderr: log lines and a bounded tail
    exits.py           why it ended: orders and exit status -> exit report
    stacks.py          stack dumps as people want to read them
    health.py          pings, and the round of memory samples
    memory.py          resident size, its peak, out-of-memory kills
    environment/       the checks of `dspool doctor`, and those of them that open() makes
    starting.py        tasks that may be cancelled before their first step
    forked.py          what a process that the application forks must not keep open
    faults.py          this room's own faults in the log

Rules: everything happens on one loop, the control loop (asyncio, uvloop or trio). Orders are synchronous and never
block; what comes of them is told to a Listener, on the same loop. Every started worker gives exactly one exit report.
The policy (which worker, when, how often again) lives elsewhere, and nothing here may know it.
"""
