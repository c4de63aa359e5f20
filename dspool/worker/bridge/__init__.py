"""python -m dspool.worker.bridge: the worker's loop over stdin and stdout, in JSON, for clients in any language.

It takes the place of a script that Elixir applications started as a port with `{:packet, 4}`, and answers the commands
that they know.

    __main__.py     entry
    options.py      the command line, and a help that is enough to write a client
    reference.py    commands, error codes and exit codes as data: --help and the reference page are made from it
    process.py      descriptors, loop and end of the process
    commands.py     what can be asked, one method a command
    programs.py     the book of what create_program has made
    sessions.py     the data that clients keep under a session
    storage.py      how much may be kept in all
    lms.py          an LM's arguments -> the spec that the runtime makes it from
    frame_log.py    --debug-log
    refusal.py      a request that is refused

Rules: nothing but frames ever goes to what was stdout. What a client keeps here is bounded. Programs are loaded and run
by the parts that the pool's workers have too: worker/programs.py, runtime.py, calls.py, loop.py.
"""
