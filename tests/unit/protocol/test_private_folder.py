"""Folders for their owner alone."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspool.protocol.private_folder import make_private

pytestmark = pytest.mark.unit


def mode(folder: Path) -> int:
    """A folder's permissions."""
    return stat.S_IMODE(folder.stat().st_mode)


def test_what_is_made_is_private_and_what_was_there_stays(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    there.chmod(0o755)
    for _ in range(2):
        make_private(there / "a" / "b")
        assert [mode(folder) for folder in (there, there / "a", there / "a" / "b")] == [0o755, 0o700, 0o700]


def test_several_may_make_the_same_one(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make_private, [folder] * 32))
    assert mode(folder) == 0o700


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileExistsError, match=r"file'$"):
            make_private(folder)
