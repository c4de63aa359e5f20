"""The command line of a spawned worker."""

from __future__ import annotations

import os

import pytest

from dspool.worker.__main__ import parse

pytestmark = pytest.mark.unit


def test_the_command_line_names_file_descriptors() -> None:
    read_fd, write_fd = os.pipe()
    try:
        line = ["--control", str(read_fd), "--lifeline", str(write_fd), "--slots", f"{read_fd},{write_fd}"]
        assert parse(line) == {"--control": [read_fd], "--lifeline": [write_fd], "--slots": [read_fd, write_fd]}
        for bad in ([], line[:-2], [*line, "--what", "5"], [*line, "--dump"], [*line[:-1], "2"], [*line[:-1], "x"]):
            with pytest.raises(ValueError, match=r"option|several|from 3 on|shorter|longer|invalid literal"):
                parse(bad)
    finally:
        os.close(read_fd)
        os.close(write_fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        parse(line)
