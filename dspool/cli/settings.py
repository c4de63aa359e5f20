"""What the commands have in common: the options of the pool, how errors and logs are shown, and the pool itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dspool.cli.inputs import json_or_text
from dspool.cli.lms import check_key as check_lm_key, made, read_lm

if TYPE_CHECKING:
    from dspool import Pool, PoolOptions

TRACEBACK = "dspool.traceback"
"""Key in click's context: whether errors come with their traceback."""
SILENT = -1
"""A value of `Settings.verbose`: log errors alone."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _given(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """... for an option that was not given: None is a value of its own."""
    return ... if value is None else value


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    if text is None:
        return ...
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of seconds, nor 'none'") from None


def _pool_options(ctx: click.Context, param: click.Parameter, words: Sequence[str]) -> dict[str, Any]:
    options = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{word!r} is not of the form NAME=VALUE")
        options[name] = value = json_or_text(text)
        if value == text and text[0] in "[{":
            raise click.BadParameter(
                f"{word!r:.200} begins like JSON and is none. Quote all of it for the shell: -O '{name}=[\"...\"]'"
            )
    return options


@dataclass(frozen=True)
class Settings:
    """What the common options said. A value of ... was not given; the pool's own default holds."""

    lm: Any = None
    workers: Any = ...
    slots: Any = ...
    timeout_s: Any = ...
    options: dict[str, Any] = field(default_factory=dict)
    verbose: int = 0

    def with_defaults(self, *, verbose: int, workers: Any = ..., lm: Any = None) -> Settings:
        """The same with a command's own defaults where nothing else was asked for."""
        return replace(
            self,
            lm=lm if self.lm is None else self.lm,
            workers=workers if self.workers is ... else self.workers,
            verbose=self.verbose or verbose,
        )

    def make_pool(self, **defaults: Any) -> Pool:
        """A pool that is not open yet.

        Args:
            defaults: options of the command's own, where the user gave no other.

        Raises:
            OptionsError: an option is unknown or out of range.
        """
        options = self.options_of_pool(**defaults)
        from dspool import Pool

        return Pool(options)

    def options_of_pool(self, **defaults: Any) -> PoolOptions:
        """The options of such a pool; logs are shown as asked from now on. See make_pool."""
        from dspool.cli.logs import show_logs

        show_logs(self.verbose)  # before the pool's modules ask for their loggers
        from dspool import PoolOptions

        given = {"workers": self.workers, "slots": self.slots, "timeout_s": self.timeout_s}
        chosen = {name: value for name, value in given.items() if value is not ...}
        if self.lm is not None:
            chosen["lm"] = made(self.lm)
        return PoolOptions.build(None, {**defaults, **chosen, **self.options})


def pool_settings(*, check_key: bool) -> Callable[[Command], Command]:
    """Give a command the common options; it gets them as one argument, `settings`.

    Args:
        check_key: whether the command is refused where the LM's key is known to be missing.
    """

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def with_settings(*args: Any, **kwargs: Any) -> Any:
            click.get_current_context().meta[TRACEBACK] = kwargs.pop("traceback")
            own = {entry.name: kwargs.pop(entry.name) for entry in fields(Settings)}
            if check_key:
                check_lm_key(own["lm"])
            return command(*args, settings=Settings(**own), **kwargs)

        for option in reversed(_OPTIONS):
            with_settings = option(with_settings)
        return with_settings  # type: ignore[return-value]

    return add


_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--lm",
        metavar="SPEC",
        callback=lambda ctx, param, value: read_lm(value),
        help="The language model: provider/model, as in openai/gpt-4o-mini or gemini/gemini-2.5-flash; @FILE with "
        "dspy.LM's arguments as a JSON object; or 'offline', an embedded stand-in that quotes instead of thinking.",
    ),
    click.option("--workers", type=int, callback=_given, metavar="N", help="How many worker processes."),
    click.option("--slots", type=int, callback=_given, metavar="N", help="Calls that one worker runs at a time."),
    click.option(
        "--timeout",
        "timeout_s",
        callback=_seconds,
        metavar="S",
        help="Seconds that a call may take, its wait for a worker included, or 'none'. [default: 120]",
    ),
    click.option(
        "-O",
        "--option",
        "options",
        callback=_pool_options,
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other option of the pool, as in -O max_requests=100. Repeatable.",
    ),
    click.option("-v", "--verbose", count=True, help="Show what the workers print (-v) and what the pool does (-vv)."),
    click.option("--traceback", is_flag=True, help="Show errors with their tracebacks, the worker's included."),
]
