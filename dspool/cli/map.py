"""`dspool map`: a program over the rows of a file, the answers to another file, with resume."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dspool.cli.answers import Answers
from dspool.cli.exits import ExitCode, ends_everything, exit_code_of
from dspool.cli.programs import PROGRAM_HELP, check_program
from dspool.cli.rows import Row, Rows
from dspool.cli.run import printable, usage_of
from dspool.cli.settings import Settings, pool_settings
from dspool.errors import DspoolError, OptionsError

if TYPE_CHECKING:
    from dspool import Pool

_HELP = f"""Run PROGRAM for each row of ROWS, a file with one JSON object of inputs a line ('-': stdin), and write a
line for each to OUT: {{"index", "digest", "outputs"}}, or "error" in place of "outputs": {{"type", "message"}}, and,
where the error has them, "code", "retryable", "status" and "traceback", the worker's.

{PROGRAM_HELP}

Lines come in the order of the rows. Ctrl-C or a kill loses no line that was written: the same command with
--resume goes on after it. A row that failed is kept as an error, and its line says why; an error that every row
would meet (a program that can't be loaded, a key that is refused) ends the run.

\b
  dspool map "question -> answer" rows.jsonl -o out.jsonl --workers 4 --lm openai/gpt-4o-mini
"""


@click.command("map", short_help="Run a program for each row of a file.", help=_HELP)
@click.argument("program")
@click.argument("source", metavar="ROWS")
@click.option("-o", "--out", "target", required=True, metavar="OUT", help="Where the answers go; '-' is stdout.")
@click.option("--resume", is_flag=True, help="Go on with an OUT that is partly written.")
@click.option("--retry-failed", is_flag=True, help="With --resume: run the rows again whose line is an error.")
@click.option("--overwrite", is_flag=True, help="Begin OUT anew if it exists.")
@click.option("--concurrency", type=int, metavar="N", help="Rows in flight at a time. [default: workers x slots]")
@click.option(
    "--idempotent", is_flag=True, help="Running a row twice does no harm: run it again when its worker was lost."
)
@click.option(
    "--on-error",
    type=click.Choice(["keep", "stop"]),
    default="keep",
    show_default=True,
    help="keep: write the error and go on. stop: end at the first row that fails.",
)
@click.option("--usage", is_flag=True, help="Add the LM's token counts to each line.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pool_settings(check_key=True)
def map_command(
    program: str,
    source: str,
    target: str,
    resume: bool,
    retry_failed: bool,
    overwrite: bool,
    concurrency: int | None,
    idempotent: bool,
    on_error: str,
    usage: bool,
    quiet: bool,
    settings: Settings,
) -> int:
    """Run a program over many rows."""
    _check_flags(resume=resume, retry_failed=retry_failed, overwrite=overwrite)
    check_program(program, settings.lm)
    rows, answers = Rows(source, program), Answers(target)
    answers.open(resume=resume, overwrite=overwrite)
    try:
        total = answers.check(rows)
        if retry_failed:
            answers.forget_failed()
        run = _Run(program, rows, answers, total, stops=on_error == "stop", usage=usage)
        if run.left:
            with settings.make_pool(name="map") as pool:
                answers.begin()
                run.write_all(pool, concurrency=concurrency, progress=not quiet, idempotent=idempotent)
        answers.begin()  # of no rows
        return run.sum_up(quiet=quiet)
    except KeyboardInterrupt:
        click.echo(f"dspool: interrupted: {answers.state()}", err=True)
        return ExitCode.INTERRUPTED
    except OptionsError:
        raise  # nothing was run, and the same command would say the same
    except DspoolError:
        click.echo(f"dspool: ended early: {answers.state()}", err=True)
        raise
    finally:
        answers.close()


def _check_flags(*, resume: bool, retry_failed: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if retry_failed and not resume:
        raise click.UsageError("--retry-failed goes with --resume")


class _Run:
    """One run of the command: what is left to do, and how it went."""

    def __init__(self, program: str, rows: Rows, answers: Answers, total: int, *, stops: bool, usage: bool) -> None:
        self._program = program
        self._rows = rows
        self._answers = answers
        self._total = total
        self._stops = stops
        self._usage = usage
        self._before = len(answers.done)
        self._codes: Counter[ExitCode] = Counter()
        self._first_error = ""
        self.left = total - self._before

    def write_all(self, pool: Pool, *, concurrency: int | None, progress: bool, idempotent: bool) -> None:
        """Run what is left and write each answer.

        Raises:
            DspoolError: the error that ended the run; its row has no line and is run again by --resume.
        """
        waiting = _Waiting(self._rows, self._answers.done, self.left)
        results = pool.map(
            self._program,
            waiting,
            concurrency=concurrency,
            return_exceptions=True,
            progress=progress,
            idempotent=idempotent,
        )
        try:
            for result in results:
                if isinstance(result, click.ClickException):
                    raise result  # no row: the file was changed since it was checked
                self._write(waiting.taken.popleft(), result)
        finally:
            results.close()  # type: ignore[attr-defined]

    def _write(self, row: Row, result: Any) -> None:
        answer: dict[str, Any] = {}
        try:
            if isinstance(result, Exception):
                raise result
            answer["outputs"] = printable(result)
            if self._usage:
                answer["usage"] = usage_of(result)
        except Exception as error:
            if self._stops or ends_everything(error):
                raise
            self._codes[exit_code_of(error)] += 1
            answer = {"error": error_record(error)}
            self._first_error = self._first_error or f"the first, of row {row.index}: {error}"
        self._answers.write(row, **answer)

    def sum_up(self, *, quiet: bool) -> ExitCode:
        """Say how it went; returns the exit code."""
        answers = self._answers
        told = f"dspool: {len(answers.done)} of {self._total} rows are in {answers.name}"
        if self._before:
            told += f", {self._before} of them from before"
        if answers.failed:
            told += f"; {len(answers.failed)} are errors, which --resume --retry-failed runs again"
        if answers.failed or not quiet:
            click.echo(told, err=True)
        if self._first_error:
            click.echo(f"dspool: {self._first_error}", err=True)
        for code in (ExitCode.INTERNAL, ExitCode.WORKER_LOST, ExitCode.PROGRAM_FAILED):
            if self._codes[code]:
                return code
        return ExitCode.PROGRAM_FAILED if answers.failed else ExitCode.OK


class _Waiting:
    """The inputs of the rows that have no line yet. `taken` holds the rows that were taken, in order."""

    def __init__(self, rows: Rows, done: dict[int, str], count: int) -> None:
        self._rows = rows
        self._done = frozenset(done)
        self._count = count
        self.taken: deque[Row] = deque()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            if row.index not in self._done:
                self.taken.append(row)
                yield row.inputs


def error_record(error: Exception) -> dict[str, Any]:
    """An error as the out file holds it."""
    told: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    for name in ("code", "retryable", "status"):
        value = getattr(error, name, None)
        if value is not None:
            told[name] = value
    if trace := getattr(error, "remote_traceback", None):
        told["traceback"] = trace
    return told
