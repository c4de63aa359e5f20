"""`dspool run`: a program once, its answer as JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from dspool.cli.inputs import read_inputs
from dspool.cli.programs import PROGRAM_HELP, check_program
from dspool.cli.settings import SILENT, Settings, pool_settings
from dspool.errors import EncodeError, ProgramError

_HELP = f"""Run PROGRAM once in a worker process and print its outputs as JSON.

{PROGRAM_HELP}

\b
An input is written KEY=VALUE:
  n=3              JSON where it is JSON: here a number
  question=Why?    else text
  text=@notes.txt  the text of a file (@@ stands for one @ as text)

\b
  dspool run "question -> answer" question="What is a lease?" --lm openai/gpt-4o-mini
  dspool run statistics:mean data='[1, 2, 4]'
"""


@click.command(short_help="Run a program once and print its outputs as JSON.", help=_HELP)
@click.argument("program")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--inputs", "source", metavar="FILE", help="A JSON object with inputs, '-' for stdin; KEY=VALUE wins over it."
)
@click.option("--usage", is_flag=True, help="Print the LM's token counts too: {'outputs': ..., 'usage': ...}.")
@pool_settings(check_key=True)
def run(program: str, words: tuple[str, ...], source: str | None, usage: bool, settings: Settings) -> None:
    """Run a program once."""
    inputs = read_inputs(words, source)
    check_program(program, settings.lm)
    settings = settings.with_defaults(workers=1, verbose=SILENT)  # the one call's error says all that a log would
    with settings.make_pool(name="run") as pool:
        result = pool.run(program, inputs)
    outputs = printable(result)
    shown = {"outputs": outputs, "usage": usage_of(result)} if usage else outputs
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))


def printable(result: Any) -> Any:
    """A program's result as plain JSON.

    Raises:
        ProgramError: something in it has no JSON form.
    """
    from dspool.protocol.values import to_json

    try:
        return to_json(result, "result")
    except EncodeError as error:
        raise ProgramError(f"the result can't be printed as JSON: {error}", code="encode_error") from None


def usage_of(result: Any) -> Any:
    """The token counts by model; None where the result is no prediction."""
    usage = getattr(result, "get_lm_usage", None)
    return usage() if usage is not None else None
