"""The pool's core: pure decisions. No I/O, clock, randomness, threads, logging or await in this package."""
