"""What an error in the out file of `dspool map` holds is what --help says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import dspool
from dspool.cli.map import error_record, map_command

pytestmark = pytest.mark.unit


def test_help_names_everything_that_an_error_may_hold() -> None:
    error = dspool.ProgramError(
        "no luck", code="program_error", remote_traceback="Traceback ...", retryable=True, status=503
    )
    record = error_record(error)
    assert record == {
        "type": "ProgramError",
        "message": "no luck",
        "code": "program_error",
        "retryable": True,
        "status": 503,
        "traceback": "Traceback ...",
    }
    told = CliRunner().invoke(map_command, ["--help"]).output
    assert [name for name in record if f'"{name}"' not in told] == []


def test_an_error_that_has_nothing_more_holds_its_type_and_message() -> None:
    assert error_record(ValueError("odd")) == {"type": "ValueError", "message": "odd"}
