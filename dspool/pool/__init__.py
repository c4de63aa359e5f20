"""The pool: a pure core that decides (`core`), and the drivers that carry it out for threads and for tasks."""
