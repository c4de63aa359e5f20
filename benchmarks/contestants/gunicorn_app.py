"""What gunicorn serves: a dirty app that runs a program by its name, and the HTTP app that gunicorn wants beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import programs

if TYPE_CHECKING:
    DirtyApp: Any = object
else:
    DirtyApp = import_module("gunicorn.dirty").DirtyApp

PATH = f"{__name__}:ProgramApp"


class ProgramApp(DirtyApp):
    """Functions can't be sent to a dirty worker; names can."""

    def run(self, program: str, value: Any) -> Any:
        """Run programs.<program>(value)."""
        return getattr(programs, program)(value)

    def close(self) -> None:
        """There is nothing to close."""


def nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The HTTP app; nobody asks it anything."""
    start_response("204 No Content", [])
    return []
