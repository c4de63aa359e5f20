"""What crosses a pipe, and the little else that manager and worker do alike. No processes, no dspy, no sockets but in
records.py."""
