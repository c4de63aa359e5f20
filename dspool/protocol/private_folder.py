"""Folders that hold what nobody else may read or write."""

from __future__ import annotations

from pathlib import Path


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are not there, each with mode 0700. One that is there stays as it is.

    Safe against others that make the same one meanwhile: it never is there with another mode.

    Raises:
        OSError: it can't be made, or is no folder.
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
