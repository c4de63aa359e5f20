"""What crosses a pipe, imported by manager and worker. No sockets, no processes, no dspy here."""
