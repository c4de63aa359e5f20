"""What crosses a pipe, imported by manager and worker. No processes, no dspy, no sockets but in records.py."""
