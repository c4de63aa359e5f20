"""See `tests.chaos.command`."""

from tests.chaos.command import main

main(prog_name="python -m tests.chaos")
