"""The table of commands, and the one place where their errors become a message and an exit code."""

from __future__ import annotations

import os
import sys

import click

from dspool.cli.demo import demo
from dspool.cli.doctor import doctor
from dspool.cli.exits import EXIT_CODES, ExitCode, exit_code_of, explain
from dspool.cli.map import map_command
from dspool.cli.run import run
from dspool.cli.settings import TRACEBACK

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())


class Commands(click.Group):
    """A group whose commands' errors are told as a person would want them told."""

    def invoke(self, ctx: click.Context) -> int:
        """Run the command that was named; returns its exit code."""
        try:
            code = super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # Whoever read our output has gone, as in `dspool ... | head`. Python's own last flush must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.OK
        except KeyboardInterrupt:
            click.echo("dspool: interrupted", err=True)
            return ExitCode.INTERRUPTED
        except Exception as error:
            click.echo(explain(error, with_traceback=bool(ctx.meta.get(TRACEBACK))), err=True)
            return exit_code_of(error)
        return code if isinstance(code, int) else ExitCode.OK


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_EPILOG,
)
@click.version_option(package_name="dspool", prog_name="dspool", message="%(prog)s %(version)s")
def dspool() -> None:
    """Run DSPy programs in warm worker processes."""


for _command in (run, map_command, doctor, demo):
    dspool.add_command(_command)


def run_command(arguments: list[str]) -> int:
    """Run a command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # answers are of any language, terminals are not
            reconfigure(errors="backslashreplace")
    try:
        code = dspool.main(args=arguments, prog_name="dspool", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return exit_code_of(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("dspool: interrupted", err=True)
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.OK
