"""Exit codes and how errors are told."""

from __future__ import annotations

import click
import pytest

from dspool import errors
from dspool.cli.exits import EXIT_CODES, EnvironmentLacks, ExitCode, ends_everything, exit_code_of, explain

pytestmark = pytest.mark.unit


def test_the_table_has_every_code() -> None:
    assert set(EXIT_CODES) == set(ExitCode)


@pytest.mark.parametrize(
    ("error", "code", "ends"),
    [
        (errors.OptionsError("x"), ExitCode.USAGE, True),
        (errors.EncodeError("x"), ExitCode.USAGE, False),
        (errors.ProgramError("x"), ExitCode.PROGRAM_FAILED, False),
        (errors.ProgramError("x", code="invalid_args"), ExitCode.USAGE, False),
        (errors.ProgramError("x", code="load_error"), ExitCode.PROGRAM_FAILED, True),
        (errors.ProgramError("x", code="lm_error", status=401), ExitCode.PROGRAM_FAILED, True),
        (errors.ProgramError("x", code="lm_error", status=429), ExitCode.PROGRAM_FAILED, False),
        (errors.WorkerStartError("x"), ExitCode.ENVIRONMENT, True),
        (errors.PoolBroken("x"), ExitCode.ENVIRONMENT, True),
        (errors.WorkerLost("x"), ExitCode.WORKER_LOST, False),
        (errors.CallTimeout("x"), ExitCode.WORKER_LOST, False),
        (errors.QueueTimeout("x"), ExitCode.WORKER_LOST, False),
        (errors.ProgramQuarantined("x"), ExitCode.WORKER_LOST, True),
        (ImportError("x"), ExitCode.ENVIRONMENT, False),
        (EnvironmentLacks("x"), ExitCode.ENVIRONMENT, False),
        (click.UsageError("x"), ExitCode.USAGE, False),
        (click.FileError("x"), ExitCode.USAGE, False),
        (OSError("x"), ExitCode.USAGE, False),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, False),
        (ZeroDivisionError("x"), ExitCode.INTERNAL, False),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'code', '')}" if isinstance(value, Exception) else None,
)
def test_every_error_has_its_code(error: BaseException, code: ExitCode, ends: bool) -> None:
    assert exit_code_of(error) is code
    assert ends_everything(error) is ends


def test_an_error_is_one_paragraph() -> None:
    told = explain(errors.WorkerLost("worker 3\nis gone\n"))
    assert told == "dspool: WorkerLost: worker 3 is gone"


def test_a_traceback_is_shown_where_it_is_asked_for_with_the_workers_own() -> None:
    error = errors.ProgramError("it failed", remote_traceback="Traceback of the worker")
    told = explain(error, with_traceback=True)
    assert "In the worker:\nTraceback of the worker" in told
    assert told.endswith("dspool: ProgramError: it failed")


def test_an_error_of_dspools_own_says_how_to_see_more() -> None:
    assert "--traceback" in explain(KeyError("x"))


def test_stacks_are_for_traceback_alone_and_advice_names_options() -> None:
    error = errors.CallTimeout(
        "too late; give it more time with timeout_s\nCurrent thread 0x00 (most recent call first)", None
    )
    assert explain(error) == (
        "dspool: CallTimeout: too late; give it more time with --timeout (--traceback shows where)"
    )
    assert "Current thread 0x00" in explain(error, with_traceback=True)


def test_an_option_is_renamed_only_where_it_is_a_word_of_its_own() -> None:
    told = explain(errors.OptionsError("pass timeout_s; there are ping_timeout_s and queue_timeout_s"))
    assert told == "dspool: OptionsError: pass --timeout; there are ping_timeout_s and queue_timeout_s"
