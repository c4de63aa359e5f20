"""The pool's core: pure decisions.

    commands.py     what goes in (commands) and what comes out (effects)
    machine.py      PoolCore.handle(command, now), in layers, this one on top:
    endings.py      ... how a grant ends
    dispatch.py     ... who gets which worker
    overload.py     ... who waits in vain, in a pool that sheds
    upkeep.py       ... workers over time
    fleet.py        ... workers that start, retire, are removed, exit

    states.py       the states and every legal move between them, as data
    records.py      the rows of the tables: groups, workers, slots, leases
    queue.py        the waiters
    idle.py         which workers have an idle slot, and which hold a program warm
    affinity.py     sessions, and the workers that they are pinned to
    timers.py       when something is due
    restarts.py     back-off, the breaker, quarantine
    recycling.py    when a worker has had its time
    shedding.py     when a queue only stands
    health.py       how the pool is and was
    stats.py        counters
    snapshot.py     the tables as users see them
    refusals.py     why a lease is refused, in words

    invariants.py   what must hold after every step; for tests and the simulator
    wakes.py        ... over two steps

Rules: no I/O, clock, randomness, threads, logging or await in this package.
"""
